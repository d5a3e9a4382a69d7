"""Rows of a benchmark: what was measured, its bounds, and how it is run, shown and saved."""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vatt.system.machine import num_cores


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


def print_rows(section: str, rows: Sequence[Row]) -> None:
    """Prints a section as lines of a table."""
    for row in rows:
        figure = f"{row.value:,.0f}" if abs(row.value) >= 1_000 else f"{row.value:.3g}"
        verdict = "" if not row.bound else "reached" if row.is_reached else "NOT REACHED"
        print(
            f"{section:<7} {row.case:<28} {row.what:<52} {figure + ' ' + row.unit:>16}"
            f"  {row.bound:<7} {verdict}".rstrip(),
            flush=True,
        )


def median_seconds(
    steps: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each step, in turns, after a round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
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

    def chosen(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in sections]:
            known = ", ".join(sections)
            raise argparse.ArgumentTypeError(f"no section {', '.join(unknown)}: there are {known}")
        return names

    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs")
    if sections:
        names = ",".join(sections)
        parser.add_argument("--sections", type=chosen, default=names, help=f"some of {names}")
    return parser


def run_sections(
    measures: Mapping[str, Callable[[], list[Row]]], options: argparse.Namespace
) -> int:
    """Measures, prints and saves all sections.

    Args:
        measures: Functions by section.
        options: Result of a `benchmark_parser`.

    Returns:
        The exit code: 1 if a figure is out of its bounds, unless `options.quick`.
    """
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    sections, is_reached = {}, True
    for name, measure in measures.items():
        before = time.perf_counter()
        rows = measure()
        print_rows(name, rows)
        is_reached &= all(row.is_reached for row in rows)
        sections[name] = {
            "seconds": time.perf_counter() - before,
            "rows": [{**asdict(row), "is_reached": row.is_reached} for row in rows],
        }
    if options.json is not None:
        content = {"machine": machine, "quick": options.quick, "is_reached": is_reached}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**content, "sections": sections}, indent=1) + "\n")
    return 0 if is_reached or options.quick else 1


def describe_machine() -> dict[str, Any]:
    """Cores, GPU and versions that the figures depend on."""
    return {
        "cores": num_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "av": _version("av"),
    }


def _version(package: str) -> str | None:
    """None: not installed; machines for training alone need no media."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
