"""Shipped configuration files, and reading of settings from YAML."""

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vatt.errors import UserError, nearest

CONFIG_OPTIONS = ("-c", "--config")
SWEEP = "sweep"  # stands beside the configurations, but is one of W&B's


def shipped_configs() -> dict[str, Path]:
    """Paths of the shipped configurations, by name."""
    folder = Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != SWEEP}


def find_config(name: str) -> Path:
    """Path of a configuration, given by path or by the name of a shipped one.

    Raises:
        UserError: there is neither such a file nor such a name.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"no configuration {name!r}: there is no such file, and shipped are "
        f"{', '.join(shipped)}.{nearest(name, shipped)}",
        2,
    )


def with_config_paths(args: Sequence[str]) -> list[str]:
    """Replaces names of shipped configurations in arguments by their paths."""
    result = list(args)
    for i, argument in enumerate(result):
        option, separator, value = argument.partition("=")
        if option == "--config" and separator:
            result[i] = f"{option}={find_config(value)}"
        elif argument in CONFIG_OPTIONS and i + 1 < len(result):
            result[i + 1] = str(find_config(result[i + 1]))
    return result


def config_paths(args: Sequence[str]) -> list[Path]:
    """Configuration files that the arguments name."""
    joined = [a.partition("=")[2] for a in args if a.startswith("--config=")]
    apart = [b for a, b in pairwise(args) if a in CONFIG_OPTIONS]
    return [Path(name) for name in joined + apart]


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the settings in a configuration file.

    Raises:
        UserError: the file is not YAML, or not a mapping of settings.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # RecursionError: nested too deep
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not YAML ({reason}): correct it", 2) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings: give a configuration as YAML", 2)
    return settings


def given_values(args: Sequence[str]) -> dict[str, Any]:
    """Values that the user sets, by dotted key; options override configuration files."""
    import yaml

    values: dict[str, Any] = {}
    for path in config_paths(args):
        values |= _nested_values(read_settings(path))
    for argument, following in zip(args, [*args, ""][1:], strict=True):
        key, separator, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and key != "config":
            values[key] = value = value if separator else following
            with contextlib.suppress(yaml.YAMLError):
                values |= _nested_values({key: yaml.safe_load(value)})
    return values


def recipe_and_own(args: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Values that shipped configurations set, and those that the user sets, by dotted key.

    Args:
        args: Arguments with paths of configurations (`with_config_paths`).
    """
    shipped = {path.resolve() for path in shipped_configs().values()}
    parts: tuple[list[str], list[str]] = ([], [])
    for first, argument in zip(["", *args], args, strict=False):
        named = argument if first in CONFIG_OPTIONS else argument.partition("--config=")[2]
        if argument not in CONFIG_OPTIONS:
            part = parts[Path(named).resolve() not in shipped]
            part += ["--config", named] if named else [argument]
    return given_values(parts[0]), given_values(parts[1])


def _nested_values(content: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        values[f"{prefix}{key}"] = value
        values |= _nested_values(value, f"{prefix}{key}.")
    return values
