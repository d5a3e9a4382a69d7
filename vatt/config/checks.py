"""Checks of options and settings; dataclasses from plain containers.

pydantic 2.14 would replace about 50 of these lines, but not the `__post_init__` methods, which
compare fields. Its models take four times as long to import as all settings of vatt.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vatt.errors import UserError

# Of anything that a configuration counts, such as a width: 16.8 million. A mistyped or hostile size
# is refused by name before memory is taken; published sizes are below 70,000.
MAX_SIZE = 1 << 24


def positive(value: float) -> str | None:
    """Message for a number that is not above zero (NaN included), else None."""
    return None if value > 0 else f"must be positive, got {value}"


def share(value: float) -> str | None:
    """Message for a number outside [0, 1], else None."""
    return None if 0 <= value <= 1 else f"must be from 0 to 1, got {value:g}"


def at_least(least: int) -> Callable[[int], str | None]:
    """Check that returns a message for smaller numbers."""
    return lambda value: None if value >= least else f"must be at least {least}, got {value}"


def check_choices(config: Any, where: str) -> None:
    """Refuses values that the `Literal` of their field does not list."""
    hints = get_type_hints(type(config))
    for name, hint in hints.items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = ", ".join(map(repr, get_args(hint)))
            raise UserError(f"{where}.{name} must be one of {choices}, got {value!r}")


def check_sizes(where: str, sizes: tuple[int, ...] | None, num_axes: int) -> None:
    """Refuses a tuple of sizes of the wrong length or out of range; None is valid."""
    if sizes is None:
        return
    if len(sizes) != num_axes or min(sizes) < 1:
        raise UserError(f"{where} must be {num_axes} positive sizes, got {sizes}")
    for size in sizes:
        check_at_most(where, size)


def check_positive(config: Any, where: str, *names: str, most: int = MAX_SIZE) -> None:
    """Refuses sizes and rates that are not above zero, NaN included, or above `most`."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:  # NaN is not
            raise UserError(f"{where}.{name} must be positive, got {value}")
        check_at_most(f"{where}.{name}", value, most)


def check_at_most(where: str, value: float, most: int = MAX_SIZE) -> None:
    """Refuses a size above a limit."""
    if value > most:
        raise UserError(f"{where} must be at most {most:,}, got {value:,}")


def from_plain(cls: type, values: dict[str, Any], where: str) -> Any:
    """Creates a dataclass from nested dicts; refuses unknown keys and values of other types."""
    hints = get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise UserError(f"{where} has unknown keys {unknown}; known are {sorted(hints)}")
    arguments = {}
    for name, value in values.items():
        kinds = get_args(hints[name]) or (hints[name],)
        nested: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
        if nested is not None and isinstance(value, dict):
            value = from_plain(nested, value, f"{where}.{name}")
        arguments[name] = tuple(value) if isinstance(value, list) else value
        if not _fits(arguments[name], hints[name]):
            wanted = getattr(hints[name], "__name__", str(hints[name]))
            raise UserError(f"{where}.{name} must be {wanted}, got {value!r}")
    return cls(**arguments)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type of its field; JSON has only one type of number."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return True  # `check_choices` names them
    if get_origin(hint) is tuple:  # its length is the field's own business
        return isinstance(value, tuple) and all(_fits(one, kinds[0]) for one in value)
    if kinds:
        return any(_fits(value, kind) for kind in kinds)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, hint)
