"""Short options of `vatt fit` and its kin, their help, and checks that need no torch.

The options stand for settings of the configuration, which have long names.
"""

import json
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from vatt.config.shipped import (
    config_paths,
    given_values,
    shipped_configs,
    with_config_paths,
)
from vatt.errors import UserError

HELP, ALL_HELP = ("-h", "--help"), "--help-all"


class Short(NamedTuple):
    """Short option: the setting that it stands for, and its help."""

    setting: str
    value: str
    text: str
    convert: Callable[[Sequence[str]], str] = " ".join


def _paths(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else json.dumps(list(values))


def _seconds(values: Sequence[str]) -> str:
    try:
        return str(60 * float(" ".join(values)))
    except ValueError:
        raise UserError(f"--minutes is a number, got {' '.join(values)!r}", 2) from None


SHORT = {
    "--train": Short("data.init_args.train", "SHARDS…", "training data", _paths),
    "--val": Short("data.init_args.validation", "SHARDS", "validation data", _paths),
    "--out": Short("run.dir", "FOLDER", "run folder, to create; also -o"),
    "--steps": Short("trainer.max_steps", "N", "optimiser steps"),
    "--minutes": Short("run.time_budget_seconds", "N", "end after this time instead", _seconds),
    "--batch-size": Short("data.init_args.batch_size", "N", "clips per step, over all GPUs"),
    "--learning-rate": Short("model.init_args.optimizer.learning_rate", "RATE", "highest rate"),
    "--workers": Short("data.init_args.num_workers", "N", "processes that read, per GPU"),
    "--init-from": Short("model.init_args.init_from", "MODEL", "model to start from"),
    "--seed": Short("seed_everything", "N", "seed of weights and draws"),
}
REMOTE = ("://", "{")  # in an address, or in a pattern of shards


def expand(args: Sequence[str]) -> list[str]:
    """Arguments in which short options are replaced by the settings that they stand for.

    Args:
        args: Arguments of a training command, without its name.

    Returns:
        Arguments for `vatt.runs.training_cli`.

    Raises:
        UserError: a short option lacks its value.
    """
    return list(_expanded(args))


def _expanded(args: Sequence[str]) -> Iterator[str]:
    place = 0
    while place < len(args):
        name, separator, value = args[place].partition("=")
        name = "--out" if name == "-o" else name
        place += 1
        if name not in SHORT:
            yield args[place - 1]
            continue
        values = [value] if separator else []
        is_list = name == "--train" and not separator
        while place < len(args) and (is_list or not values) and not args[place].startswith("-"):
            values.append(args[place])
            place += 1
        if not values:
            raise UserError(f"{name} needs a value: {name} {SHORT[name].value}", 2)
        yield f"--{SHORT[name].setting}={SHORT[name].convert(values)}"


def check_given(command: str, args: Sequence[str]) -> None:
    """Refuses what is missing: a configuration, training data, and shard folders.

    This takes a tenth of a second; Lightning would say it ten seconds later.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        args: Its arguments, without short options.

    Raises:
        UserError: something is missing; the message says what to give.
    """
    if any(one.startswith("--print_config") for one in args):
        return
    given = given_values(with_config_paths(args))
    if not config_paths(args) and not given.keys() & {"model", "model.class_path"}:
        raise UserError(_no_config(command), 2)
    kind = str(given.get("data.class_path"))
    if kind == "datamodules.pretrain.PretrainData":
        _check_folders(given, ("train", "validation") if command == "fit" else ("validation",))
    has_train = given.keys() & {"data.init_args.train", "data.train"}
    if kind.startswith("datamodules.") and not has_train:
        raise UserError(f"data.train is missing: give --train {SHORT['--train'].value}", 2)


def _check_folders(given: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuses shard folders that do not exist."""
    for name in names:
        value = given.get(f"data.init_args.{name}")
        if isinstance(value, str):
            value = [value]
        for path in value if isinstance(value, list | dict) else ():
            is_local = isinstance(path, str) and not any(mark in path for mark in REMOTE)
            if is_local and not Path(path).exists():
                raise UserError(f"data.{name}: there is no folder {path}: correct the path", 2)


def _no_config(command: str) -> str:
    """Message that lists the shipped configurations, each with the first sentence of its file."""
    if command != "fit":
        return f"{command} needs a configuration: give that of the run, --config RUN/config.yaml"
    configs = shipped_configs()
    width = max(map(len, configs))
    lines = [f"  {name:{width}}  {_first_sentence(path)}" for name, path in configs.items()]
    return "\n".join(["fit needs a configuration: start with --config demo. Shipped are", *lines])


def _first_sentence(config: Path) -> str:
    """First sentence of the comment at the head of a configuration."""
    lines = takewhile(lambda line: line.startswith("#"), config.read_text("utf-8").splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in lines)
    first = re.split(r"\. |\.$|(?<=.{20})[:;] ", text)[0]  # not "The demo:"
    return textwrap.shorten(first, 84, placeholder=" …")


def help_text(command: str) -> str:
    """One screen of help."""
    rows = [("--config NAME…", f"{', '.join(shipped_configs())}; or a file. Later ones win")]
    rows += [(f"{name} {short.value}", short.text) for name, short in SHORT.items()]
    rows += [
        ("--ckpt_path last", "go on with the run in --out; best or a file: start from that"),
        ("--trainer.devices N", "GPUs of this machine; torchrun and SLURM start more"),
        ("--model.init_args.X", "any setting of the model or its training; --data.init_args.X of"),
        ("", "the data, --trainer.X of Lightning's trainer, --run.X of the run"),
        ("--print_config", "print all settings"),
        (ALL_HELP, "all settings, with their help"),
    ]
    lines = [f"usage: vatt {command} --config NAME [options]", ""]
    width = max(len(left) for left, _ in rows)
    for left, right in rows:
        lines += _wrapped(f"  {left:{width}}  ", right)
    example = ["--config", "tiny", "--train", "shards/train", "--val", "shards/validation"]
    return "\n".join([*lines, "", f"example: vatt fit {shlex.join(example)} --out runs/first"])


def _wrapped(left: str, right: str) -> list[str]:
    return textwrap.wrap(
        right, width=96, initial_indent=left, subsequent_indent=" " * len(left)
    ) or [left]
