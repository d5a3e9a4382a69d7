"""Writing of tar shards."""

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from vatt.errors import ShardError
from vatt.media.folder import MEDIA_EXTENSIONS
from vatt.shards.index import JSON, MEDIA, TAR_BLOCK, TEXT, ShardIndex, leads_outside
from vatt.shards.index_file import index_path, shard_file, write_index
from vatt.shards.record import Segment, segment_to_json


class ShardWriter:
    """Writes one shard and its index.

    The shard appears under its name only when it is complete.

    Args:
        path: File to write, `NNNNN.tar`; an existing file is replaced.

    Raises:
        ShardError: nothing was added, the disk is full, or the folder cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows: dict[str, NDArray[np.int64]] = {}
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None
        self._writing = self._write()

    def __len__(self) -> int:
        """Samples added so far."""
        return len(self._rows)

    def __enter__(self) -> Self:
        """Opens a partial file beside the shard."""
        self._writing.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Moves the finished shard to its path, or removes the partial file."""
        self._writing.__exit__(*error)

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        with (
            shard_file(self.path) as self._file,
            tarfile.open(fileobj=self._file, mode="w", format=tarfile.PAX_FORMAT) as self._tar,
        ):
            yield
            if not self._rows:
                raise ShardError(
                    f"nothing was added to {self.path}: a shard needs at least one sample"
                )
            index_path(self.path).unlink(missing_ok=True)  # of a shard that is being replaced
        self._tar = None
        write_index(self.path, ShardIndex.from_rows(list(self._rows.items())))

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
            media: Bytes of the file, or its path; the file is then copied in pieces. None: no
                media.
            extension: Extension of the media without a dot, such as `mp4`.
            text: Caption of the whole sample, `KEY.txt`; "" for none.
            metadata: Content of `KEY.json`.
            segments: Timed captions, `"segments"` in `KEY.json`. None: the text is the only
                caption.

        Raises:
            UserError: the key is invalid, or the extension is not that of media.
            OSError: the media file cannot be read.
            ShardError: the disk is full.
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
            content["segments"] = [segment_to_json(segment) for segment in segments]
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
        """Removes all bytes after a position in the tar."""
        assert self._tar is not None
        assert self._file is not None
        with contextlib.suppress(OSError):  # a full disk: the whole shard is about to be removed
            self._file.seek(start)
            self._file.truncate()
            self._tar.offset = start
