"""Progress of long work: a bar on a terminal, and a line from time to time in a log file."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines where the output is no terminal
LINE_FORMAT = "{desc}: {n_fmt} of {total_fmt} {unit}s ({percentage:.0f} %), {remaining} left"
COUNT_FORMAT = "{desc}: {n_fmt} {unit}s in {elapsed}"  # of work whose extent is not known
_line_seconds: ContextVar[float | None] = ContextVar("line_seconds", default=None)


class _Lines:
    """Standard error as tqdm's output: each state of a bar is a line, without carriage returns."""

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def line_seconds() -> float:
    """Seconds between two lines where the output is no terminal."""
    return max(LINE_SECONDS, _line_seconds.get() or 0.0)


@contextlib.contextmanager
def few_lines(seconds: float) -> Iterator[None]:
    """Context in which lines are at least so many seconds apart."""
    token = _line_seconds.set(seconds)
    try:
        yield
    finally:
        _line_seconds.reset(token)


def on_terminal() -> bool:
    """Whether standard error is a terminal on which a bar can be drawn."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:
        return False


def progress_bar(
    items: Iterable[Any] | None = None,
    title: str = "done",
    total: int | None = None,
    *,
    unit: str,
    show: bool = True,
    **options: Any,
) -> Any:
    """Bar of tqdm on a terminal; elsewhere a line after each `line_seconds()`.

    Args:
        items: Items to count while they are iterated over. None: `update` counts.
        title: Name of the work.
        total: Number of items. None: that of `items`, if it is known.
        unit: Name of one item.
        show: Whether anything is shown.
        options: Further options of tqdm.

    Example:
        >>> for file in progress_bar(["a.mp4"], "check", unit="file", show=False):
        ...     pass
    """
    if on_terminal() or not show:
        return tqdm(items, title, total, unit=unit, disable=not show, dynamic_ncols=True, **options)
    is_known = total is not None or hasattr(items, "__len__")
    return tqdm(
        items,
        title,
        total,
        unit=unit,
        file=_Lines(),
        mininterval=line_seconds(),
        maxinterval=line_seconds(),
        delay=line_seconds(),
        bar_format=LINE_FORMAT if is_known else COUNT_FORMAT,
        **options,
    )
