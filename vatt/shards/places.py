"""Shards by their place: a local folder or a remote address."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vatt.errors import ShardError
from vatt.media.folder import walk_media
from vatt.media.source import FileRange
from vatt.shards.index_file import find_shards, list_shards
from vatt.shards.listing import list_remote
from vatt.shards.remote import RemoteShard

Shard = Path | RemoteShard


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is named by an address."""
    return isinstance(folder, str) and re.match(r"[a-z][a-z0-9+.-]+://", folder) is not None


def local_or_remote(folder: str) -> Path | str:
    """A folder as given on a command line: paths are paths, addresses stay as they are."""
    return folder if is_remote(folder) else Path(folder)


def find_tars(folder: str | os.PathLike[str]) -> Sequence[Shard]:
    """Shards of a folder or address, sorted by name.

    Raises:
        ShardError: no such folder, or none in it; it cannot be listed or reached.
    """
    place = local_or_remote(os.fspath(folder))
    return find_shards(place) if isinstance(place, Path) else list_remote(place)


def holds_shards_only(source: Path, out: Path | None) -> bool:
    """Whether a folder's tars are to be indexed: it has some, and no media to build others from.

    Args:
        source: The folder.
        out: Folder of the result. With None or `source`, media beside the tars do not count.
    """
    if not list_shards(source):
        return False
    in_place = out is None or out.resolve() == source.resolve()
    return in_place or next(walk_media(source), None) is None


def stamp_of(shard: Shard) -> tuple[str | int, ...]:
    """Name, size and time of change or version: differs when the shard has changed."""
    if isinstance(shard, RemoteShard):
        return (shard.path.name,)  # holds size and version
    status = shard.stat()
    return (shard.name, status.st_size, status.st_mtime_ns)


def open_shard(shard: Shard) -> int:
    """A descriptor of a shard, local or remote."""
    return shard.open() if isinstance(shard, RemoteShard) else os.open(shard, os.O_RDONLY)


def range_of(shard: Shard, offset: int, size: int) -> FileRange:
    """Some bytes of a shard; those of a remote one are downloaded when it is opened."""
    if isinstance(shard, RemoteShard):
        return FileRange(str(shard.path), offset, size, shard)
    return FileRange(str(shard), offset, size)


def read_members(shard: Shard, places: list[list[int]]) -> list[bytes]:
    """The bytes of some members of a shard.

    Args:
        shard: Local or remote.
        places: Offset and size of each; offset -1: absent, gives b"".

    Raises:
        ShardError: the shard is shorter than that, or gone.
    """
    try:
        file = open_shard(shard)
    except OSError as error:
        raise ShardError(f"{shard} cannot be read any more: {error.strerror}") from error
    try:
        contents = [os.pread(file, size, offset) if offset >= 0 else b"" for offset, size in places]
    except OSError as error:
        raise ShardError(
            f"{shard} cannot be read ({error.strerror}): delete its index, and copy it again"
        ) from error
    finally:
        os.close(file)
    if any(
        len(c) < size for c, (offset, size) in zip(contents, places, strict=True) if offset >= 0
    ):
        raise ShardError(
            f"{shard} has become shorter than its index says: it changed while it was in use; "
            "start again"
        )
    return contents
