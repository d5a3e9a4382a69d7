"""Argument parsers made from functions: name, type and help of an option are defined once.

A positional parameter of a command's function becomes an argument, a keyword-only one an option.
A parameter whose type is a dataclass becomes a group of options, one per field. Defaults come from
the signature, help from the docstring. `Annotated` adds flags ("-o"; an argument with flags can be
given by them, too), a word for the value ("FOLDER"), "*" for a list that may be empty, "+" for an
option that may be repeated, and checks such as `vatt.config.checks.positive`.
"""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import docstring_parser

from vatt.config.shipped import read_settings
from vatt.errors import UserError, nearest

Function = Callable[..., int]
Command = Function | Mapping[str, Function]
REQUIRED = inspect.Parameter.empty
HELP = ("-h", "--help")
SWITCH = argparse.BooleanOptionalAction
# Earlier names of options, which commands that have the later name still accept.
OLD_NAMES = {
    "--modalities": "--modality",
    "--formats": "--format",
    "--windows": "--num-windows",
}
BY_OPTION = ":option"  # marks the value of an argument that an option gives


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one sentence, with the nearest valid choice."""

    def error(self, message: str) -> NoReturn:
        message = message.replace(", None)", ", 'none')")
        wrong = re.search(r"invalid choice: '?(.+?)'? \(choose from (.+)\)", message)
        hint = nearest(wrong[1], re.findall(r"[\w.-]+", wrong[2])) if wrong else ""
        raise UserError(f"{message}.{hint} See `{self.prog} --help`.", 2)


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
        UserError: wrong arguments, or an unknown option in the options file.
        SystemExit: after `--help`.
    """
    if isinstance(command, Mapping) and not set(argv[:1]) & {*HELP}:
        if not argv or argv[0] not in command:
            wrong = f"has no command {argv[0]!r}" if argv else "needs a command"
            hint = nearest(argv[0], command) if argv else ""
            raise UserError(f"`{name}` {wrong}.{hint} It has {', '.join(command)}.", 2)
        return run(f"{name} {argv[0]}", command[argv[0]], argv[1:])
    parser = _Parser(name)
    add_command(parser, command)
    if isinstance(command, Mapping):
        parser.parse_args(argv)  # exits after --help
        return 0
    options = list(_options(command))
    known, takes_rest = _known_names(options), "rest" in inspect.signature(command).parameters
    argv = _with_new_names(known, argv)
    if not takes_rest:
        _check_names(name, known, argv)
    # options may stand among the arguments, which argparse allows only on request
    given, rest = parser.parse_known_intermixed_args([*_options_file(name, options, argv), *argv])
    values, left = _share_out(parser, options, vars(given), [] if takes_rest else rest)
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return command(**_parameters(command, options, values, {"argv": argv, "rest": rest}))


def _known_names(options: Sequence["_Option"]) -> list[str]:
    """Names that may stand on a command line, such as `-o` and `--no-strict`."""
    names = [name for option in options for name in option.names if name.startswith("-")]
    switches = [o.names[-1] for o in options if o.keywords.get("action") is SWITCH]
    return [*HELP, "--options", *names, *(f"--no-{name.removeprefix('--')}" for name in switches)]


def _with_new_names(known: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Arguments in which earlier names of options are replaced."""
    renamed = {a: b for a, b in OLD_NAMES.items() if a not in known and b in known}
    parts = [one.partition("=") for one in argv]
    return [f"{renamed.get(name, name)}{equals}{value}" for name, equals, value in parts]


def _check_names(prog: str, known: Sequence[str], argv: Sequence[str]) -> None:
    """Refuses unknown options; argparse would report missing ones first."""
    for argument in argv:
        if argument == "--":  # arguments follow
            return
        name = argument.partition("=")[0]
        if name.startswith("--") and not any(one.startswith(name) for one in known):
            hint = nearest(name, known)
            raise UserError(f"`{prog}` has no option {name}.{hint} See `{prog} --help`.", 2)


def _share_out(
    parser: argparse.ArgumentParser,
    options: Sequence["_Option"],
    given: Mapping[str, Any],
    rest: Sequence[str],
) -> tuple[dict[str, Any], list[str]]:
    """Gives the words of a command line to the arguments that no option gives, in their order.

    Args:
        parser: Parser, which refuses missing arguments.
        options: Arguments and options of the command.
        given: Values by destination.
        rest: Further words.

    Returns:
        Values by destination, and the words that are left.
    """
    arguments = [option for option in options if not option.names[0].startswith("-")]
    listed = [given.get(one.dest, ()) for one in arguments]
    words = [*(word for part in listed for word in ([part] if isinstance(part, str) else part))]
    words += rest
    others = given.keys() - {one.dest for one in arguments}
    values = {name.removesuffix(BY_OPTION): given[name] for name in others}
    open_ones = [one for one in arguments if f"{one.dest}{BY_OPTION}" not in given]
    for place, argument in enumerate(open_ones):
        later = len(open_ones) - place - 1
        number = max(0, len(words) - later) if argument.many else min(1, len(words))
        taken, words = [*map(argument.convert, words[:number])], words[number:]
        if argument.many or taken:
            values[argument.dest] = tuple(taken) if argument.many else taken[0]
        elif argument.required:
            parser.error(f"the argument {argument.dest} is missing")
    return values, words


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
    many: bool = False
    convert: Callable[[str], Any] = str  # of an argument; those are parsed as words


def _options(function: Function) -> Iterator[_Option]:
    hints, texts = get_type_hints(function, include_extras=True), _texts(function)
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("argv", "rest"):
            continue
        group = _dataclass(hints[name])
        if group is None:
            if parameter.kind is parameter.KEYWORD_ONLY:
                yield _option(name, hints[name], parameter.default, texts[name])
            else:
                yield from _argument(name, hints[name], parameter.default, texts[name])
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


def _argument(name: str, hint: Any, default: Any, text: str) -> Iterator[_Option]:
    """Describes an argument, and the option that can give it instead if it has flags."""
    option, notes = _option(name, hint, default, text), _notes(hint)
    words = [note for note in notes if isinstance(note, str) and note[0] not in "-*+"]
    has_flags = any(isinstance(note, str) and note[0] == "-" for note in notes)
    many, needed = "nargs" in option.keywords, default is REQUIRED and "*" not in notes
    keywords = {name: option.keywords[name] for name in ("help", "default")}
    keywords["metavar"] = words[0] if words else name
    if many:
        keywords |= {"nargs": "+"} if needed else {"nargs": "*", "default": ()}
    elif has_flags or not needed:
        keywords["nargs"] = "?"
    convert = option.keywords["type"]
    yield _Option(name, (name,), keywords, required=needed, many=many, convert=convert)
    if has_flags:
        dest = f"{name}{BY_OPTION}"
        same = {"dest": dest, "required": False, "help": f"the same as {name}"}
        yield _Option(dest, option.names, option.keywords | same, required=False)


def _notes(hint: Any) -> list[Any]:
    """Notes of an `Annotated` type."""
    return [*get_args(hint)[1:]] if get_origin(hint) is Annotated else []


def _option(name: str, hint: Any, default: Any, text: str) -> _Option:
    """Describes one option; the help names its default, and the function applies it."""
    notes = _notes(hint)
    hint = get_args(hint)[0] if notes else hint
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
        keywords["action"] = SWITCH
    elif get_origin(kinds[0]) is Literal:
        choices = [choice for kind in kinds for choice in get_args(kind)]
        if default is not None and NoneType in get_args(hint):
            choices.append(None)  # `none` on the command line
        keywords["choices"] = choices
        keywords["metavar"] = f"{{{','.join(map(str, choices))}}}".replace("None", "none")
        keywords["type"] = lambda text: None if text == "none" and None in choices else text
    else:
        unit = "N" if kinds[0] is int else name.rpartition("_")[2].upper()
        keywords["metavar"] = words[0] if words else unit
        keywords["type"] = _value_of(kinds[0], [note for note in notes if callable(note)])
    if "*" in notes:
        keywords |= {"nargs": "*", "default": ()}
    elif many:
        keywords |= {"nargs": "+"} | ({"action": "extend"} if "+" in notes else {})
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
    finder = _Parser(name, add_help=False)
    finder.add_argument("--options", type=Path)
    path = finder.parse_known_args(argv)[0].options
    if path is None:
        return []
    known = [name.removeprefix("--") for name in _known_names(options)]
    arguments: list[str] = []
    for key, value in read_settings(path).items():
        (key,) = _with_new_names(_known_names(options), [f"--{str(key).replace('_', '-')}"])
        key = key.removeprefix("--")
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
