"""Loading of torchvision, even if its compiled operations do not fit the installed torch."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from vatt.errors import UserError

# they describe compiled operations to torch, and stop where torch has none of these
DESCRIPTIONS = ("_autograd_registrations", "_meta_registrations")


def load_torchvision() -> ModuleType | None:
    """Imports torchvision, without its compiled operations if they do not load.

    Each build of torchvision is for one build of torch. The usual one is for CUDA and does not load
    beside torch for CPU. The compiled operations are those of object detectors; pictures are
    resized by torch.

    Returns:
        The package, or None if it is not installed.

    Raises:
        UserError: torchvision does not load, even without that part.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        return import_module("torchvision")
    except (ImportError, OSError, RuntimeError):
        _forget_torchvision()
    for name in DESCRIPTIONS:
        stand_in = ModuleType(f"torchvision.{name}", "Stands in for a part that does not load.")
        sys.modules[stand_in.__name__] = stand_in
    try:
        return import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        _forget_torchvision()
        raise UserError(
            f"torchvision does not load ({error}), not even without its compiled part: install the "
            "version that belongs to your torch, or uninstall it"
        ) from error


def _forget_torchvision() -> None:
    """Removes what a failed import left in `sys.modules`."""
    for name in set(sys.modules):
        if name.partition(".")[0] == "torchvision":
            del sys.modules[name]
