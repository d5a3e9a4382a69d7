"""Captions of a media folder: one file for all media, or a file beside each of them.

The first is `captions.jsonl`, `captions.csv` or `captions.parquet`; paths in it are relative to the
folder. Media that it does not name have the captions of the file beside them (`beside.py`).

jsonl has one line per media file; further keys become metadata::

    {"file": "a.mp4",
     "segments": [{"start_seconds": 0.4, "end_seconds": 2.0, "text": "a dog barks"}]}
    {"file": "b.mp4", "text": "a caption of the whole clip"}

or one per caption: `{"file": "a.mp4", "start_seconds": 0.4, "end_seconds": 2.0, "text": "a dog"}`.

csv has one line per caption, under the header `file,start_seconds,end_seconds,text`. A caption
without times belongs to the whole file. Further columns become metadata of the file. tsv (with
tabs) and parquet (read by the package pyarrow) have the same columns. `entries.py` lists other
names that keys and columns may have.

The captions of HowTo100M (`howto100m.py`) name videos by id instead of by file.
"""

import json
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vatt.errors import Fault, ShardError, UserError
from vatt.packing.beside import read_beside
from vatt.packing.entries import (
    ENTRY_KEYS,
    SYNONYMS,
    canonical,
    canonical_names,
    segments_of_entry,
)
from vatt.packing.howto100m import VideoFolder, VideoJson, is_howto100m, segments_of
from vatt.shards.index import leads_outside
from vatt.shards.record import Segment
from vatt.system.bounds import check_parquet
from vatt.system.csv_rows import read_table
from vatt.system.extras import load_extra

CAPTION_FILES = ("captions.jsonl", "captions.csv", "captions.tsv", "captions.parquet")
NEEDED = ("file", "text")  # columns of a table
CAPTION_KEYS = ("segments", "text")  # of a line of jsonl
PARQUET_ROWS = 10_000  # read at a time
PARQUET_MARK = b"PAR1"  # first four bytes of every parquet file


@dataclass
class MediaText:
    """Captions and metadata of one media file."""

    segments: list[Segment] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Captions:
    """Captions of the media of a folder.

    Args:
        texts: Texts of each media file that the caption file names, by path relative to the media
            folder, with `/` as separator and composed letters.
        faults: Lines that were left out, with reasons.
        num_blank: Number of captions without words, which were dropped.
        videos: Captions of HowTo100M, which are read when needed; `texts` is then empty.
        source: Name of the caption file.
        beside: Files beside media, which are read when needed, by path of the media.
        has_caption_keys: Whether any line says where its captions are, even if it has none.
        num_media: Number of media with captions so far, by `source` or extension of their files.
        num_ignored: Number of files that hold no captions, by extension.
    """

    texts: dict[str, MediaText] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    num_blank: int = 0
    videos: VideoJson | VideoFolder | None = None
    source: str = ""
    beside: dict[str, Path] = field(default_factory=dict)
    has_caption_keys: bool = False
    num_media: Counter[str] = field(default_factory=Counter)
    num_ignored: Counter[str] = field(default_factory=Counter)

    @property
    def num_unused(self) -> int:
        """Number of videos in HowTo100M's captions that the media folder lacks."""
        return self.videos.num_unused if self.videos else 0

    def read_text(self, file: str) -> MediaText:
        """Reads the captions of a media file; adds faults to `faults`."""
        name = same_name(file)
        if self.videos is not None:
            text = self._read_video(self.videos, PurePosixPath(file).stem)
        elif name in self.beside:
            text = self._read_beside(self.beside[name])
        else:
            text = self.texts.get(name, MediaText())
        if text.segments:
            beside = self.beside.get(name)
            self.num_media[beside.suffix.lower() if beside else self.source] += 1
        return text

    def _read_video(self, videos: VideoJson | VideoFolder, video: str) -> MediaText:
        name = f"{videos.path.name}:{video}"
        try:
            values = videos.read(video)
            if values is None:
                return MediaText()
            segments, num_blank, num_untimed = segments_of(values)
        except (ValueError, RecursionError, OSError) as error:
            unread = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else ""
            self.faults.append(Fault(name, unread or str(error)))
            return MediaText()
        self.num_blank += num_blank
        if num_untimed:
            reason = f"{num_untimed} captions are no text or have no usable times"
            self.faults.append(Fault(name, reason))
        return MediaText(segments)

    def _read_beside(self, path: Path) -> MediaText:
        text = MediaText()
        try:
            segments = read_beside(path)
        except UserError as error:
            self.faults.append(Fault(path.name, str(error)))
            return text
        if segments is None:
            self.num_ignored[path.suffix.lower()] += 1
        else:
            self.add_segments(text, segments)
        return text

    def add_segments(self, text: MediaText, segments: Sequence[Segment]) -> None:
        """Adds captions to those of a media file; blank ones are only counted."""
        spoken = [segment for segment in segments if segment.text.strip()]
        self.num_blank += len(segments) - len(spoken)
        text.segments += spoken


def same_name(path: str) -> str:
    """A path with composed letters (NFC): macOS writes `é` into names as `e` and an accent."""
    return unicodedata.normalize("NFC", path)


def find_captions(folder: Path, captions: str | os.PathLike[str] | None = None) -> Path | None:
    """Finds the caption file of a media folder, if it has one.

    Args:
        folder: Folder to search for the usual names.
        captions: Known path of the file, or of HowTo100M's folder, which must exist. None: search.

    Raises:
        ShardError: there are several files, or the given one does not exist.
    """
    if captions is not None:
        if not Path(captions).exists():
            raise ShardError(f"no caption file {captions}: correct the path")
        return Path(captions)
    found = (path for path in folder.iterdir() if path.name.lower() in CAPTION_FILES)
    paths = [path for path in found if path.is_file()]
    paths.sort(key=lambda path: CAPTION_FILES.index(path.name.lower()))
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise ShardError(f"{folder} has {names}: leave one of them, or name it with --captions")
    return paths[0] if paths else None


def read_captions(
    path: Path, files: Sequence[str] = (), *, show_progress: bool = False
) -> Captions:
    """Reads a caption file, or an index of it.

    Args:
        path: Caption file. A csv is recognised by its name, other formats by their content.
        files: Media files; for HowTo100M, only their captions are read.
        show_progress: Whether to show a progress bar while reading HowTo100M's JSON.

    Raises:
        ShardError: the file cannot be read.
        UserError: the file is parquet, and pyarrow is not installed.
    """
    captions = Captions(source=path.name)
    try:
        if is_howto100m(path):
            ids = {PurePosixPath(file).stem for file in files}
            captions.videos = (
                VideoFolder(path, ids)
                if path.is_dir()
                else VideoJson(path, ids, show_progress=show_progress)
            )
            return captions
        entries, repeats = _entries(path, captions.faults)
        for place, entry in entries:
            try:
                _add_entry(captions, entry, repeats=repeats)
            except UserError as error:
                captions.faults.append(Fault(f"{path.name}:{place}", str(error)))
        others = {key for text in captions.texts.values() for key in text.metadata}
        if others and not captions.has_caption_keys:
            found = ", ".join(sorted(others)[:3])
            reason = f'no line has "segments" or "text", where captions stand, but {found}'
            captions.faults.append(Fault(path.name, reason))
    except UnicodeDecodeError as error:
        raise ShardError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror or error}") from error
    return captions


def _entries(path: Path, faults: list[Fault]) -> tuple[Iterator[tuple[int, Any]], bool]:
    """Entries with their line numbers, and whether several may describe the same media."""
    with path.open("rb") as file:
        beginning = file.read(len(PARQUET_MARK))
    if beginning == PARQUET_MARK:
        return _parquet_entries(path), True
    if path.suffix.lower() in (".csv", ".tsv"):
        return _csv_entries(path, faults), True
    return _jsonl_entries(path), False


def _add_entry(captions: Captions, entry: Any, *, repeats: bool) -> None:
    """Adds one line; `repeats`: several lines may describe the same file."""
    if isinstance(entry, UserError):
        raise entry
    entry = canonical(entry) if isinstance(entry, dict) else {}
    if not isinstance(entry.get("file"), str) or not entry["file"]:
        raise UserError('needs a "file"')
    name = entry["file"].replace("\\", "/")
    if leads_outside(name):
        raise UserError(f"{name!r} leads out of the folder: give a path inside it")
    name = same_name(str(PurePosixPath(name)))
    if name in captions.texts and not (repeats or "start_seconds" in entry):
        raise UserError(f"{name!r} was described by an earlier line already")
    text = captions.texts.setdefault(name, MediaText())
    captions.add_segments(text, segments_of_entry(entry))
    captions.has_caption_keys |= not entry.keys().isdisjoint(CAPTION_KEYS)
    for key, value in entry.items():
        if key not in ENTRY_KEYS:
            text.metadata.setdefault(key, value)


def _jsonl_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and content of each line, or a `UserError` if a line is not JSON."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, UserError(f"is not JSON ({error})")


def _csv_entries(path: Path, faults: list[Fault]) -> Iterator[tuple[int, Any]]:
    """Line number and content of each row, in the form of a line of jsonl."""
    unfit: list[Fault] = []
    try:
        yield from read_table(path, NEEDED, unfit, rename=_columns)
    except UserError as error:
        raise ShardError(str(error)) from error
    faults += [
        Fault(f"{path.name}:{fault.where.removeprefix('line ')}", fault.reason) for fault in unfit
    ]


def _parquet_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Row number from 1 and content of each row, in the form of a line of jsonl."""
    need = f'reading {path} needs the package pyarrow: pip install "vatt[parquet]"'
    pyarrow = load_extra("pyarrow", UserError(need))
    parquet = load_extra("pyarrow.parquet", UserError(need))
    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            check_parquet(path, table.metadata, error=ShardError)
            names = _columns(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, dict(zip(names, map(_plain, row.values()), strict=True))
    except UserError as error:
        raise ShardError(f"{path} {error}") from error
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise ShardError(f"{path} is damaged or no parquet ({reason}): write it again") from error


def _plain(value: Any) -> Any:
    """Cell as a JSON value: NaN (pandas' empty cell) is None; times and bytes become text."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return str(value)


def _columns(header: Sequence[str]) -> list[str]:
    """Columns of a table under canonical names.

    Raises:
        UserError: two columns mean the same, or a needed one is missing.
    """
    names = canonical_names(header)
    missing = [name for name in NEEDED if name not in names]
    if missing:
        needs = "; ".join(f"{name} (or {', '.join(SYNONYMS[name])})" for name in missing)
        raise UserError(
            f"lacks the column {' and '.join(missing)}: its header must name {needs}, and names "
            f"{','.join(header)[:200] or 'nothing'}"
        )
    return names
