"""Tar shards: write them, and read them by the number of the sample.

A shard is a plain tar in the layout that video2dataset writes: `KEY.mp4` (or `.webm`, `.m4a`, …),
`KEY.txt` and `KEY.json`, one after the other. Its index (`shard_index.py`) says where each of them
lies, so that a sample is read without passing over the archive: the texts by one `pread` each, the
media as a `FileWindow` into the tar.
"""

import bisect
import contextlib
import io
import json
import math
import os
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from vatt.errors import MediaError, ShardError, UserError
from vatt.remote import (
    RemoteShard,
    Shard,
    find_tars,
    is_remote,
    local_or_remote,
    read_indexes_of,
    read_members,
    window_of,
)
from vatt.shard_index import (
    JSON,
    MEDIA,
    MEDIA_EXTENSIONS,
    TAR_BLOCK,
    TEXT,
    ShardIndex,
    SharedIndex,
    index_path,
    leads_outside,
    read_index,
    write_index,
    written_whole,
)

if TYPE_CHECKING:
    from vatt.media import FileWindow


MAX_TEXT_BYTES = 64 << 20  # of KEY.txt and KEY.json; a day of speech has 2 MB


@dataclass(frozen=True)
class Segment:
    """A caption and the time it belongs to, half-open.

    Args:
        start_seconds: From the start of the media file.
        end_seconds: `inf` for a caption of the whole clip.
        text: As written, not cleaned.
    """

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True)
class Record:
    """One sample as it is stored.

    Args:
        key: Name of the sample within its shard.
        shard: Path of the tar.
        media: Where the media bytes are; None for a sample without media.
        segments: Timed captions, none of them blank; empty where nothing is said.
        metadata: What else stands in `KEY.json`.
    """

    key: str
    shard: str
    media: "FileWindow | None"
    segments: tuple[Segment, ...]
    metadata: dict[str, Any] = field(default_factory=dict)


class ShardSet(Sequence[Record]):
    """All shards of a folder as one sequence of records, in the order of the shards' names.

    Holds no open file, and an index of about 66 bytes a sample, which worker processes share.

    Args:
        folder: Holds `*.tar`; a path, or an address as `vatt/remote.py` says. Missing index files
            are written beside them (kept in memory where the folder is read-only).

    Raises:
        ShardError: no such folder, no shard in it, a shard without samples, truncated, hostile or
            not a tar, or an index that belongs to another version of its shard.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = str(local_or_remote(os.fspath(folder)))
        self.shards = find_tars(folder)
        self.paths = [one if isinstance(one, Path) else one.path for one in self.shards]
        self.folder = self.paths[0].parent if is_remote(folder) else Path(folder)
        remote = [one for one in self.shards if isinstance(one, RemoteShard)]
        parts = read_indexes_of(remote) if remote else [read_index(path) for path in self.paths]
        self.shard_sizes = np.array([len(part) for part in parts], dtype=np.int64)
        self._ends = np.cumsum(self.shard_sizes).tolist()
        self._index = SharedIndex.join(parts)

    def __len__(self) -> int:
        """Number of samples in all shards."""
        return len(self._index)

    def __getitem__(self, sample: int) -> Record:  # type: ignore[override]  # no slices
        """Reads the texts of a sample; its media is not touched.

        Raises:
            IndexError: no such sample.
            MediaError: the sample's json or text is damaged.
            ShardError: the shard has changed since it was opened.
        """
        sample = self._position(sample)
        shard = self.shard(sample)
        return read_record(shard, self._index.key(sample), self._index.members[sample])

    def key(self, sample: int) -> str:
        """Name of a sample, without reading its shard."""
        return self._index.key(self._position(sample))

    def shard(self, sample: int) -> Shard:
        """The tar that holds a sample."""
        return self.shards[bisect.bisect_right(self._ends, self._position(sample))]

    def captions(self) -> Iterator[str]:
        """Every caption of the set, in order.

        Samples with a damaged json or txt are passed over: `vatt shards check` names them.
        """
        for sample in range(len(self)):
            with contextlib.suppress(MediaError):
                yield from (segment.text for segment in self[sample].segments)

    def _position(self, sample: int) -> int:
        position = sample + len(self) if sample < 0 else sample
        if not 0 <= position < len(self):
            raise IndexError(f"sample {sample} of {self.name}, which has {len(self)}")
        return position

    def __repr__(self) -> str:
        """Folder and numbers."""
        return f"ShardSet({self.name!r}: {len(self)} samples in {len(self.paths)} shards)"


class ShardWriter:
    """Writes one shard and its index.

    The shard appears under its name only when all of it is there.

    Args:
        path: `NNNNN.tar`; an existing one is replaced.

    Raises:
        ShardError: nothing was added, no space left, or the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows: dict[str, NDArray[np.int64]] = {}
        self._open_files = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None

    def __len__(self) -> int:
        """Samples added so far."""
        return len(self._rows)

    def __enter__(self) -> Self:
        """Opens a partial file beside the shard."""
        self._file = self._open_files.enter_context(written_whole(self.path))
        tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT)
        self._tar = self._open_files.enter_context(tar)
        return self

    def add(
        self,
        key: str,
        media: bytes | os.PathLike[str] | None,
        extension: str,
        text: str = "",
        metadata: dict[str, Any] | None = None,
        *,
        segments: Sequence[Segment] | None = None,
    ) -> None:
        """Appends a sample.

        Args:
            key: Name without a dot; unique in the shard.
            media: The file's bytes, or the file itself, which is copied without being read whole.
                None: no media.
            extension: Of the media, without a dot, such as `mp4`.
            text: Caption of the whole sample, `KEY.txt`; "" for none.
            metadata: Goes into `KEY.json`.
            segments: Timed captions, `"segments"` in `KEY.json`. None: the text is the only
                caption.

        Raises:
            UserError: a key that cannot be used, or an extension that is no media.
            OSError: the media file cannot be read.
            ShardError: no space left.
        """
        if self._tar is None:
            raise ShardError(
                f"use ShardWriter as a context: `with ShardWriter({str(self.path)!r}) as shard: …`"
            )
        extension = extension.lower()
        if not key or "." in PurePosixPath(key).name or key in self._rows or leads_outside(key):
            raise ShardError(
                f"{key!r} cannot be a key: keys of {self.path} must be new, relative and "
                "without a dot"
            )
        if media is not None and extension not in MEDIA_EXTENSIONS:
            raise ShardError(
                f"{extension!r} is no media extension; there are {', '.join(MEDIA_EXTENSIONS)}"
            )
        content = {**(metadata or {}), "key": key}
        if segments is not None:
            content["segments"] = [_segment_to_json(segment) for segment in segments]
        start = self._tar.offset
        members = np.full((3, 2), -1, dtype=np.int64)
        try:
            if media is not None:
                members[MEDIA] = self._add_member(f"{key}.{extension}", media)
            members[TEXT] = self._add_member(f"{key}.txt", text.encode("utf-8", "replace"))
            members[JSON] = self._add_member(f"{key}.json", json.dumps(content).encode())
        except BaseException:
            self._undo_to(start)  # so that the rest of the shard stays whole
            raise
        self._rows[key] = members

    def _add_member(self, name: str, content: bytes | os.PathLike[str]) -> tuple[int, int]:
        """Appends a file; its offset and size."""
        assert self._tar is not None
        info = tarfile.TarInfo(name)  # time and owner stay 0: the same samples give the same bytes
        if isinstance(content, bytes):
            source: BinaryIO = io.BytesIO(content)
        else:
            source = Path(content).open("rb")  # noqa: SIM115  closed two lines on
        with source:
            info.size = source.seek(0, os.SEEK_END)
            source.seek(0)
            self._tar.addfile(info, source)
        padded = -(-info.size // TAR_BLOCK) * TAR_BLOCK
        return self._tar.offset - padded, info.size

    def _undo_to(self, start: int) -> None:
        """Takes back what was written after a position in the tar."""
        assert self._tar is not None
        assert self._file is not None
        with contextlib.suppress(OSError):  # a full disk: the whole shard is about to be removed
            self._file.seek(start)
            self._file.truncate()
            self._tar.offset = start

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the finished shard in its place, or removes the partial file."""
        if error is None and not self._rows:
            error = ShardError(
                f"nothing was added to {self.path}: a shard needs at least one sample"
            )
            self._open_files.__exit__(type(error), error, None)
            raise error
        if error is None:
            index_path(self.path).unlink(missing_ok=True)  # of a shard that is being replaced
        self._open_files.__exit__(kind, error, trace)
        self._tar = None
        if error is None:
            write_index(self.path, ShardIndex.from_rows(list(self._rows.items())))


def read_record(shard: Shard, key: str, members: NDArray[np.int64]) -> Record:
    """Reads the texts of a sample.

    Args:
        shard: The tar.
        key: Name of the sample.
        members: int64 `[3, 2]`, its row of the index.

    Raises:
        MediaError: json or text of the sample is damaged.
        ShardError: the shard is shorter than its index says, or gone.
    """
    if (size := members[[JSON, TEXT], 1].max()) > MAX_TEXT_BYTES:
        reason = f"claims {size:,} bytes of json or txt; at most {MAX_TEXT_BYTES:,} are read"
        raise _damaged(shard, key, reason)
    json_bytes, text_bytes = read_members(shard, members[[JSON, TEXT]].tolist())
    metadata = _parse_metadata(shard, key, json_bytes)
    if "segments" in metadata:
        segments = _parse_segments(shard, key, metadata.pop("segments"))
    else:
        segments = (Segment(0.0, math.inf, _decode_text(shard, key, text_bytes)),)
    offset, size = members[MEDIA].tolist()
    return Record(
        key=key,
        shard=str(shard),
        media=window_of(shard, offset, size) if offset >= 0 else None,
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


def _parse_segments(shard: Shard, key: str, values: Any) -> tuple[Segment, ...]:
    try:
        return parse_segments(values)
    except UserError as error:
        raise _damaged(shard, f"{key}.json", str(error)) from error


def parse_segments(values: Any) -> tuple[Segment, ...]:
    """Segments from JSON.

    Args:
        values: A list of objects with `text`, `start_seconds` (missing: 0) and `end_seconds`
            (missing: the end of the clip).

    Raises:
        UserError: something else.
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


def _segment_to_json(segment: Segment) -> dict[str, Any]:
    end_seconds = None if math.isinf(segment.end_seconds) else segment.end_seconds
    times = {"start_seconds": segment.start_seconds, "end_seconds": end_seconds}
    return {**times, "text": segment.text}
