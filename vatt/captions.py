"""Caption files of a media folder: `captions.jsonl` or `captions.csv`.

Paths in them are relative to the folder.

jsonl has one line a media file; further keys become metadata::

    {"file": "a.mp4",
     "segments": [{"start_seconds": 0.4, "end_seconds": 2.0, "text": "a dog barks"}]}
    {"file": "b.mp4", "text": "a caption of the whole clip"}

csv has one line a caption, under the header `file,start_seconds,end_seconds,text`; without times a
caption belongs to the whole clip, and further columns become metadata of the file.
"""

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vatt.shard_index import ShardError, leads_outside
from vatt.shards import Segment, parse_segments

CAPTION_FILES = ("captions.jsonl", "captions.csv")
ENTRY_KEYS = ("file", "segments", "text")
SHOWN_FAULTS = 20  # in printed reports; the report objects hold all
CSV_COLUMNS = ("file", "start_seconds", "end_seconds", "text")


@dataclass(frozen=True)
class Fault:
    """Something that was left out, and why.

    Args:
        name: File, sample, or line of a caption file.
        reason: What is wrong with it.
    """

    name: str
    reason: str


def fault_lines(faults: Sequence[Fault], verdict: str) -> list[str]:
    """The first faults as lines of a printed report, under a word such as `left out`."""
    lines = [f"  {verdict}: {fault.name}: {fault.reason}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  … and {len(faults) - SHOWN_FAULTS} more")
    return lines


@dataclass
class MediaText:
    """What a caption file says about one media file."""

    segments: list[Segment] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


def find_captions(folder: Path, captions: str | os.PathLike[str] | None = None) -> Path | None:
    """The caption file of a media folder, if it has one.

    Args:
        folder: Where to look for it under its usual names.
        captions: The file, if it is known; it must then be there.

    Raises:
        ShardError: more than one, or not there.
    """
    if captions is not None:
        if not Path(captions).is_file():
            raise ShardError(f"no caption file {captions}: correct the path")
        return Path(captions)
    found = [folder / name for name in CAPTION_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ShardError(f"{folder} has {' and '.join(CAPTION_FILES)}: remove one of them")
    return found[0] if found else None


def read_captions(path: Path) -> tuple[dict[str, MediaText], list[Fault]]:
    """Reads a caption file.

    Returns:
        By path relative to the folder, `/` between its parts: what is said; and the lines that had
        to be left out.

    Raises:
        ShardError: the file cannot be read at all.
    """
    texts: dict[str, MediaText] = {}
    faults: list[Fault] = []
    entries = _csv_entries if path.suffix == ".csv" else _jsonl_entries
    try:
        for line, entry in entries(path):
            try:
                _add_entry(texts, entry, repeats=path.suffix == ".csv")
            except ValueError as error:
                faults.append(Fault(f"{path.name}:{line}", str(error)))
    except UnicodeDecodeError as error:
        raise ShardError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except OSError as error:
        raise ShardError(f"{path} cannot be read: {error.strerror}") from error
    return texts, faults


def _add_entry(texts: dict[str, MediaText], entry: Any, *, repeats: bool) -> None:
    """Takes one line in; `repeats`: several lines may be about the same file."""
    if isinstance(entry, ValueError):
        raise entry
    if not isinstance(entry, dict) or not isinstance(entry.get("file"), str) or not entry["file"]:
        raise ValueError('needs a "file"')
    name = entry["file"].replace("\\", "/")
    if leads_outside(name):
        raise ValueError(f"{name!r} leads out of the folder: give a path inside it")
    name = str(PurePosixPath(name))
    if name in texts and not repeats:
        raise ValueError(f"{name!r} was described by an earlier line already")
    segments = _entry_segments(entry)
    text = texts.setdefault(name, MediaText())
    text.segments += segments
    for key, value in entry.items():
        if key not in ENTRY_KEYS:
            text.metadata.setdefault(key, value)


def _entry_segments(entry: dict[str, Any]) -> list[Segment]:
    text = entry.get("text")
    whole_clip = [] if text is None else [{"text": text}]
    segments = parse_segments(entry.get("segments") or whole_clip)
    return [segment for segment in segments if segment.text.strip()]


def _jsonl_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """Line number and content of each line; a `ValueError` in its place where it is no JSON."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line.decode("utf-8-sig"))
                except (ValueError, RecursionError) as error:
                    yield number, ValueError(f"is not JSON ({error})")


def _csv_entries(path: Path) -> Iterator[tuple[int, Any]]:
    """As `_jsonl_entries`, each line in the form that a line of jsonl has."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        missing = {"file", "text"} - set(reader.fieldnames or ())
        if missing:
            raise ShardError(
                f"{path} lacks the column {' and '.join(sorted(missing))}: its first line must "
                f"name {','.join(CSV_COLUMNS)}, and names "
                f"{','.join(reader.fieldnames or ()) or 'nothing'}"
            )
        try:
            for row in reader:
                yield reader.line_num, _csv_entry(row)
        except csv.Error as error:
            raise ShardError(f"{path}, line {reader.line_num}: {error}: repair the file") from error


def _csv_entry(row: dict[str | None, Any]) -> dict[str, Any] | ValueError:
    if None in row:  # DictReader's key for what the header has no column for
        return ValueError("has more columns than the header: put quotes around a text with commas")
    start, end = (row.get(name) or None for name in ("start_seconds", "end_seconds"))
    segment = {"start_seconds": start, "end_seconds": end, "text": row["text"] or ""}
    further = {str(name): value for name, value in row.items() if name not in CSV_COLUMNS}
    return {"file": row["file"], "segments": [segment], **further}
