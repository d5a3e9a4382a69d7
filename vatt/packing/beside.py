"""Captions in a file beside their media: subtitles, Whisper's JSON, or a plain text.

`talk.srt`, `talk.en.srt` and `talk.mp4.srt` belong to `talk.mp4`. Of several files the first kind
in `CAPTION_EXTENSIONS` counts, and of one kind the first by name.
"""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from vatt.errors import UserError
from vatt.packing.entries import canonical, canonical_names, segments_of_entry
from vatt.shards.record import MAX_TEXT_BYTES, Segment, parse_segments

CAPTION_EXTENSIONS = (".vtt", ".srt", ".ass", ".ssa", ".json", ".txt")
LANGUAGE = re.compile(r"\.[A-Za-z]{2,3}([-_][A-Za-z0-9]+)*$")  # `.en` or `.pt-BR` of `talk.en.srt`


def find_beside(files: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """Finds the caption file of each media file.

    Args:
        files: Paths of the media.
        others: Paths of other files of the folder.

    Returns:
        Path of a caption file by path of the media.
    """
    media: dict[str, list[str]] = {}  # paths by all names that a caption file may have
    for file in files:
        for name in (file, str(PurePosixPath(file).with_suffix(""))):
            media.setdefault(name, []).append(file)
    found: dict[str, tuple[int, str]] = {}
    for other in others:
        path = PurePosixPath(other)
        if path.suffix.lower() not in CAPTION_EXTENSIONS:
            continue
        name = str(path.with_suffix(""))
        rank = CAPTION_EXTENSIONS.index(path.suffix.lower()), other
        if name not in media:
            name = LANGUAGE.sub("", name)
        for file in media.get(name, ()):
            found[file] = min(rank, found.get(file, rank))
    return {file: other for file, (_, other) in found.items()}


def read_beside(path: Path) -> tuple[Segment, ...] | None:
    """Reads the captions of a file beside its media.

    Returns:
        Captions, blank ones included. None: the file is JSON of another kind.

    Raises:
        UserError: the file is damaged, or the times of its captions are not known to be seconds.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise UserError(f"has over {MAX_TEXT_BYTES:,} bytes: is that a text?")
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    if path.suffix.lower() == ".txt":
        return (Segment(0.0, float("inf"), " ".join(text.split())),)
    if path.suffix.lower() == ".json":
        return _read_json(text)
    return _read_subtitles(text, path.suffix[1:].lower())


def _read_json(text: str) -> tuple[Segment, ...] | None:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})") from error
    entry = {"segments": content} if isinstance(content, list) else content
    if not isinstance(entry, dict) or not {"text", "segments"} & set(canonical_names(entry)):
        return None
    return segments_of_entry(canonical(entry))


def _read_subtitles(text: str, extension: str) -> tuple[Segment, ...]:
    from pysubs2 import SSAFile
    from pysubs2.exceptions import Pysubs2Error

    try:
        subtitles = SSAFile.from_string(text, format_=extension)
    except (Pysubs2Error, ValueError) as error:
        raise UserError(f"cannot be read as .{extension} ({error})") from error
    if text.strip() and not subtitles.events:
        raise UserError(f"holds no captions in the form of .{extension}")
    return parse_segments(
        [
            {
                "start_seconds": event.start / 1000,
                "end_seconds": event.end / 1000,
                "text": " ".join(html.unescape(event.plaintext).split()),
            }
            for event in subtitles
            if not event.is_comment and not event.is_drawing
        ]
    )
