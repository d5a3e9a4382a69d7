"""Media sources: a path, a URL, bytes, an open file or a range of a file."""

import os
from dataclasses import dataclass
from typing import BinaryIO, Protocol


class Damage(Exception):  # noqa: N818 - what users meet is MediaError
    """Fault found while reading media; `open_media` turns it into a `MediaError` with the name.

    Its message continues after the name: "has no picture", "its audio is damaged at 2.50 s: …".
    """


class Opener(Protocol):
    """Fetches a file that may not be on this machine yet."""

    def open(self) -> int:
        """Descriptor of the file, which the caller must close."""


@dataclass(frozen=True)
class FileRange:
    """Bytes of a file, for example one member of a tar shard.

    Args:
        path: The file.
        offset: First byte.
        size: Number of bytes.
        origin: Opener of the file. None: the file is local.
    """

    path: str
    offset: int
    size: int
    origin: Opener | None = None

    def __post_init__(self) -> None:
        """Refuses ranges that cannot exist."""
        if self.offset < 0 or self.size < 0:
            raise ValueError(f"a range needs offset and size of at least 0, got {self}")

    def open(self) -> int:
        """Descriptor of the file, which the caller must close."""
        return os.open(self.path, os.O_RDONLY) if self.origin is None else self.origin.open()


MediaSource = str | os.PathLike[str] | bytes | FileRange | BinaryIO


def is_web(source: object) -> bool:
    """Whether a source is an http(s) address."""
    return isinstance(source, str) and source.startswith(("http://", "https://"))


def source_name(source: MediaSource) -> str:
    """Name of a source in messages."""
    if isinstance(source, str):
        return source
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    if isinstance(source, FileRange):
        return f"{source.path}[{source.offset}:{source.offset + source.size}]"
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    return str(getattr(source, "name", "<file object>"))
