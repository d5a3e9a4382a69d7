"""Rows of a benchmark: what was measured, its bounds, and how it is run, shown and saved."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from tabulate import tabulate

from vatt.system.environment import installed_version
from vatt.system.machine import num_cores

Key = TypeVar("Key")


@dataclass(frozen=True)
class Row:
    """One figure.

    Args:
        case: What was measured on.
        what: What was measured.
        value: The figure.
        unit: Its unit, `×` for a ratio, "" for a count.
        at_least: Lower bound; None: there is none.
        at_most: Upper bound; None: there is none.
    """

    case: str
    what: str
    value: float
    unit: str = ""
    _: KW_ONLY
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool:
        """Whether the figure is within its bounds."""
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def bound(self) -> str:
        """The bound in words."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"


def rows_table(rows: Sequence[Row]) -> str:
    """Rows as a table."""
    cells = []
    for row in rows:
        figure = f"{row.value:,.0f}" if abs(row.value) >= 1_000 else f"{row.value:.3g}"
        verdict = "" if not row.bound else "reached" if row.is_reached else "NOT REACHED"
        cells.append((f"{figure} {row.unit}", row.bound, verdict, row.case, row.what))
    return tabulate(cells, tablefmt="plain", disable_numparse=True, colalign=["right"])


def median_seconds(
    steps: Mapping[Key, Callable[[], object]], rounds: int, device: torch.device
) -> dict[Key, float]:
    """Median seconds of each step, in turns, after a round that does not count."""
    seconds: dict[Key, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, step in steps.items():
            wait_for(device)
            start = time.perf_counter()
            step()
            wait_for(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
