"""Loading of torchaudio, even if its compiled extension does not fit the installed torch."""

import sys
from importlib import import_module
from types import ModuleType

from vatt.errors import UserError


def load_torchaudio() -> ModuleType:
    """Imports torchaudio, without its compiled part if that does not load.

    The compiled part is built for one version of torch and CUDA; with torch for CPU its libraries
    are missing. Spectrograms are written in Python and do not need it.

    Raises:
        UserError: torchaudio is not installed, or does not load even without that part.
    """
    try:
        return import_module("torchaudio")
    except (ImportError, OSError, RuntimeError):
        _forget_torchaudio()
    extension = ModuleType("torchaudio._extension", "Stands in for a part that does not load.")
    # what torchaudio's other modules import from it
    extension.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False, fail_if_no_align=lambda function: function
    )
    sys.modules[extension.__name__] = extension
    try:
        return import_module("torchaudio")
    except (ImportError, OSError, RuntimeError) as error:
        _forget_torchaudio()
        raise UserError(
            f"torchaudio does not load ({error}), not even without its compiled part: "
            "pip install --force-reinstall --no-deps 'torchaudio>=2.11'"
        ) from error


def _forget_torchaudio() -> None:
    """Removes what a failed import left in `sys.modules`."""
    for name in set(sys.modules):
        if name.startswith("torchaudio."):  # Python itself removes torchaudio
            del sys.modules[name]
