#!/usr/bin/env python3
"""Measures the data layer: reading, loading, index, memory, damaged files, resuming.

    python scripts/benchmarks/bench_data.py --sections read loader --json bench.json

Every figure with a bound shows it. Ratios are taken in one run, in turns, on the same clips;
medians count. The files to read are made once, in `--folder`.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from bench_table import benchmark_parser, run_sections

from vatt.gpu_check.figures import Row

SECTIONS = ("read", "loader", "index", "memory", "fuzz", "resume")
POSITIONS = (0, 1_000, 1_000_000, 1_000_000_000)
GOP12, _, LARGE, VP9 = READ_KINDS


def plan(folder: Path, *, quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """The measurements of each section; quick ones are of few small pictures."""
    media_seconds, rounds = (4, 1) if quick else (30, 3)
    small = {"width": SMALL_KIND.width, "height": SMALL_KIND.height, "video_bit_rate": 100_000}

    def of(kind: MediaKind) -> MediaKind:
        return replace(kind, file=f"small_{kind.file}", **small) if quick else kind

    def count(number: int) -> int:
        return max(2, number // 200) if quick else number

    set_shape = {"num_shards": count(100), "samples_per_shard": count(1_000)}
    return {
        "read": partial(
            measure_reading,
            folder,
            [of(kind) for kind in ((GOP12, VP9) if quick else READ_KINDS)],
            media_seconds=media_seconds,
            num_clips=count(10),
            rounds=rounds,
        ),
        "loader": partial(
            measure_workers,
            folder,
            [(of(GOP12), 1.4, count(12)), (of(LARGE), 1.7, count(4))][: 1 if quick else 2],
            geometry=SMALL_GEOMETRY if quick else GEOMETRY,
            media_seconds=media_seconds,
            rounds=2 * rounds - 1,
        ),
        "index": partial(measure_index, folder, **set_shape),
        "memory": partial(
            measure_memory, folder, num_clips=count(10_000), num_warm_up=count(1_000)
        ),
        "fuzz": partial(measure_fuzz, folder, num_files=count(1_000)),
        "resume": partial(measure_resume, folder, POSITIONS, **set_shape, rounds=rounds),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = benchmark_parser(__doc__, SECTIONS)
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="keeps the media")
    options = parser.parse_args(arguments)
    return run_sections(plan(options.folder, quick=options.quick), options)


if __name__ == "__main__":
    sys.exit(main())
