#!/usr/bin/env python3
"""Measures the data layer: reading, loading, index, memory, damaged files, resuming.

    python scripts/benchmarks/bench_data.py --sections read,loader --json bench.json

Every figure that must reach something says so. Ratios are taken in one run, in turns, on the same
clips; medians count. The files to read are made once, in `--folder`.
"""

import argparse
import json
import sys
import time
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
from bench_table import Row, describe_machine, print_rows

SECTIONS = ("read", "loader", "index", "memory", "fuzz", "resume")
POSITIONS = (0, 1_000, 1_000_000, 1_000_000_000)
GOP12, _, LARGE, VP9 = READ_KINDS


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        divisor: Of the numbers of clips, files and samples.
        rounds: Of what is measured in turns.
        media_seconds: Length of the media.
        is_small: Whether pictures are small and few kinds of files are read, as well.
    """

    divisor: int
    rounds: int
    media_seconds: float
    is_small: bool


FULL = Sizes(divisor=1, rounds=3, media_seconds=30, is_small=False)
QUICK = Sizes(divisor=200, rounds=1, media_seconds=4, is_small=True)


def plan(folder: Path, sizes: Sizes) -> dict[str, Callable[[], list[Row]]]:
    """What each section measures."""
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
    """Prints the table; 1 where something is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="file that gets the figures")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench"), help="keeps the media")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    options = parser.parse_args(arguments)
    names = options.sections.split(",")
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    measures = plan(options.folder, QUICK if options.quick else FULL)
    sections = {}
    for name in names:
        before = time.perf_counter()
        rows = measures[name]()
        print_rows(name, rows)
        seconds = time.perf_counter() - before
        sections[name] = {"seconds": seconds, "rows": [row.to_json() for row in rows]}
    reached = all(row["is_reached"] for section in sections.values() for row in section["rows"])
    if options.json is not None:
        content = {
            "machine": describe_machine(),
            "quick": options.quick,
            "is_reached": reached,
            "sections": sections,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if reached or options.quick else 1


if __name__ == "__main__":
    sys.exit(main())
