"""Configuration files by name, and one sentence about what is wrong in one."""

import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

from vatt.errors import UserError

CONFIG_OPTIONS = ("-c", "--config")
SWEEP = "sweep"  # stands beside the configurations, but is one of W&B's
# what jsonargparse assumes where init_args come without a class_path
BASE_CLASSES = ("lightning.LightningModule", "lightning.LightningDataModule")


def shipped_configs() -> dict[str, Path]:
    """The configurations that come with vatt, by name."""
    folder = Path(__file__).parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.stem != SWEEP}


def find_config(name: str) -> Path:
    """A configuration file, given by its path or by the name of a shipped one.

    Raises:
        UserError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_configs()
    if name in shipped:
        return shipped[name]
    raise UserError(
        f"no configuration {name!r}: there is no such file, and shipped are "
        f"{', '.join(shipped)}.{_guess(name, shipped)}",
        2,
    )


def with_config_paths(args: Sequence[str]) -> list[str]:
    """The arguments with the names of shipped configurations replaced by their paths."""
    result = list(args)
    for i, argument in enumerate(result):
        option, separator, value = argument.partition("=")
        if option == "--config" and separator:
            result[i] = f"{option}={find_config(value)}"
        elif argument in CONFIG_OPTIONS and i + 1 < len(result):
            result[i + 1] = str(find_config(result[i + 1]))
    return result


def config_paths(args: Sequence[str]) -> list[Path]:
    """The configuration files that arguments name."""
    joined = [a.partition("=")[2] for a in args if a.startswith("--config=")]
    apart = [b for a, b in pairwise(args) if a in CONFIG_OPTIONS]
    return [Path(name) for name in joined + apart]


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a configuration file holds.

    Raises:
        UserError: it is not YAML, or holds something else.
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


def given_keys(args: Sequence[str]) -> Iterator[str]:
    """Dotted keys that the user sets, on the command line and in configuration files."""
    for argument in args:
        if argument.startswith("--"):
            yield argument[2:].partition("=")[0]
    for path in config_paths(args):
        yield from _nested_keys(read_settings(path))


def given_values(args: Sequence[str]) -> dict[str, Any]:
    """Values that the user sets, by dotted key: of configuration files, then of options."""
    import yaml

    values: dict[str, Any] = {}
    for path in config_paths(args):
        values |= _nested_values(read_settings(path))
    for i, argument in enumerate(args):
        key, separator, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and key != "config" and (separator or i + 1 < len(args)):
            with contextlib.suppress(yaml.YAMLError):
                values |= _nested_values({key: yaml.safe_load(value if separator else args[i + 1])})
    return values


def _nested_values(content: Any, prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in content.items() if isinstance(content, dict) else ():
        values[f"{prefix}{key}"] = value
        values |= _nested_values(value, f"{prefix}{key}.")
    return values


def _nested_keys(content: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield f"{prefix}{key}"
            yield from _nested_keys(value, f"{prefix}{key}.")


def explain(message: str, known_keys: Sequence[str] = ()) -> str:
    """The one thing in jsonargparse's message that the user can act on.

    Args:
        message: Several lines, of which most list what else a value could have been.
        known_keys: Dotted keys that the parser has.
    """
    found = re.search(
        r"(?:does not accept option|Option) '([^']+)'|unrecognized arguments: --([^\s=]+)", message
    )
    if found:
        return _unknown_key(found[1] or found[2], message, known_keys)
    if "No supported gpu backend" in message or "accelerator can not run" in message:
        return (
            "trainer.accelerator asks for a GPU, but torch finds none here (see `vatt doctor`): "
            "set it to cpu, or install the CUDA build of torch"
        )
    if "machine only has" in message:  # … or asks for GPUs by number
        return f"trainer.devices: {' '.join(message.split())}"
    keys = re.findall(r'(?:Parser key|Validation failed for key) "([^"]+)"', message)
    where = _full_key(keys[-1], message) if keys else ""
    wrong = re.findall(r"Expected an? (.+?)\. Got value: (.*)", message)
    if wrong:
        expected, value = wrong[0]
        return f"{where} must be {_plain_type(expected)}, got {value.strip()!r}"
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        return f"{where or 'the configuration'} lacks {missing[1]}: give a value"
    errors = re.findall(r"^ *- (?!Expected a|Problem with given)(.+)", message, flags=re.MULTILINE)
    inner = re.search(r"Problem with given class_path '([^']+)':\n\s*(.+)", message)
    if inner:
        return f"{keys[0]}: cannot use {inner[1]}: {inner[2].strip()}"
    if errors:
        return errors[0]
    return " ".join(line.strip() for line in message.splitlines()[:3])


def _unknown_key(key: str, message: str, known_keys: Sequence[str]) -> str:
    """Names a key that nothing accepts, and the nearest that something does."""
    class_path = re.search(r"Problem with given class_path '([^']+)'", message)
    if class_path:
        prefix = re.findall(r'Parser key "([^"]+)"', message)[0] + ".init_args."
        group = re.search(r"Group '([^']+)' does not accept", message)
        key = f"{prefix}{group[1] + '.' if group else ''}{key}"
        if class_path[1] in BASE_CLASSES:
            return (
                f"{key} is set, but nothing said which class that is for: give a whole "
                "configuration before this one, as in --config demo --config overlay"
            )
        known_keys = [prefix + name for name in _class_keys(class_path[1])]
    return f"unknown key {key}.{_guess(key, known_keys)}"


def _full_key(key: str, message: str) -> str:
    """A key with the class argument that it is in, as it is written in YAML."""
    outer = re.findall(r'Parser key "([^"]+)"', message)[0]
    return key if outer == key else f"{outer}.init_args.{key}"


def _class_keys(class_path: str) -> list[str]:
    """Dotted names of what a class can be configured with."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
    return list(parser.get_defaults().keys())


def _guess(key: str, known: Sequence[str] | dict[str, Any]) -> str:
    """' Did you mean …?' by the whole name, else by its last part; empty if nothing is near."""
    leaves: dict[str, str] = {}
    for name in known:
        leaves.setdefault(name.rpartition(".")[2], name)
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.85)
    if not near:
        by_leaf = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.6)
        near = [leaves[leaf] for leaf in by_leaf]
    near = near or difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _plain_type(expected: str) -> str:
    """`<class 'int'>` → `int`; `typing.Literal['a', 'b']` → `one of 'a', 'b'`."""
    literal = re.fullmatch(r"(?:typing\.)?Literal\[(.+)\]", expected)
    if literal:
        return f"one of {literal[1]}"
    named = re.fullmatch(r"<class '(.+)'>", expected)
    return f"of type {named[1] if named else expected}"
