"""`VattModel`: our network as a model of transformers."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from vatt.models.checkpoint import TOKENIZER
from vatt.models.hf_config import VattConfig
from vatt.models.preprocess_json import write_preprocess_json
from vatt.models.pretrained import VATT
from vatt.network.heads import all_spaces
from vatt.network.layers import init_weights


@dataclass
class VattOutput(ModelOutput):
    """Output of `VattModel`; fields of modalities and spaces that are missing are None.

    Args:
        video_va: Embeddings in the video-audio space, not normalised, float32 `[B, d_va]`.
        video_vt: Embeddings in the video-text space, `[B, d_vt]`.
        video_joint: Embeddings in the joint space, `[B, d_joint]`.
        audio_va: As `video_va`.
        audio_vt: As `video_vt`; audio enters it through the last step of the video head.
        audio_joint: As `video_joint`.
        text_vt: As `video_vt`.
        text_joint: As `video_joint`.
        logits: Logits of the classifier, float32 `[B, num_classes]`.
        video_features: Features of the backbone, `[B, D]`.
        audio_features: Features of the backbone, `[B, D]`.
        text_features: Features of the backbone, `[B, D]`.
    """

    video_va: Tensor | None = None
    video_vt: Tensor | None = None
    video_joint: Tensor | None = None
    audio_va: Tensor | None = None
    audio_vt: Tensor | None = None
    audio_joint: Tensor | None = None
    text_vt: Tensor | None = None
    text_joint: Tensor | None = None
    logits: Tensor | None = None
    video_features: Tensor | None = None
    audio_features: Tensor | None = None
    text_features: Tensor | None = None


class VattModel(PreTrainedModel):
    """A VATT for transformers; `AutoModel.from_pretrained` loads one after `import vatt.hf`.

    `save_pretrained` writes a model folder that vatt reads, too.

    Args:
        config: Configuration.

    Attributes:
        vatt: The network.

    Example:
        >>> model = VattModel(VattConfig(**vatt.preset("tiny").to_dict()))
    """

    config_class = VattConfig
    base_model_prefix = "vatt"  # names in model.safetensors are those of the network, without it
    main_input_name = "pixel_values_videos"
    input_modalities = ("video", "audio", "text")

    def __init__(self, config: VattConfig) -> None:
        super().__init__(config)
        self.vatt = VATT(config.settings)
        self.post_init()

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str], *inputs: Any, **options: Any) -> Any:
        """Loads a model in evaluation mode, or what transformers' `output_loading_info` asks for.

        Weights that the file lacks are drawn, and reported by transformers.

        Args:
            source: Model folder, or `org/name` on the Hugging Face Hub.
            inputs: Passed on to the constructor.
            options: Arguments of transformers' `from_pretrained`.
        """
        loaded = super().from_pretrained(source, *inputs, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        with torch.device("meta"):
            built = VATT(model.config.settings)
        for weight, as_built in zip(model.vatt.parameters(), built.parameters(), strict=True):
            if not as_built.requires_grad:  # fixed word vectors; transformers trains all weights
                weight.requires_grad_(False)
        return loaded

    def init_weights(self) -> None:
        """Keeps the weights that the network drew when it was built.

        transformers would draw them again, but only those of modules with parameters of their own.
        """

    def _init_weights(self, module: nn.Module) -> None:
        """Draws the weights of a module that the loaded file lacks."""
        init_weights(module)

    def forward(
        self,
        pixel_values_videos: Tensor | None = None,
        input_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encodes clips, sounds and captions, as many of each as are given.

        Args:
            pixel_values_videos: Clips uint8 in 0…255 or float in [-1, 1], `[B, T, H, W, 3]`.
            input_values: Waveforms float in [-1, 1], `[B, S]`.
            input_ids: Captions int64 `[B, J]`, 0 = padding.
            return_dict: False: a tuple of the fields that are not None.

        Returns:
            `VattOutput`.

        Raises:
            ValueError: nothing is given, or an input is not valid.
            UserError: the model lacks the modality.
        """
        inputs = {"video": pixel_values_videos, "audio": input_values, "text": input_ids}
        if all(raw is None for raw in inputs.values()):
            raise ValueError("give at least one of pixel_values_videos, input_values and input_ids")
        values: dict[str, Tensor] = {}
        for modality, raw in inputs.items():
            if raw is not None:
                values |= self._encode(modality, raw)
        output = VattOutput(**values)
        as_fields = self.config.return_dict if return_dict is None else return_dict
        return output if as_fields else output.to_tuple()

    def _encode(self, modality: str, raw: Tensor) -> dict[str, Tensor]:
        """Fields of the output for one modality."""
        encode = getattr(self.vatt, f"encode_{modality}")
        self.vatt.config.check_modality(modality)
        features = encode(raw)
        values = {f"{modality}_features": features}
        if self.vatt.head is not None:
            spaces = all_spaces(self.vatt.head, modality, features)
            values |= {f"{modality}_{space}": value for space, value in spaces.items()}
        classifier = self.vatt.classifier
        if classifier is not None and classifier.config.modality == modality:
            values["logits"] = classifier(features)
        return values

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Writes a model folder, which vatt and transformers read.

        Args:
            save_directory: Folder to write, created if missing.
            options: Arguments of transformers' `save_pretrained`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        has_tokenizer = (folder / TOKENIZER).exists()
        write_preprocess_json(folder, self.config.settings, has_tokenizer=has_tokenizer)
        if options.get("state_dict") is None:
            options["state_dict"] = self.vatt.state_dict()
        super().save_pretrained(folder, **options)
