"""Readable errors of the configuration parser."""

import re
from collections.abc import Sequence
from importlib import import_module

from vatt.errors import nearest


def explain(message: str, known_keys: Sequence[str] = ()) -> str:
    """The part of jsonargparse's message that helps the user.

    Args:
        message: Message of several lines, most of which list possible types of a value.
        known_keys: Dotted keys of the parser.
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
    where = keys[-1] if keys else ""
    outer = re.search(r'Parser key "([^"]+)"', message)
    if outer and where != outer[1]:  # an argument of a class, as it is written in YAML
        where = f"{outer[1]}.init_args.{where}"
    wrong = re.findall(r"Expected an? (.+?)\. Got value: (.*)", message)
    if wrong:
        expected, value = wrong[0]
        return f"{where} must be {_plain_type(expected)}, got {value.strip()!r}"
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        return f"{where or 'the configuration'} lacks {missing[1]}: give a value"
    errors = re.findall(r"^ *- (?!Expected a|Problem with given)(.+)", message, flags=re.MULTILINE)
    inner = re.search(r"given class_path '([^']+)':\n\s*(?!\s|Parser key)(.+)", message)
    if inner:
        return f"{keys[0]}: cannot use {inner[1]}: {inner[2].strip()}"
    if errors:
        return errors[0]
    given = re.search(r"^ *Given value: (.+)", message, flags=re.MULTILINE)
    choices = re.findall(r"Subtypes: \[(.+)\]", message)  # the innermost last, its value first
    if given and choices:
        kinds = re.sub(r"<class '(.+?)'>|typing\.Literal\[(.+?)\]", r"\1\2", choices[-1])
        return f"{where} must be one of {kinds.replace('NoneType', 'null')}, got {given[1]!r}"
    return " ".join(line.strip() for line in message.splitlines()[:3])


def _unknown_key(key: str, message: str, known_keys: Sequence[str]) -> str:
    """Message about an unknown key, with the nearest known one."""
    class_path = re.search(r"Problem with given class_path '([^']+)'", message)
    if class_path:
        prefix = re.findall(r'Parser key "([^"]+)"', message)[0] + ".init_args."
        group = re.search(r"Group '([^']+)' does not accept", message)
        key = f"{prefix}{group[1] + '.' if group else ''}{key}"
        # jsonargparse assumes the base class where init_args come without a class_path
        if class_path[1] in ("lightning.LightningModule", "lightning.LightningDataModule"):
            return (
                f"{key} is set, but nothing said which class that is for: give a whole "
                "configuration before this one, as in --config demo --config overlay"
            )
        known_keys = [prefix + name for name in _class_keys(class_path[1])]
    return f"unknown key {key}.{nearest(key, known_keys)}"


def _class_keys(class_path: str) -> list[str]:
    """Dotted names of the settings of a class."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
    return list(parser.get_defaults().keys())


def _plain_type(expected: str) -> str:
    """`<class 'int'>` → `int`; `typing.Literal['a', 'b']` → `one of 'a', 'b'`."""
    literal = re.fullmatch(r"(?:typing\.)?Literal\[(.+)\]", expected)
    named = re.sub(r"<class '(.+)'>", r"\1", expected)
    return f"one of {literal[1]}" if literal else f"of type {named}"
