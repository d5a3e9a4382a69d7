"""How a benchmark is run, shown and saved."""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from vatt.gpu_check.figures import Row, rows_table
from vatt.system.environment import installed_version
from vatt.system.machine import num_cores


def benchmark_parser(
    description: str | None, sections: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A parser of the options that all benchmarks have; the first line describes them."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    if sections:
        parser.add_argument("--sections", nargs="+", choices=sections, default=sections)
    return parser


def run_sections(
    measures: Mapping[str, Callable[[], list[Row]]], options: argparse.Namespace
) -> int:
    """Measures, prints and saves sections.

    Args:
        measures: Functions by section.
        options: Result of a `benchmark_parser`.

    Returns:
        The exit code: 1 if a figure is out of its bounds, unless `options.quick`.
    """
    machine = {
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: installed_version(name) for name in ("torch", "av")},
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    sections, is_reached = {}, True
    for name in getattr(options, "sections", measures):
        before = time.perf_counter()
        rows = measures[name]()
        seconds = time.perf_counter() - before
        print(f"\n{name}, {seconds:.0f} s\n{rows_table(rows)}", flush=True)
        is_reached &= all(row.is_reached for row in rows)
        rows_json = [{**asdict(row), "is_reached": row.is_reached} for row in rows]
        sections[name] = {"seconds": seconds, "rows": rows_json}
    if options.json is not None:
        content = {"machine": machine, "quick": options.quick, "is_reached": is_reached}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**content, "sections": sections}, indent=1) + "\n")
    return 0 if is_reached or options.quick else 1
