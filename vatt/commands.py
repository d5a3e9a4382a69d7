"""The commands that do not train: one short function each, given its arguments."""

import argparse
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vatt.errors import UserError
from vatt.machine import num_cores

# what a command needs, each from the package of the same name
PACKAGES = (
    *("torch", "torchaudio", "av", "lightning", "jsonargparse", "tokenizers", "safetensors"),
    *("huggingface_hub", "einops", "numpy", "tqdm", "PyYAML", "wandb"),
)


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
    check.add_argument("--workers", type=_not_negative, default=num_cores())
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
    remedies: list[str] = []
    for title, find in (
        ("packages", _packages),
        ("media", _media),
        ("devices", _devices),
        ("tracking", _tracking),
    ):
        print("\n".join([title, *(f"  {line}" for line in _guarded(find, remedies))]))
    missing = "; ".join(dict.fromkeys(remedies))
    print(f"missing: {missing}" if missing else "all that training needs is there")
    return int(bool(missing))


def _guarded(find: Callable[[list[str]], list[str]], missing: list[str]) -> list[str]:
    """Lines of a section, or what keeps it from being looked at."""
    try:
        return find(missing)
    except (ImportError, OSError) as error:  # OSError: a library that a package loads
        name = (getattr(error, "name", None) or "").partition(".")[0]
        missing.append(f"pip install {name}" if name else f"a library ({error})")
        return [f"{name or 'something'} does not load: {error}"]


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = int(text)
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
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
    lines = [f"python          {platform.python_version()}"]
    for name in ("vatt", *PACKAGES):
        try:
            lines.append(f"{name:15} {version(name)}")
        except PackageNotFoundError:
            lines.append(f"{name:15} not installed")
            if name != "vatt":  # a checkout on the path needs no installation
                missing.append(f"pip install {name}")
    return lines


def _media(missing: list[str]) -> list[str]:
    """Codecs of PyAV's FFmpeg."""
    from av.codec import Codec, codecs_available
    from av.codec.codec import UnknownCodecError

    lines = []
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


def _devices(missing: list[str]) -> list[str]:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    lines = [f"CPU cores     {num_cores()} (torch uses {torch.get_num_threads()})"]
    lines += [f"GPU           {name}" for name in gpus] or [
        "GPU           none: training uses the CPU"
    ]
    if torch.backends.mps.is_available():
        lines.append("GPU           Apple MPS")
    return [*lines, f"disk here     {free:.0f} GB free"]


def _tracking(missing: list[str]) -> list[str]:
    """What a run would do about Weights & Biases."""
    from vatt.loggers import has_wandb_key, wandb_mode

    key = "found" if has_wandb_key() else "none: `wandb login` stores one"
    return [f"W&B runs are  {wandb_mode('auto')}", f"W&B key       {key}"]
