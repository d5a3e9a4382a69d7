"""Arguments of the commands: names, earlier spellings, help, and what is said of wrong ones."""

import argparse
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytest

from vatt.cli import COMMANDS, TRAINING, _command, main
from vatt.commands.arguments import Command, add_command, run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "extract a --windows-seconds 3",
            "has no option --windows-seconds. Did you mean --window-",
        ),
        ("extract a --modality vidoe", "invalid choice: 'vidoe' .* Did you mean video?"),
        ("extract a --space bone", r"choose from .*joint.*, 'none'\)"),
        ("evaluate retreival", "has no command 'retreival'. Did you mean retrieval?"),
        ("evaluate", "needs a command. It has retrieval, linear, zero-shot, mteb"),
        ("index", "required: -o/--out. See `vatt index --help`"),
        ("export model", "the argument out is missing. See `vatt export --help`"),
        ("export model out more", "unrecognized arguments: more"),
        ("tokenizer --out", "-o/--out: expected one argument"),
        ("shards check a --time-limit x", "invalid int value: 'x'"),
    ],
)
def test_wrong_arguments_are_one_line_with_the_nearest_right_one(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert (shown.err.count("\n"), shown.out) == (1, "")


@pytest.mark.parametrize(
    "line",
    [
        *("a b OUT", "-o OUT a b", "a -o OUT b", "--out=OUT a b", "a --kind bpe b OUT"),
        *("OUT", "-o OUT"),
    ],
)
def test_an_argument_may_be_given_as_an_option(line: str) -> None:
    seen: list[tuple] = []

    def command(
        names: Annotated[tuple[str, ...], "*"],
        out: Annotated[Path, "-o", "--out"],
        *,
        kind: str = "word",
    ) -> int:
        """Shows what it is given.

        Args:
            names: Words.
            out: A place.
            kind: A kind.
        """
        seen.append((names, out))
        return 0

    assert run("vatt x", command, line.split()) == 0
    assert seen == [(("a", "b") if "a" in line else (), Path("OUT"))]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("export", "MODEL OUT"),
        ("export", "--model MODEL OUT"),
        ("export", "MODEL -o OUT --modality video audio"),
        ("export", "--out OUT --model MODEL --modalities video audio --formats model"),
        ("convert", "CHECKPOINT --out OUT"),
        ("shards build", "SOURCE -o OUT"),
        ("shards build", "SOURCE OUT"),
        ("evaluate retrieval", "--model MODEL --data DATA --windows 3"),
        ("evaluate linear", "MODEL --data DATA --media MEDIA --num-windows 3 --modalities audio"),
        ("extract", "MEDIA -o OUT --model MODEL --modalities video"),
        ("index", "FEATURES -o OUT --modalities video"),
        ("search", "INDEX a dog barks --modality video"),
    ],
)
def test_options_have_one_name_and_earlier_spellings_still_work(name: str, line: str) -> None:
    first, _, second = name.partition(" ")
    command = getattr(importlib.import_module(f"vatt.commands.{first}"), first)
    signature = inspect.signature(command[second] if second else command)
    given: dict = {}

    def record(**arguments: object) -> int:
        given.update(arguments)
        return 0

    record.__signature__ = signature  # type: ignore[attr-defined]
    record.__doc__ = (command[second] if second else command).__doc__
    record.__annotations__ = (command[second] if second else command).__annotations__
    assert run(f"vatt {name}", record, line.split()) == 0
    for word in ("model", "out", "checkpoint", "source", "data"):
        if word.upper() in line.split():
            assert str(given[word]) == word.upper()
    options = given.get("options") or given.get("common")
    if "3" in line.split():
        assert options.windows == 3
    if "--formats" in line:
        assert given["formats"] == ("model",)
    if "--modalit" in line:
        found = getattr(options, "modalities", None) or given.get(
            "modalities", given.get("modality")
        )
        assert found in (("video", "audio"), ("video",), "video", "audio")


def all_commands() -> list[tuple[str, Command]]:
    """Words and function of every command that has a parser of ours."""
    found = []
    for name in COMMANDS:
        if name not in TRAINING:
            command = _command(name)
            parts = command.items() if isinstance(command, Mapping) else [("", command)]
            found += [(f"{name} {word}".strip(), function) for word, function in parts]
    return found


@pytest.mark.parametrize(
    ("name", "command"), all_commands(), ids=lambda one: one if isinstance(one, str) else ""
)
def test_help_of_every_option_says_its_default_and_its_unit(name: str, command: Command) -> None:
    parser = argparse.ArgumentParser()
    add_command(parser, command)
    for action in parser._actions:
        option = action.option_strings[-1] if action.option_strings else ""
        # an absent switch is off; what is the same as an argument has no default of its own
        if not option or option in ("--help", "--options") or action.required:
            continue
        text = str(action.help)
        is_switch = isinstance(action, argparse.BooleanOptionalAction)
        is_needed = text.startswith("the same as") or option == "--short-side"
        assert is_switch or is_needed or "(default: " in text, f"{name} {option}"
        if option.endswith(("seconds", "minutes", "bytes", "limit")):
            assert action.metavar in ("SECONDS", "MINUTES", "BYTES"), f"{name} {option}"


def test_a_folder_that_cannot_be_made_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocabulary = tmp_path / "vocabulary.txt"
    vocabulary.write_text("<pad>\n<bos>\n<eos>\n<unk>\ndog\n")
    out = "/proc/vatt/words.json"
    assert main(["tokenizer", "--vocabulary", str(vocabulary), "-o", out]) == 1
    message = (
        "vatt: the folder /proc/vatt cannot be made (No such file or directory): name another\n"
    )
    assert capsys.readouterr().err == message
