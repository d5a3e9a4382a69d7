"""Hits of a search: a list that notebooks show as a table with players."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex, overload

from vatt.errors import UserError
from vatt.features.media_places import MEDIA, OFFSET, SIZE, find_described
from vatt.media.source import FileRange
from vatt.system.extras import load_extra

if TYPE_CHECKING:
    import pandas


MOST_MORE = 99  # further moments of a file that are counted, each compared with those before it


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A window that was found.

    Args:
        source: Name of the file, as `vatt extract` called it.
        file: Path or address of the file at that time, or of the tar that holds it; "" if the
            features do not say.
        offset: First byte of the file in its tar; None: no tar.
        size: Size in bytes of the file in its tar; None: no tar.
        start_seconds: Start of the window, from the start of the file.
        end_seconds: End of the window, not after the end of the file.
        score: Cosine with the query, in [-1, 1].
        row: Row of the array that was searched.
        num_more: Further moments of the file, windows that do not overlap, whose scores are at
            least that of the last hit, at most 99; 0 unless the best of each file was asked for.
    """

    source: str
    file: str
    offset: int | None
    size: int | None
    start_seconds: float
    end_seconds: float
    score: float
    row: int
    num_more: int = field(default=0, compare=False)


class Hits(list[Hit]):
    """Hits, best first; at the end of a cell, a notebook shows them with players.

    Args:
        hits: Hits.
        media_folder: Folder of the media, if they were moved.

    Example:
        >>> hits = vatt.Index("index").search("a dog barks")
        >>> hits[0].source, hits[0].start_seconds
        >>> hits.to_pandas()[["source", "start_seconds", "score"]]
    """

    def __init__(self, hits: Iterable[Hit] = (), media_folder: Path | None = None) -> None:
        super().__init__(hits)
        self.media_folder = media_folder

    @overload
    def __getitem__(self, place: SupportsIndex) -> Hit: ...

    @overload
    def __getitem__(self, place: slice) -> "Hits": ...

    def __getitem__(self, place: SupportsIndex | slice) -> "Hit | Hits":
        """A hit, or some of them."""
        found = super().__getitem__(place)
        return Hits(found, self.media_folder) if isinstance(found, list) else found

    def to_pandas(self) -> "pandas.DataFrame":
        """Table with one row per hit and the fields of `Hit` as columns.

        Raises:
            UserError: pandas is not installed.
        """
        pandas = load_extra("pandas", UserError("to_pandas needs pandas: pip install pandas"))
        return pandas.DataFrame(map(asdict, self), columns=[one.name for one in fields(Hit)])

    def _repr_html_(self) -> str:
        """Table with a player for each of the first hits, whose clips it contains."""
        from vatt.search.page import hits_html

        return hits_html(self, lambda hit: media_of(hit, self.media_folder))


def media_of(hit: Hit, media_folder: Path | None) -> str | FileRange:
    """Media of a hit: a path, a URL, or bytes of a tar shard.

    Args:
        hit: Hit.
        media_folder: Folder of the media, if they were moved.

    Raises:
        MediaError: the media are missing.
    """
    place = {MEDIA: hit.file}
    if hit.offset is not None:
        place |= {OFFSET: str(hit.offset), SIZE: str(hit.size)}
    return find_described(place, hit.source, media_folder)
