"""Entry points for `torch.hub.load`.

Example:
    >>> model = torch.hub.load("path/to/clone", "vatt", "runs/demo", source="local")
    >>> model = torch.hub.load("owner/vatt", "preset", "ma-base")  # a clone of GitHub's
"""

import os
import typing  # torch.hub lists every function and class here as an entry point

if typing.TYPE_CHECKING:
    from vatt import VATT, FeatureExtractor

dependencies = ["torch", "av", "einops", "huggingface_hub", "lazy_loader", "numpy", "safetensors"]
dependencies += ["tokenizers", "tqdm"]


def vatt(source: str | os.PathLike[str], **options: typing.Any) -> "VATT":
    """Model of a model folder, run folder, checkpoint, or `org/name` on the Hugging Face Hub.

    Args:
        source: Folder, checkpoint or `org/name`.
        options: Further arguments of `vatt.VATT.from_pretrained`, such as `revision`.

    Returns:
        The model in evaluation mode.
    """
    from vatt import VATT

    return VATT.from_pretrained(source, **options)


def feature_extractor(source: str | os.PathLike[str], **options: typing.Any) -> "FeatureExtractor":
    """Feature extractor with model and tokenizer, which reads files, arrays and texts.

    Args:
        source: Folder, checkpoint or `org/name`.
        options: Further arguments of `vatt.FeatureExtractor.from_pretrained`, such as `device`.
    """
    from vatt import FeatureExtractor

    return FeatureExtractor.from_pretrained(source, **options)


def preset(name: str = "ma-medium") -> "VATT":
    """Model of published sizes with random weights, in training mode.

    Args:
        name: Name of a preset, such as `ma-medium` or `mbs`.
    """
    from vatt import VATT
    from vatt import preset as config

    return VATT(config(name))
