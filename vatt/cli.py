"""Entry point `vatt`: finds a command, and imports only what it needs."""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import vatt
from vatt.commands.arguments import Command, add_command, run
from vatt.commands.training_options import ALL_HELP, HELP, SHORT, check_given, expand, help_text
from vatt.config.shipped import given_values, shipped_configs
from vatt.errors import VattError, nearest
from vatt.system.files import NO_SPACE, no_space
from vatt.system.machine import limit_spinning

TRAINING = ("fit", "validate", "test", "predict")
COMMANDS = {
    "quickstart": "make your own videos searchable: pack, train, extract, index",
    "demo": "make a small corpus, train on it and write a report",
    "fit": "train a model; --config takes a file or a shipped name",
    "validate": "compute the validation metrics of a checkpoint",
    "test": "the same for the test set",
    "predict": "write embeddings or predictions for a set",
    "report": "write a page about a run: curves, searches, and a verdict",
    "evaluate": "run published protocols: retrieval, linear, zero-shot",
    "shards": "pack media into tar shards, or check shards",
    "tokenizer": "train or import a tokenizer",
    "extract": "extract vectors from many media files",
    "index": "build a search index of extracted vectors",
    "search": "search an index by text, sound or video",
    "export": "export a model to ONNX and torch.export",
    "convert": "convert an official TensorFlow checkpoint",
    "doctor": "check the installation, or show a model's cost",
}
ELSEWHERE = {"demo": "vatt.demo.run", "quickstart": "vatt.demo.quickstart"}
SHOW_TRACEBACK = "VATT_TRACEBACK"  # set to anything to see where an error came from


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: Arguments, the command first; None: those of the process.

    Returns:
        Exit code: 0 if all went well, 2 for wrong arguments, 128 + n after signal n, else 1.
    """
    limit_spinning()  # before a command loads torch
    argv = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        _complete(os.environ["COMP_LINE"])
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"vatt {vatt.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        hint = nearest(argv[0], COMMANDS)
        return _say(f"no command {argv[0]!r}.{hint} `vatt --help` lists them.", 2)
    try:
        return _run(argv[0], argv[1:])
    except BrokenPipeError:  # of `vatt … | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        message, code = _explain(error)
        if message is None:
            traceback.print_exception(error)
            message = f"this is a bug of vatt {vatt.__version__}: report it with the lines above"
        return _say(message, code)


def _run(name: str, argv: Sequence[str]) -> int:
    """Exit code of a command; argparse leaves by SystemExit after --help."""
    try:
        if name not in TRAINING:
            return run(f"vatt {name}", _command(name), argv)
        if set(argv) & {*HELP}:
            print(help_text(name))
            return 0
        argv = ["--help" if one == ALL_HELP else one for one in expand(argv)]
        check_given(name, argv)
        # they share a parser that wants the name of the command
        result = import_module("vatt.runs.training_cli").main([name, *argv])
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # how Lightning ends on Ctrl-C
            raise KeyboardInterrupt from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return result if isinstance(result, int) else 0


def _command(name: str) -> Command:
    """Function of a command, or functions of its subcommands."""
    command: Command = getattr(import_module(ELSEWHERE.get(name, f"vatt.commands.{name}")), name)
    return command


def _explain(error: BaseException) -> tuple[str | None, int]:
    """Message and exit code of an expected error; None for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return "Stopped.", 130
    if isinstance(error, VattError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return no_space(error, "run the same command again"), 1
    if isinstance(error, OSError) and error.filename is not None:
        if _makes_folder(error.__cause__ or error):
            return f"the folder {error.filename} cannot be made ({error.strerror}): name another", 1
        return f"{error.filename}: {error.strerror}: check this path", 1
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")  # loaded where it raised
    if lightning is not None and isinstance(error, lightning.MisconfigurationException):
        return str(error), 1
    return None, 1


def _makes_folder(error: BaseException) -> bool:
    """Whether an error comes from making a folder; its text names only what is not there."""
    last = [frame for frame, _ in traceback.walk_tb(error.__traceback__)][-1:]
    return any(frame.f_code.co_name in ("mkdir", "makedirs") for frame in last)


def _say(message: str, code: int) -> int:
    print(f"vatt: {message}", file=sys.stderr)
    return code


def _complete(line: str) -> None:
    """Answers a shell that asks to complete a line, and exits."""
    import argcomplete

    words = line.split()[: -1 if line[-1:].strip() else None]
    typed = words[1] if len(words) > 1 else ""
    configs = {name: [f"--config={path}"] for name, path in shipped_configs().items()}
    parser = argparse.ArgumentParser("vatt")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == typed in TRAINING:  # whose parser takes seconds to make
            command.add_argument("--config", choices=[*configs])
            for short in SHORT:
                command.add_argument(short)
            for key in sorted({"ckpt_path"}.union(*map(given_values, configs.values()))):
                command.add_argument(f"--{key}")
        elif name == typed:
            add_command(command, _command(name))
    argcomplete.autocomplete(parser, always_complete_options="long")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: vatt COMMAND [arguments]\n",
            "Train, evaluate and use video-audio-text transformers.\n",
            *lines,
            f"\nshipped configurations: {', '.join(shipped_configs())}",
            "`vatt COMMAND --help` describes a command; start with `vatt quickstart`.",
            'tab completion: eval "$(register-python-argcomplete vatt)"',
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
