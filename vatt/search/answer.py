"""Answer to a query, as a table and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tabulate import tabulate

from vatt.search.hits import MOST_MORE, Hit
from vatt.search.scale import Scale


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Hits of a query, and how they were found.

    Args:
        query: Text, or the path or URL of a file.
        query_modality: `text`, or the part of the file that was used: `video` or `audio`.
        array: Name of the array that was searched.
        search: `exactly` or `approximately`.
        hits: Hits, best first.
        scale: Scores of this query over the whole array. None: the array is too small.
    """

    query: str
    query_modality: str
    array: str
    search: Literal["exactly", "approximately"]
    hits: Sequence[Hit]
    scale: Scale | None = None

    @property
    def about(self) -> str:
        """Modality of the query, the array searched, and how, in one line."""
        return f"{self.query_modality} → {self.array}, searched {self.search}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON, with the rank of each hit."""
        hits = [
            {"rank": rank, **asdict(hit), "z": self.z(hit)} for rank, hit in enumerate(self.hits, 1)
        ]
        return {**vars(self), "hits": hits, "scale": self.scale and asdict(self.scale)}

    def to_rows(self) -> list[tuple[object, ...]]:
        """Header and rows of a CSV file, one per hit."""
        names = ("source", "file", "start_seconds", "end_seconds", "score", "z", "num_more")
        rows: list[tuple[object, ...]] = [("rank", *names)]
        for rank, hit in enumerate(self.hits, 1):
            values = asdict(hit) | {"z": self.z(hit)}
            cells = (values[name] for name in names)
            rows.append((rank, *(round(c, 6) if isinstance(c, float) else c for c in cells)))
        return rows

    def z(self, hit: Hit) -> float | None:
        """Standard deviations by which a hit is above the mean of all windows."""
        return None if self.scale is None else self.scale.z(hit.score)

    def __str__(self) -> str:
        """A table in aligned columns."""
        rows: list[tuple[object, ...]] = [("", "score", "z", "start", "end", "file")]
        for rank, hit in enumerate(self.hits, 1):
            z = self.z(hit)
            times = clock(hit.start_seconds), clock(hit.end_seconds)
            score = f"{hit.score:.3f}", "" if z is None else f"{z:.1f}"
            rows.append((rank, *score, *times, f"{hit.source}{more_moments(hit, '  ')}"))
        sides = ("right", "right", "right", "right", "right", "left")
        table = tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=sides)
        lines = [self.about, table]
        if self.scale is not None:
            lines.append(f"z: standard deviations above the mean score; {self.scale}")
        return "\n".join(lines)


def more_moments(hit: Hit, before: str = "") -> str:
    """`+4 more moments in this file`, or "" if there are none."""
    if not hit.num_more:
        return ""
    more = "or more" if hit.num_more == MOST_MORE else "more"
    return f"{before}+{hit.num_more} {more} moment{'s' * (hit.num_more > 1)} in this file"


def clock(seconds: float) -> str:
    """A time as `m:ss.s`, or `h:mm:ss.s`."""
    tenths = round(10 * seconds)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 10:02d}.{rest % 10}"
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"
