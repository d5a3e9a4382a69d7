"""The command `vatt index`: an index of extracted vectors."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vatt.commands.arguments import share
from vatt.commands.search import SPACES


def index(argv: Sequence[str]) -> int:
    """`vatt index FEATURES -o INDEX`."""
    arguments = _index_parser().parse_args(argv)
    from vatt.search.build import IndexOptions, build_index

    options = IndexOptions(
        modalities=arguments.modality and tuple(arguments.modality),
        spaces=arguments.space and tuple(arguments.space),
        model=arguments.model,
        media=arguments.media,
        approximate=arguments.approximate,
        least_coverage=arguments.least_coverage,
    )
    report = build_index(
        arguments.features, arguments.out, options, show_progress=sys.stderr.isatty()
    )
    print(f"{arguments.out}: {report}")
    return 0


def _index_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vatt index",
        description="What `vatt extract` wrote → an index for `vatt search`. An index that is "
        "there is made anew, and counts until the new one is complete.",
    )
    parser.add_argument("features", type=Path, help="folder that `vatt extract` wrote")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the index")
    parser.add_argument(
        "--modality", nargs="+", choices=("video", "audio"), help="default: all that there are"
    )
    parser.add_argument(
        "--space", nargs="+", choices=SPACES, help="default: all; none: features of the backbone"
    )
    parser.add_argument("--model", help="where it lies now; default: where it lay for extract")
    parser.add_argument(
        "--media", type=Path, metavar="FOLDER", help="where the media lie now; default: as above"
    )
    parser.add_argument(
        "--least-coverage",
        type=share,
        default=0.2,
        metavar="SHARE",
        help="leave windows out of which the file gave less (its end), default 0.2",
    )
    parser.add_argument(
        "--approximate",
        action=argparse.BooleanOptionalAction,
        help="search with faiss; default: only where there are more than a million rows",
    )
    return parser
