"""The commands that do not train: one short function each, given its arguments."""

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vatt.errors import UserError


def shards(argv: Sequence[str]) -> int:
    """`vatt shards build SOURCE OUT` and `vatt shards check FOLDER`."""
    parser = argparse.ArgumentParser("vatt shards", description="Tar shards of media and captions.")
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="media folder with captions → shards")
    build.add_argument("source", type=Path, help="media, and captions.jsonl or captions.csv")
    build.add_argument("out", type=Path, help="folder to make")
    build.add_argument("--samples-per-shard", type=_positive, default=500)
    build.add_argument("--captions", type=Path, help="caption file that lies elsewhere")
    build.add_argument("--check-media", action="store_true", help="leave out what does not open")
    check = actions.add_parser("check", help="decode every sample, list the faults")
    check.add_argument("folder", type=Path)
    check.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    check.add_argument("--csv", type=Path, help="write the table of all samples here")
    arguments = parser.parse_args(argv)
    return _build(arguments) if arguments.action == "build" else _check(arguments)


def tokenizer(argv: Sequence[str]) -> int:
    """`vatt tokenizer SHARDS OUT`."""
    parser = argparse.ArgumentParser(
        "vatt tokenizer", description="Trains a word-level tokenizer from the captions of shards."
    )
    parser.add_argument("shards", type=Path, nargs="+", help="shard folders")
    parser.add_argument("out", type=Path, help="tokenizer.json to write")
    parser.add_argument("--vocab-size", type=_positive, default=2**16, help="most ids")
    arguments = parser.parse_args(argv)
    from vatt.shards import ShardSet
    from vatt.text import Tokenizer

    sets = [ShardSet(folder) for folder in arguments.shards]
    try:
        trained = Tokenizer.train(
            (caption for one in sets for caption in one.captions()), arguments.vocab_size
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    trained.save(arguments.out)
    print(f"{arguments.out}: {trained.vocab_size} ids, padding and unknown included")
    return 0


def doctor(argv: Sequence[str]) -> int:
    """`vatt doctor`: 0 if everything needed to train is there."""
    parser = argparse.ArgumentParser("vatt doctor", description="What is installed and missing.")
    parser.parse_args(argv)
    missing: list[str] = []
    for title, lines in {
        "packages": _packages(missing),
        "media": _media(missing),
        "devices": _devices(),
        "tracking": _tracking(),
    }.items():
        print("\n".join([title, *(f"  {line}" for line in lines)]))
    print(f"missing: {'; '.join(missing)}" if missing else "all that training needs is there")
    return int(bool(missing))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _build(arguments: argparse.Namespace) -> int:
    from vatt.build_shards import build_shards

    report = build_shards(
        arguments.source,
        arguments.out,
        samples_per_shard=arguments.samples_per_shard,
        captions=arguments.captions,
        check_media=arguments.check_media,
        show_progress=sys.stderr.isatty(),
    )
    print(report)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    """1 if a sample has a fault, so that a script can act on it."""
    from vatt.check_shards import check_shards

    report = check_shards(
        arguments.folder, num_workers=arguments.workers, show_progress=sys.stderr.isatty()
    )
    print(report)
    if arguments.csv is not None:
        report.write_csv(arguments.csv)
    return int(bool(report.faults))


def _packages(missing: list[str]) -> list[str]:
    names = (
        "vatt",
        "torch",
        "torchaudio",
        "av",
        "lightning",
        "jsonargparse",
        "tokenizers",
        "wandb",
    )
    lines = [f"python        {platform.python_version()}"]
    for name in names:
        try:
            lines.append(f"{name:13} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:13} not installed")
            if name != "vatt":  # a checkout on the path needs no installation
                missing.append(f"pip install {name}")
    return lines


def _media(missing: list[str]) -> list[str]:
    """Codecs of PyAV's FFmpeg, and which torchaudio there is."""
    lines = []
    try:
        from av.codec import Codec, codecs_available
        from av.codec.codec import UnknownCodecError
    except ImportError as error:
        return [f"PyAV does not load: {error}"]
    for name, encodes in (("h264", False), ("aac", False), ("libx264", True), ("aac", True)):
        what = f"{name} {'encoder' if encodes else 'decoder'}"
        try:
            Codec(name, "w" if encodes else "r")
        except UnknownCodecError:
            missing.append(f"{what}: pip install --force-reinstall av")
            lines.append(f"{what:16} missing")
        else:
            lines.append(f"{what:16} ok")
    return [*lines, f"{len(codecs_available)} codecs in all"]


def _devices() -> list[str]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines = [f"CPU cores     {len(os.sched_getaffinity(0))} (torch uses {torch.get_num_threads()})"]
    lines += [f"GPU           {name}" for name in gpus] or [
        "GPU           none: training uses the CPU"
    ]
    if torch.backends.mps.is_available():
        lines.append("GPU           Apple MPS")
    return [*lines, f"disk here     {free:.0f} GB free"]


def _tracking() -> list[str]:
    """What a run would do about Weights & Biases."""
    from vatt.loggers import has_wandb_key, wandb_mode

    key = "found" if has_wandb_key() else "none: `wandb login` stores one"
    return [f"W&B runs are  {wandb_mode('auto')}", f"W&B key       {key}"]
