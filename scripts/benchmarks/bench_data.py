#!/usr/bin/env python3
"""Measures the data layer: reading, loading, index, memory, damaged files, resuming.

    python scripts/benchmarks/bench_data.py --sections read,loader --json bench.json

Every figure with a bound shows it. Ratios are taken in one run, in turns, on the same clips;
medians count. The files to read are made once, in `--folder`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench_fuzz import measure_fuzz
from bench_loading import (
    GEOMETRY,
    SMALL_GEOMETRY,
    measure_index,
    measure_memory,
    measure_resume,
    measure_workers,
)
from bench_media import READ_KINDS, SMALL_KIND, MediaKind
from bench_reading import measure_reading
from bench_table import Row, benchmark_parser, run_sections

SECTIONS = ("read", "loader", "index", "memory", "fuzz", "resume")
POSITIONS = (0, 1_000, 1_000_000, 1_000_000_000)
GOP12, _, LARGE, VP9 = READ_KINDS


@dataclass(frozen=True)
class Sizes:
    """Extent of the measurements."""

    divisor: int  # of the numbers of clips, files and samples
    rounds: int  # of what is measured in turns
    media_seconds: float
    is_small: bool  # small pictures, few kinds of files


FULL = Sizes(divisor=1, rounds=3, media_seconds=30, is_small=False)
QUICK = Sizes(divisor=200, rounds=1, media_seconds=4, is_small=True)


def plan(folder: Path, sizes: Sizes) -> dict[str, Callable[[], list[Row]]]:
    """The measurements of each section."""
    small = {"width": SMALL_KIND.width, "height": SMALL_KIND.height, "video_bit_rate": 100_000}

    def of(kind: MediaKind) -> MediaKind:
        return replace(kind, file=f"small_{kind.file}", **small) if sizes.is_small else kind

    def count(number: int) -> int:
        return max(2, number // sizes.divisor)

    set_shape = {"num_shards": count(100), "samples_per_shard": count(1_000)}
    return {
        "read": partial(
            measure_reading,
            folder,
            [of(kind) for kind in ((GOP12, VP9) if sizes.is_small else READ_KINDS)],
            media_seconds=sizes.media_seconds,
            num_clips=count(10),
            rounds=sizes.rounds,
        ),
        "loader": partial(
            measure_workers,
            folder,
            [(of(GOP12), 1.4, count(12)), (of(LARGE), 1.7, count(4))][: 1 if sizes.is_small else 2],
            geometry=SMALL_GEOMETRY if sizes.is_small else GEOMETRY,
            media_seconds=sizes.media_seconds,
            rounds=2 * sizes.rounds - 1,
        ),
        "index": partial(measure_index, folder, **set_shape),
        "memory": partial(
            measure_memory, folder, num_clips=count(10_000), num_warm_up=count(1_000)
        ),
        "fuzz": partial(measure_fuzz, folder, num_files=count(1_000)),
        "resume": partial(measure_resume, folder, POSITIONS, **set_shape, rounds=sizes.rounds),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = benchmark_parser(__doc__, SECTIONS)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="keeps the media")
    options = parser.parse_args(arguments)
    measures = plan(options.folder, QUICK if options.quick else FULL)
    return run_sections({name: measures[name] for name in options.sections}, options)


if __name__ == "__main__":
    sys.exit(main())
