"""Import of the optional packages of vatt's extras."""

from importlib import import_module
from types import ModuleType

from vatt.errors import UserError


def load_extra(name: str, refusal: UserError) -> ModuleType:
    """Imports a package, or a module of it.

    Args:
        name: Dotted name.
        refusal: Error if the package is not installed; says what needs it and how to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise refusal from error
