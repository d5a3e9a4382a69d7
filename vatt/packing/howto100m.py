"""Captions in the formats of HowTo100M, by id of the video, whose file must be named `ID.mp4`.

Either one JSON for all videos, as `caption.json` and `raw_caption.json` of the release (times are
seconds, captions overlap)::

    {"nVbIUDjzWY4": {"start": [0.4, 2.1], "end": [4.2, 5.0], "text": ["now chop", "the onions"]}}

or a folder with one `ID.csv` a video, under the header `start,end,text`.

The JSON has several GB. It is scanned once in pieces, and the captions of a video are read when the
video is packed.
"""

import csv
import json
import math
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vatt.errors import ShardError, UserError
from vatt.shards.record import Segment, parse_segments
from vatt.system.progress import progress_bar

COLUMNS = ("start", "end", "text")
PIECE_BYTES = 4 << 20
MAX_VIDEO_BYTES = 64 << 20  # of one video's captions; a day of speech has 2 MB

_STRING = r'"(?:[^"\\]|\\.)*"'
_BEGINNING = re.compile(  # of a JSON for all videos: its first video, up to its first list
    rf'\s*\{{\s*{_STRING}\s*:\s*\{{\s*"(?:start|end|text)"\s*:\s*\['.encode(), re.DOTALL
)
_KEY = re.compile(rf"\s*,?\s*({_STRING})\s*:\s*", re.DOTALL)
_END = re.compile(r"\s*\}\s*")


class VideoJson:
    """HowTo100M's captions as one JSON file for all videos.

    Args:
        path: The file.
        ids: Ids of the videos whose captions are wanted.
        show_progress: Whether to show a progress bar while scanning the file.

    Raises:
        ShardError: the file is damaged, or contains none of the videos.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, ids: Collection[str], *, show_progress: bool = False) -> None:
        self.path = path
        self.num_videos = 0
        self._places: dict[str, tuple[int, int]] = {}
        wanted = frozenset(ids)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            with progress_bar(
                None, "captions", size, unit="B", unit_scale=True, show=show_progress
            ) as bar:
                for video, start, end in _find_videos(file):
                    self.num_videos += 1
                    if video in wanted:
                        self._places[video] = start, end - start
                    bar.update(end - bar.n)
        if not self._places:
            raise _none_fits(path, self.num_videos)
        self.num_unused = self.num_videos - len(self._places)

    def read(self, video: str) -> Any:
        """Reads the object of a video; None if there is none.

        Raises:
            UserError: the object is damaged.
            OSError: the file can no longer be read.
        """
        if video not in self._places:
            return None
        start, size = self._places[video]
        with self.path.open("rb") as file:
            file.seek(start)
            return json.loads(file.read(size))


class VideoFolder:
    """HowTo100M's captions as a folder with one csv per video.

    Args:
        path: The folder.
        ids: Ids of the videos whose captions are wanted.

    Raises:
        ShardError: the folder contains none of the videos.
    """

    def __init__(self, path: Path, ids: Collection[str]) -> None:
        self.path = path
        present = {table.stem for table in path.glob("*.csv")}
        self._ids = present & frozenset(ids)
        if not self._ids:
            raise _none_fits(path, len(present))
        self.num_unused = len(present) - len(self._ids)

    def read(self, video: str) -> Any:
        """Reads the three lists of a video; None if it has no captions."""
        if video not in self._ids:
            return None
        with (self.path / f"{video}.csv").open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"lacks the column {' and '.join(sorted(missing))}")
            try:
                rows = [[row[name] for name in COLUMNS] for row in reader]
            except csv.Error as error:
                raise UserError(f"line {reader.line_num}: {error}") from error
        return {name: [row[column] for row in rows] for column, name in enumerate(COLUMNS)}


def is_howto100m(path: Path) -> bool:
    """Whether captions are HowTo100M's, by their content."""
    if path.is_dir():
        return True
    with path.open("rb") as file:
        return _BEGINNING.match(file.read(1 << 16).removeprefix(b"\xef\xbb\xbf")) is not None


def segments_of(values: Any) -> tuple[list[Segment], int, int]:
    """Segments from the three lists of a video, in order.

    Returns:
        Segments, number of captions without words, and number of captions without usable times.

    Raises:
        UserError: the values are not three lists of equal length.
    """
    lists: list[Any] = [values.get(name) for name in COLUMNS] if isinstance(values, dict) else []
    if not lists or not all(isinstance(column, list) for column in lists):
        raise UserError(f"must have the lists start, end and text, is {values!r:.80}")
    if len({len(column) for column in lists}) > 1:
        lengths = " and ".join(str(len(column)) for column in lists)
        raise UserError(f"must have start, end and text of one length, has {lengths}")
    segments: list[Segment] = []
    num_blank = num_untimed = 0
    for start, end, text in zip(*lists, strict=True):
        if _is_blank(text):
            num_blank += 1
            continue
        try:
            segments += parse_segments([{"start_seconds": start, "end_seconds": end, "text": text}])
        except UserError:
            num_untimed += 1
    return segments, num_blank, num_untimed


def _is_blank(text: Any) -> bool:
    """Whether a caption is empty; the release writes NaN if all words were removed."""
    if isinstance(text, float):
        return math.isnan(text)
    return text is None or (isinstance(text, str) and not text.strip())


def _find_videos(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Id of each video, with start and end of its object in the file, in bytes."""
    decode = json.JSONDecoder().raw_decode
    # Latin-1 has a character for every byte: positions in the text are positions in the file.
    text = file.read(PIECE_BYTES).decode("latin-1")
    place, position = 0, text.index("{") + 1
    while True:
        key = _KEY.match(text, position)
        try:
            end = decode(text, key.end())[1] if key else len(text)
        except json.JSONDecodeError:
            end = len(text)
        except RecursionError:
            raise _damaged(file, place + position) from None
        if key and end < len(text):
            yield json.loads(key[1].encode("latin-1")), place + key.end(), place + end
            position = end
            continue
        rest = text[position:]  # stops in the middle of a video, unless it is the end
        piece = file.read(max(PIECE_BYTES, len(rest)))
        if not piece and _END.fullmatch(rest):
            return
        if not piece or len(rest) > MAX_VIDEO_BYTES:
            raise _damaged(file, place + position)
        place, position, text = place + position, 0, rest + piece.decode("latin-1")


def _damaged(file: BinaryIO, place: int) -> ShardError:
    return ShardError(
        f"{file.name} is truncated or damaged after byte {place}: copy or unpack it again"
    )


def _none_fits(path: Path, num_videos: int) -> ShardError:
    return ShardError(
        f"{path} has captions of {num_videos} videos, and none of them is there: media files must "
        "be called by the id of their video, ID.mp4"
    )
