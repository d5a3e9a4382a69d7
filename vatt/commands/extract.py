"""The command `vatt extract`: vectors of many media files."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vatt.commands.arguments import not_negative, positive
from vatt.system.machine import num_cores


def extract(argv: Sequence[str]) -> int:
    """`vatt extract SRC… -o OUT --model MODEL`; 1 for failures under --strict."""
    arguments = _extract_parser().parse_args(argv)
    from vatt.features.extract import FAILURES
    from vatt.features.extract import extract as extract_features
    from vatt.features.extraction import ExtractOptions

    workers = arguments.workers
    if workers is None:  # the others compute; under torchrun several share the machine
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = max(1, (num_cores() - 1) // local)
    options = ExtractOptions(
        window_seconds=arguments.window_seconds,
        hop_seconds=arguments.hop_seconds,
        modalities=arguments.modalities and tuple(arguments.modalities),
        space=None if arguments.space == "none" else arguments.space,
        return_tokens=arguments.tokens,
        batch_size=arguments.batch_size,
        num_workers=workers,
        file_format=arguments.format,
    )
    report = extract_features(
        arguments.sources,
        arguments.out,
        arguments.model,
        options,
        device=arguments.device,
        dtype=arguments.dtype,
        show_progress=sys.stderr.isatty(),
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"{arguments.out}: {report}")
        if report.failures:
            print(f"{arguments.out / FAILURES} has the reasons of all that failed")
    return int(arguments.strict and bool(report.failures))


def _extract_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vatt extract",
        description="Vectors of windows of many media, with their times. A second run makes only "
        "what is missing, has changed, or was made with other settings or another model.",
        epilog="`torchrun --nproc-per-node 8 --no-python vatt extract …` shares the work.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="folder of media or shards, media file, 'pattern/**/*.mp4', list.txt of paths, URL",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--model", required=True, help="model folder, .ckpt, or org/name of the Hugging Face Hub"
    )
    parser.add_argument(
        "--window-seconds", type=float, metavar="SECONDS", help="default: as in training"
    )
    parser.add_argument(
        "--hop-seconds", type=float, metavar="SECONDS", help="default: one after the other"
    )
    parser.add_argument("--modalities", nargs="+", choices=("video", "audio"))
    parser.add_argument(
        "--space",
        choices=("all", "va", "vt", "joint", "none"),
        default="all",
        help="which common space; none: features of the backbone",
    )
    parser.add_argument("--tokens", action="store_true", help="of every token; --space none")
    parser.add_argument("--format", choices=("npz", "safetensors", "parquet"), default="npz")
    parser.add_argument("--batch-size", type=positive, default=8, help="windows at a time")
    parser.add_argument("--workers", type=not_negative, help="processes that read media")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if anything failed")
    return parser
