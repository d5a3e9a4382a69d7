"""Import of transformers and the packages beside it, which are extras, and of models with them."""

import contextlib
import io
import os
import pickle
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from vatt.encoders.torchvision_loading import load_torchvision
from vatt.errors import CheckpointError, UserError
from vatt.network.torchaudio_loading import load_torchaudio
from vatt.system.extras import load_extra

CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def load_transformers() -> ModuleType:
    """Imports transformers, with torchaudio and torchvision beside torch for CPU too.

    Its log is reduced to errors and it shows no progress bars, unless the program has imported it
    before or the variable `TRANSFORMERS_VERBOSITY` is set.

    Raises:
        UserError: transformers is not installed, or a package that it imports does not load.
    """
    first = "transformers" not in sys.modules
    prepare_imports()
    need = UserError('models of others need transformers: pip install "vatt[hf]"')
    transformers = load_extra("transformers", need)
    if first and "TRANSFORMERS_VERBOSITY" not in os.environ:
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    return transformers


def load_sentence_transformers() -> ModuleType:
    """Imports sentence-transformers; see `load_transformers`.

    Raises:
        UserError: it is not installed, or a package that it imports does not load.
    """
    load_transformers()
    need = 'models of this kind need sentence-transformers: pip install "vatt[hf]"'
    with without_prints():  # its trainer says that W&B is offline
        return load_extra("sentence_transformers", UserError(need))


def load_timm() -> ModuleType:
    """Imports timm, which has the picture tower of PE-AV.

    Raises:
        UserError: timm or torchvision is not installed or does not load.
    """
    need = UserError(
        'PE-AV needs timm and torchvision: pip install "vatt[pe-av]", or beside torch for CPU: '
        f'pip install "vatt[pe-av]" --extra-index-url {CPU_INDEX}'
    )
    if load_torchvision() is None:
        raise need
    return load_extra("timm", need)


def prepare_imports() -> None:
    """Imports what transformers would import by itself and stop at; see `load_torchvision`."""
    if find_spec("torchaudio") is not None:
        load_torchaudio()
    load_torchvision()


def without_prints() -> contextlib.AbstractContextManager[object]:
    """Context in which nothing reaches standard output, where results of commands belong.

    transformers prints faults of its own documentation when some classes are imported or built.
    """
    return contextlib.redirect_stdout(io.StringIO())


def load_pretrained(model_class: Any, source: str, **options: Any) -> Any:
    """Model of a class of transformers, in float32 and evaluation mode, with all of its weights.

    Args:
        model_class: Class with a method `from_pretrained`, such as `transformers.AutoModel`.
        source: Folder or id of a model on the hub.
        options: Further arguments of `from_pretrained`, such as `revision`.

    Raises:
        CheckpointError: there is no such model, or weights are missing or of another shape.
    """
    import torch

    try:
        with without_prints():
            model, report = model_class.from_pretrained(
                source,
                dtype=torch.float32,  # by itself it takes the precision of the file
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # it would name none; we do
                **options,
            )
    except load_errors() as error:
        raise CheckpointError(load_fault(source, error)) from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights of a {type(model).__name__}, such as "
            f"{missing[0]}: it is another kind of model, or an incomplete copy"
        )
    if wrong := sorted(report["mismatched_keys"]):
        name, stored, expected = wrong[0]
        raise CheckpointError(
            f"{source} has {len(wrong)} weights of another shape than its configuration says, such "
            f"as {name}, {[*stored]} instead of {[*expected]}: copy both from where they were made"
        )
    return model.eval()


def load_errors() -> tuple[type[Exception], ...]:
    """Errors of transformers and sentence-transformers about missing, damaged or strange files."""
    from safetensors import SafetensorError

    files = (OSError, SafetensorError, pickle.UnpicklingError, EOFError)
    return (*files, ValueError, RuntimeError, TypeError, LookupError, ImportError)


def load_fault(source: str, error: Exception) -> str:
    """Message about one of the `load_errors`.

    Args:
        source: Folder or id of the model.
        error: The error.
    """
    from safetensors import SafetensorError

    if isinstance(error, pickle.UnpicklingError):
        return (
            f"{source} has pickled weights that hold more than weights, or are damaged: get a copy "
            "with safetensors"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, SafetensorError):
        return f"{source} has damaged or incomplete weights ({reason}): copy them anew"
    return f"{source} cannot be loaded: {reason}"
