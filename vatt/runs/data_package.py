"""The package `datamodules`, whose name another project may use, too."""

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import vatt
from vatt.errors import UserError


def refuse_other_package(message: str) -> None:
    """Explains a class that the parser did not find: Python may have found another `datamodules`.

    Args:
        message: Error of the configuration parser.

    Raises:
        UserError: the message names a class of `datamodules` that the imported package lacks, and
            that package is not the one beside `vatt`.
    """
    ours = Path(vatt.__file__).resolve().parent.with_name("datamodules")
    found = find_spec("datamodules")
    places = [Path(place) for place in (found and found.submodule_search_locations) or []]
    if not places or places[0].resolve() == ours:
        return
    for class_path in re.findall(r"\bdatamodules(?:\.\w+)+", message):
        if not _exists(class_path):
            raise UserError(
                f"{class_path} is not in {places[0]}, a package of another project that Python "
                "imports as datamodules in place of the one of vatt: start vatt in another folder, "
                "take that package off PYTHONPATH, or rename it",
                2,
            )


def _exists(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return hasattr(import_module(module), name)
    except ImportError:
        return False
