"""Rows of a benchmark: what was measured, what it must reach, and how that is shown."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from vatt.system.machine import num_cores


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure.

    Args:
        case: What was measured on.
        what: What was measured.
        value: The figure.
        unit: Its unit, `×` for a ratio, "" for a count.
        at_least: What it must reach; None: no lower bound.
        at_most: What it must not exceed; None: no upper bound.
    """

    case: str
    what: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_reached(self) -> bool:
        """Whether the figure is within its bounds."""
        low = self.at_least is None or self.value >= self.at_least
        return low and (self.at_most is None or self.value <= self.at_most)

    @property
    def bound(self) -> str:
        """What the figure must reach, in words."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def to_json(self) -> dict[str, Any]:
        """The row with what became of it."""
        return {**asdict(self), "is_reached": self.is_reached}


def print_rows(section: str, rows: Sequence[Row]) -> None:
    """One section as lines of a table."""
    for row in rows:
        figure = f"{row.value:,.0f}" if abs(row.value) >= 1_000 else f"{row.value:.3g}"
        verdict = "" if not row.bound else "reached" if row.is_reached else "NOT REACHED"
        print(
            f"{section:<7} {row.case:<28} {row.what:<52} {figure + ' ' + row.unit:>16}"
            f"  {row.bound:<7} {verdict}".rstrip(),
            flush=True,
        )


def describe_machine() -> dict[str, Any]:
    """What the figures were taken on."""
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
