"""Answer to a query, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tabulate import tabulate

from vatt.search.hits import Hit


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Hits of a query, and how they were found.

    Args:
        query: Text, or the path or URL of a file.
        query_modality: `text`, or the part of the file that was used: `video` or `audio`.
        array: Name of the array that was searched.
        search: `exactly` or `approximately`.
        hits: Hits, best first.
    """

    query: str
    query_modality: str
    array: str
    search: Literal["exactly", "approximately"]
    hits: Sequence[Hit]

    @property
    def about(self) -> str:
        """Modality of the query, the array searched, and how, in one line."""
        return f"{self.query_modality} → {self.array}, searched {self.search}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, with the rank of each hit."""
        hits = [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(self.hits, 1)]
        return {**vars(self), "hits": hits}

    def __str__(self) -> str:
        """A table in aligned columns."""
        rows: list[tuple[object, ...]] = [("", "score", "start", "end", "file")]
        for rank, hit in enumerate(self.hits, 1):
            times = clock(hit.start_seconds), clock(hit.end_seconds)
            rows.append((rank, f"{hit.score:.3f}", *times, hit.source))
        sides = ("right", "right", "right", "right", "left")
        table = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=sides)
        return f"{self.about}\n{table}"


def clock(seconds: float) -> str:
    """A time as `m:ss.s`, or `h:mm:ss.s`."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"
