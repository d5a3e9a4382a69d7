"""Lines of caption files and transcripts, with the names and times that other programs write.

Whisper and its relatives write `start` and `end`, whisper.cpp `timestamps` and `offsets`, the
pipeline of transformers `chunks` with a `timestamp`; tables say `caption` or `filename`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from vatt.errors import UserError
from vatt.shards.record import Segment, parse_segments

COLUMNS = ("file", "start_seconds", "end_seconds", "text")
SYNONYMS = {
    "file": ("filename", "file_name", "path", "filepath", "file_path", "video", "audio", "media"),
    "start_seconds": ("start", "begin", "start_time", "start_sec", "begin_seconds", "start_s"),
    "end_seconds": ("end", "stop", "end_time", "end_sec", "stop_seconds", "end_s"),
    "text": ("caption", "sentence", "description", "transcript"),
    "segments": ("chunks", "transcription"),
}
ENTRY_KEYS = ("segments", *COLUMNS)
# a key that speaks of times but is none of the known ones
TIME_KEY = re.compile(
    r"(?i)(start|begin|end|stop|from|to|onset|offset|time|timestamp)s?"
    r"([_ ]?(ms|msec|milliseconds|us|ns|s|secs?|seconds|frames?|time|timestamp))?$"
)
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d*)?)$")


def canonical_names(keys: Iterable[str]) -> list[str]:
    """Keys of an entry, or columns of a table, under the names of `COLUMNS` and `segments`.

    Raises:
        UserError: two keys mean the same.
    """
    names = list(keys)
    for name, synonyms in SYNONYMS.items():
        if name not in names:
            found = [
                place for place, key in enumerate(names) if key.strip().lower() in (name, *synonyms)
            ]
            if len(found) > 1:
                both = " and ".join(repr(names[place]) for place in found)
                raise UserError(f"has {both}: name the right one {name!r}")
            for place in found:
                names[place] = name
    return names


def canonical(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry under canonical names.

    Raises:
        UserError: two keys mean the same.
    """
    return dict(zip(canonical_names(entry), entry.values(), strict=True))


def segments_of_entry(entry: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Captions of an entry with canonical names.

    Args:
        entry: Object with `segments`, or with one `text` and perhaps its times.

    Raises:
        UserError: a caption has another form, or its times are not known to be seconds.
    """
    segments = entry.get("segments")
    if not segments:
        segments = [entry] if "text" in entry else []
    if isinstance(segments, list):
        segments = [_segment(value) for value in segments]
    return parse_segments(segments)


def _segment(value: Any) -> Any:
    """A caption in the form that `parse_segments` reads."""
    if not isinstance(value, dict):
        return value
    caption = canonical(value)
    pair = caption.get("timestamp") or caption.get("timestamps")
    if isinstance(pair, dict):  # whisper.cpp
        pair = [pair.get("from"), pair.get("to")]
    if isinstance(pair, list | tuple) and len(pair) == 2:
        caption = {"start_seconds": pair[0], "end_seconds": pair[1], **caption}
    times = {name: caption.get(name) for name in COLUMNS[1:3]}
    if not times.keys() & caption.keys():
        unknown = [key for key in caption if TIME_KEY.match(key)]
        if unknown:
            raise UserError(
                f"has {unknown[0]!r}, which may be a time: give times in seconds as start_seconds "
                "and end_seconds"
            )
    seconds = {name: _seconds(time) for name, time in times.items()}
    text = "" if caption.get("text", "") is None else caption.get("text")  # empty cell of parquet
    return {"text": text, **seconds}


def _seconds(time: Any) -> Any:
    """A time in seconds; what is no time is returned as it is."""
    if not isinstance(time, str):
        return time
    if not time.strip():
        return None
    clock = CLOCK.match(time.strip())
    if clock is None:
        return time
    hours, minutes, seconds = clock.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
