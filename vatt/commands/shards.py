"""Commands around data and models: one short function each, given its arguments."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vatt.commands.arguments import not_negative, positive
from vatt.errors import UserError
from vatt.system.machine import num_cores

if TYPE_CHECKING:
    from vatt.media.reencode import Reencoding

REENCODING_OPTIONS = ("short_side", "key_frame_seconds", "quality")


def shards(argv: Sequence[str]) -> int:
    """`vatt shards build SOURCE [OUT]` and `vatt shards check FOLDER`."""
    parser = argparse.ArgumentParser("vatt shards", description="Tar shards of media and captions.")
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="media folder with captions → shards; tars → indexes")
    build.add_argument(
        "source", type=Path, help="media and captions.jsonl, .csv or .parquet; or tars"
    )
    build.add_argument(
        "out",
        type=Path,
        nargs="?",
        help="folder to make; for a folder of tars: where the indexes go if not beside them",
    )
    build.add_argument("--samples-per-shard", type=positive, help="default 500")
    build.add_argument(
        "--captions",
        type=Path,
        help="caption file that lies elsewhere; or HowTo100M's, JSON or folder",
    )
    build.add_argument("--check-media", action="store_true", help="leave out what does not open")
    build.add_argument("--workers", type=not_negative, default=num_cores(), help="processes")
    _add_reencoding(build)
    check = actions.add_parser("check", help="decode every sample, list the faults")
    check.add_argument("folder", type=str, help="path, or s3://, gs://, hf://, https:// address")
    check.add_argument("--workers", type=not_negative, default=num_cores())
    check.add_argument(
        "--time-limit",
        type=positive,
        default=60,
        help="seconds without a decoded packet after which a sample counts as hanging",
    )
    check.add_argument("--csv", type=Path, help="write the table of all samples here")
    arguments = parser.parse_args(argv)
    return _build(arguments) if arguments.action == "build" else _check(arguments)


def _add_reencoding(build: argparse.ArgumentParser) -> None:
    options = build.add_argument_group(
        "encoding anew",
        "Videos become H.264/AAC mp4 made for reading clips fast; times and content stay. "
        "Other media are copied. A build that was stopped goes on by the same command.",
    )
    options.add_argument(
        "--short-side",
        type=int,
        metavar="PIXELS",
        help="encode videos anew; larger pictures get this shorter side, an even number",
    )
    options.add_argument(
        "--key-frame-seconds",
        type=float,
        metavar="SECONDS",
        help="from one key frame to the next, default 1: more is smaller, and slower to read",
    )
    options.add_argument(
        "--quality",
        type=int,
        metavar="CRF",
        help="constant rate factor of x264 from 0 (lossless) to 51, default 20",
    )


def _build(arguments: argparse.Namespace) -> int:
    from vatt.packing.build import build_shards
    from vatt.shards.places import holds_shards_only

    if holds_shards_only(arguments.source, arguments.out):
        return _index(arguments)
    if arguments.out is None:
        raise UserError(
            f"{arguments.source} holds no tar shards to index: if it holds media, name the folder "
            f"to make, `vatt shards build {arguments.source} OUT`"
        )
    report = build_shards(
        arguments.source,
        arguments.out,
        samples_per_shard=arguments.samples_per_shard or 500,
        captions=arguments.captions,
        check_media=arguments.check_media,
        reencoding=_reencoding(arguments),
        num_workers=arguments.workers,
        show_progress=sys.stderr.isatty(),
    )
    print(report)
    return 0


def _reencoding(arguments: argparse.Namespace) -> "Reencoding | None":
    asked = {
        name: getattr(arguments, name)
        for name in REENCODING_OPTIONS
        if getattr(arguments, name) is not None
    }
    if not asked:
        return None
    if arguments.short_side is None:
        raise UserError(f"--{next(iter(asked)).replace('_', '-')} needs --short-side PIXELS")
    from vatt.media.reencode import Reencoding

    return Reencoding(**asked)


def _index(arguments: argparse.Namespace) -> int:
    """1 if the folder cannot be used because of some of its shards."""
    from vatt.packing.index_tars import index_shards

    for option in ("captions", "check_media", "samples_per_shard", *REENCODING_OPTIONS):
        if getattr(arguments, option) is not None and getattr(arguments, option) is not False:
            raise UserError(
                f"{arguments.source} holds tar shards, which are used as they are: "
                f"--{option.replace('_', '-')} is for media files"
            )
    report = index_shards(
        arguments.source,
        arguments.out,
        num_workers=arguments.workers,
        show_progress=sys.stderr.isatty(),
    )
    print(report)
    return int(not report.is_usable)


def _check(arguments: argparse.Namespace) -> int:
    """1 if a sample has a fault, so that a script can act on it."""
    from vatt.packing.check import check_shards

    report = check_shards(
        arguments.folder,
        num_workers=arguments.workers,
        limit_seconds=arguments.time_limit,
        show_progress=sys.stderr.isatty(),
    )
    print(report)
    if arguments.csv is not None:
        report.write_csv(arguments.csv)
    return int(bool(report.faults))
