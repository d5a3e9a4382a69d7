"""Records of a shard: media, captions and metadata under one key."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vatt.errors import MediaError, UserError
from vatt.media.source import FileRange
from vatt.shards.index import JSON, MEDIA, TEXT
from vatt.shards.places import Shard, range_of, read_members

MAX_TEXT_BYTES = 64 << 20  # of KEY.txt and KEY.json; a day of speech has 2 MB


@dataclass(frozen=True)
class Segment:
    """Caption with its time interval, half-open.

    Args:
        start_seconds: Start, from the start of the media file.
        end_seconds: End; `inf` for a caption of the whole file.
        text: Text as written, not normalised.
    """

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True)
class Record:
    """One entry of a shard.

    Args:
        key: Name of the sample within its shard.
        shard: Path of the tar.
        media: Position of the media in the tar; None for a sample without media.
        segments: Timed captions, none of them blank; may be empty.
        metadata: Other contents of `KEY.json`.
    """

    key: str
    shard: str
    media: FileRange | None
    segments: tuple[Segment, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


def read_record(shard: Shard, key: str, members: NDArray[np.int64]) -> Record:
    """Reads captions and metadata of a sample.

    Args:
        shard: Tar of the sample.
        key: Name of the sample.
        members: int64 `[3, 2]`, row of the sample in the index.

    Raises:
        MediaError: json or text of the sample is damaged.
        ShardError: the shard is shorter than its index says, or missing.
    """
    if (size := members[[JSON, TEXT], 1].max()) > MAX_TEXT_BYTES:
        reason = f"claims {size:,} bytes of json or txt; at most {MAX_TEXT_BYTES:,} are read"
        raise _damaged(shard, key, reason)
    json_bytes, text_bytes = read_members(shard, members[[JSON, TEXT]].tolist())
    metadata = _parse_metadata(shard, key, json_bytes)
    if "segments" in metadata:
        try:
            segments = parse_segments(metadata.pop("segments"))
        except UserError as error:
            raise _damaged(shard, f"{key}.json", str(error)) from error
    else:
        segments = (Segment(0.0, math.inf, _decode_text(shard, key, text_bytes)),)
    offset, size = members[MEDIA].tolist()
    return Record(
        key=key,
        shard=str(shard),
        media=range_of(shard, offset, size) if offset >= 0 else None,
        segments=tuple(segment for segment in segments if segment.text.strip()),
        metadata=metadata,
    )


def _damaged(shard: Shard, member: str, reason: str) -> MediaError:
    return MediaError(f"{shard}:{member}", reason)


def _decode_text(shard: Shard, key: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _damaged(shard, f"{key}.txt", f"not UTF-8 text ({error.reason})") from error


def _parse_metadata(shard: Shard, key: str, content: bytes) -> dict[str, Any]:
    try:
        metadata = json.loads(content) if content else {}
    except (ValueError, RecursionError) as error:
        raise _damaged(shard, f"{key}.json", f"not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise _damaged(shard, f"{key}.json", f"must be an object, is a {type(metadata).__name__}")
    return metadata


def parse_segments(values: Any) -> tuple[Segment, ...]:
    """Segments from JSON.

    Args:
        values: List of objects with `text`, `start_seconds` (default 0) and `end_seconds` (default:
            the end of the file).

    Raises:
        UserError: the values have another form.
    """
    if not isinstance(values, list):
        raise UserError(f"segments must be a list, got {values!r:.80}")
    return tuple(_segment_from_json(value) for value in values)


def _segment_from_json(value: Any) -> Segment:
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise UserError(
            f"a segment must have start_seconds, end_seconds and a text, got {value!r:.80}"
        )
    start, end = (value.get("start_seconds"), value.get("end_seconds"))
    try:
        start_seconds = 0.0 if start is None else float(start)
        end_seconds = math.inf if end is None else float(end)
    except (TypeError, ValueError):
        raise UserError(f"a segment's times must be seconds, got {value!r:.80}") from None
    if not (math.isfinite(start_seconds) and start_seconds <= end_seconds):
        raise UserError(f"a segment must not end before it starts, got {value!r:.80}")
    return Segment(start_seconds, end_seconds, value["text"])


def segment_to_json(segment: Segment) -> dict[str, Any]:
    """JSON form of a segment in a shard; a missing end becomes null."""
    end_seconds = None if math.isinf(segment.end_seconds) else segment.end_seconds
    times = {"start_seconds": segment.start_seconds, "end_seconds": end_seconds}
    return {**times, "text": segment.text}
