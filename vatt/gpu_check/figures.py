"""Figures of a measurement with their bounds, and the measuring of time and memory."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from tabulate import tabulate

Key = TypeVar("Key")
MIB, GIB = 2**20, 2**30


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
        """The bounds in words."""
        bounds = (("≥", self.at_least), ("≤", self.at_most))
        return ", ".join(f"{sign} {value:g}" for sign, value in bounds if value is not None)


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


def peak_bytes(step: Callable[[], None], device: torch.device) -> int:
    """The most memory that a step takes beyond what was there before.

    On a CPU it needs `return_freed_memory`.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # forgets the largest size so far
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def return_freed_memory() -> None:
    """Has the C library map each tensor by itself: freed memory is at once no longer resident."""
    mmap_threshold = -3  # M_MMAP_THRESHOLD of malloc.h
    ctypes.CDLL(None).mallopt(mmap_threshold, 4096)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
