"""Argument parsers made from functions: name, type and help of an option are defined once.

A positional parameter of a command's function becomes an argument, a keyword-only one an option.
A parameter whose type is a dataclass becomes a group of options, one per field. Defaults come from
the signature, help from the docstring. `Annotated` adds flags ("-o"), a word for the value
("FOLDER"), "*" for a list that may be empty, "+" for an option that may be repeated, and checks
such as `vatt.config.checks.positive`.
"""

import argparse
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import docstring_parser

from vatt.config.shipped import read_settings
from vatt.errors import UserError, nearest

Function = Callable[..., int]
Command = Function | Mapping[str, Function]
REQUIRED = inspect.Parameter.empty


def run(name: str, command: Command, argv: Sequence[str]) -> int:
    """Calls the function of a command with the values on its command line.

    Args:
        name: Words that the user typed, such as `vatt shards`.
        command: Its function, or those of its subcommands by name.
        argv: Arguments after the name. A command with a parameter `argv` receives all of them
            unparsed; a parameter `rest` receives those that match no option of the command.

    Returns:
        Exit code.

    Raises:
        UserError: the options file names an unknown option, or an option lacks one it needs.
        SystemExit: after `--help` and wrong arguments.
    """
    if isinstance(command, Mapping) and argv and argv[0] in command:
        return run(f"{name} {argv[0]}", command[argv[0]], argv[1:])
    parser = argparse.ArgumentParser(name)
    add_command(parser, command)
    if isinstance(command, Mapping):
        parser.parse_args(argv)  # exits: there is no such subcommand
        return 2
    options = list(_options(command))
    # options may stand among the arguments; argparse allows that only on request
    mixed = any(option.keywords.get("nargs") == "*" for option in options)
    parse = parser.parse_known_intermixed_args if mixed else parser.parse_known_args
    given, rest = parse([*_options_file(name, options, argv), *argv])
    special: dict[str, Any] = {"argv": argv, "rest": rest}
    if rest and "rest" not in inspect.signature(command).parameters:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return command(**_parameters(command, options, vars(given), special))


def add_command(parser: argparse.ArgumentParser, command: Command) -> None:
    """Adds the arguments of a function, or subcommands, to a parser."""
    if isinstance(command, Mapping):
        subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
        for name, function in command.items():
            summary = (inspect.getdoc(function) or "").partition("\n")[0].removesuffix(".")
            add_command(subcommands.add_parser(name, help=summary), function)
        return
    parser.description = docstring_parser.parse(command.__doc__ or "").description
    groups: dict[str, Any] = {"": parser}
    for option in _options(command):
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(*option.names, **option.keywords)
    of_file = "YAML file that sets options by name; the command line overrides it"
    parser.add_argument("--options", metavar="FILE", help=of_file)


@dataclasses.dataclass(frozen=True)
class _Option:
    """Arguments of `add_argument` for a parameter or a field of a dataclass."""

    dest: str  # `parameter` or `parameter.field`
    names: tuple[str, ...]
    keywords: dict[str, Any]
    required: bool
    group: str = ""


def _options(function: Function) -> Iterator[_Option]:
    hints, texts = get_type_hints(function, include_extras=True), _texts(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("argv", "rest"):
            continue
        group = _dataclass(hints[name])
        if group is None:
            is_option = parameter.kind is parameter.KEYWORD_ONLY
            yield _option(name, hints[name], parameter.default, texts[name], is_option)
            continue
        fields, texts_of_fields = get_type_hints(group, include_extras=True), _texts(group)
        for field in dataclasses.fields(group):
            if not field.metadata.get("option", True):
                continue
            default = REQUIRED if field.default is dataclasses.MISSING else field.default
            option = _option(field.name, fields[field.name], default, texts_of_fields[field.name])
            keywords = {**option.keywords, "required": False, "dest": f"{name}.{field.name}"}
            yield dataclasses.replace(
                option, dest=keywords["dest"], keywords=keywords, group=texts[name].rstrip(".")
            )


def _option(name: str, hint: Any, default: Any, text: str, is_option: bool = True) -> _Option:
    """Describes one argument; the help names its default, and the function applies it."""
    notes: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
    kinds, many = _members(hint), False
    if get_origin(kinds[0]) is tuple:
        kinds, many = _members(get_args(kinds[0])[0]), True
    words = [note for note in notes if isinstance(note, str) and note[0] not in "-*+"]
    flags = [note for note in notes if isinstance(note, str) and note[0] == "-"]
    if not any(flag.startswith("--") or flag == f"-{name}" for flag in flags):
        flags.append(f"--{name.replace('_', '-')}")
    text, _, of_none = text.removesuffix(".").partition(" None: ")
    if of_none:
        text = f"{text.removesuffix('.')} (default: {of_none})"
    elif default not in (REQUIRED, None, ()) and default is not False:
        text += f" (default: {' '.join(default) if isinstance(default, tuple) else default})"
    keywords: dict[str, Any] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if kinds[0] is bool:
        keywords["action"] = argparse.BooleanOptionalAction
    elif get_origin(kinds[0]) is Literal:
        choices = [choice for kind in kinds for choice in get_args(kind)]
        if default is not None and NoneType in get_args(hint):
            choices.append(None)  # `none` on the command line
        keywords["choices"] = choices
        keywords["metavar"] = f"{{{','.join(map(str, choices))}}}".replace("None", "none")
        keywords["type"] = lambda text: None if text == "none" and None in choices else text
    else:
        unit = "N" if kinds[0] is int else name.rpartition("_")[2].upper()
        keywords["metavar"] = words[0] if words else unit if is_option else name
        keywords["type"] = _value_of(kinds[0], [note for note in notes if callable(note)])
    if "*" in notes:
        keywords |= {"nargs": "*", "default": ()}
    elif many:
        keywords |= {"nargs": "+"} | ({"action": "extend"} if "+" in notes else {})
    elif not is_option and default is not REQUIRED:
        keywords |= {"nargs": "?", "default": default}
    if not is_option:
        return _Option(name, (name,), keywords, required=False)
    keywords |= {"dest": name, "required": default is REQUIRED}
    return _Option(name, tuple(flags), keywords, required=default is REQUIRED)


def _members(hint: Any) -> list[Any]:
    """Types of a union without None, or the one type."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [kind for kind in kinds if kind is not NoneType]


def _dataclass(hint: Any) -> type | None:
    kind = _members(hint)[0]
    return kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None


def _texts(documented: Any) -> dict[str, str]:
    parameters = docstring_parser.parse(documented.__doc__ or "").params
    return {text.arg_name: " ".join((text.description or "").split()) for text in parameters}


def _value_of(kind: Callable[[str], Any], checks: Sequence[Callable[[Any], str | None]]) -> Any:
    def value_of(text: str) -> Any:
        value = kind(text)
        for check in checks:
            if fault := check(value):
                raise argparse.ArgumentTypeError(fault)
        return value

    value_of.__name__ = getattr(kind, "__name__", "")  # named in argparse's "invalid int value"
    return value_of


def _options_file(name: str, options: Sequence[_Option], argv: Sequence[str]) -> list[str]:
    """Options from the YAML file that the arguments name, as arguments."""
    finder = argparse.ArgumentParser(name, add_help=False)
    finder.add_argument("--options", type=Path)
    path = finder.parse_known_args(argv)[0].options
    if path is None:
        return []
    known = [option.names[-1].removeprefix("--") for option in options if "dest" in option.keywords]
    arguments: list[str] = []
    for key, value in read_settings(path).items():
        key = str(key).replace("_", "-")
        if key not in known:
            raise UserError(f"{path}: `{name}` has no option {key}.{nearest(key, known)}", 2)
        if any(argument.partition("=")[0] == f"--{key}" for argument in argv):
            continue  # a repeated option would add to it
        if isinstance(value, bool):
            arguments.append(f"--{key}" if value else f"--no-{key}")
        elif isinstance(value, list):
            arguments += [f"--{key}", *map(str, value)]
        elif value is not None:
            arguments.append(f"--{key}={value}")
    return [*arguments, f"--options={path}"]  # ends a list of values


def _parameters(
    function: Function,
    options: Sequence[_Option],
    values: dict[str, Any],
    special: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of a function: given values; those of a dataclass become one object."""
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    hints, arguments = get_type_hints(function), {}
    for name, parameter in inspect.signature(function).parameters.items():
        group = _dataclass(hints[name])
        if name in special:
            arguments[name] = special[name]
        elif group is None and name in given:
            arguments[name] = given[name]
        elif group is not None:
            of_group = [option for option in options if option.dest.startswith(f"{name}.")]
            used = [option for option in of_group if option.dest in given]
            if not used and parameter.default is not REQUIRED:
                continue
            for option in of_group:
                if option.required and option.dest not in given:
                    needed = f"{option.names[-1]} {option.keywords['metavar']}"
                    raise UserError(f"{used[0].names[-1]} needs {needed}")
            fields = {option.dest.rpartition(".")[2]: given[option.dest] for option in used}
            arguments[name] = group(**fields)
    return arguments
