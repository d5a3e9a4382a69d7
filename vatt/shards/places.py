"""Access to shards in a local folder or at a remote address."""

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
    """Whether a folder is given by an address."""
    return isinstance(folder, str) and re.match(r"[a-z][a-z0-9+.-]+://", folder) is not None


def local_or_remote(folder: str) -> Path | str:
    """Folder from a command line: a path becomes a `Path`, an address remains a string."""
    return folder if is_remote(folder) else Path(folder)


def find_tars(folder: str | os.PathLike[str]) -> Sequence[Shard]:
    """Shards of a folder or address, sorted by name.

    Raises:
        ShardError: the folder does not exist, has no tars, or cannot be listed or reached.
    """
    place = local_or_remote(os.fspath(folder))
    return find_shards(place) if isinstance(place, Path) else list_remote(place)


def holds_shards_only(source: Path, out: Path | None) -> bool:
    """Whether a folder has tars to index, and no media to build shards from.

    Args:
        source: The folder.
        out: Folder of the result. If it is None or `source`, media beside the tars do not count.
    """
    if not list_shards(source):
        return False
    in_place = out is None or out.resolve() == source.resolve()
    return in_place or next(walk_media(source), None) is None


def stamp_of(shard: Shard) -> tuple[str | int, ...]:
    """Name, size, and modification time or version of a shard; changes when the shard changes."""
    if isinstance(shard, RemoteShard):
        return (shard.path.name,)  # holds size and version
    status = shard.stat()
    return (shard.name, status.st_size, status.st_mtime_ns)


def open_shard(shard: Shard) -> int:
    """Descriptor of a local or remote shard."""
    return shard.open() if isinstance(shard, RemoteShard) else os.open(shard, os.O_RDONLY)


def range_of(shard: Shard, offset: int, size: int) -> FileRange:
    """Byte range of a shard; a remote shard is downloaded when the range is opened."""
    if isinstance(shard, RemoteShard):
        return FileRange(str(shard.path), offset, size, shard)
    return FileRange(str(shard), offset, size)


def read_members(shard: Shard, places: list[list[int]]) -> list[bytes]:
    """Reads the bytes of some members of a shard.

    Args:
        shard: Local or remote shard.
        places: Offset and size of each member; offset -1 is an absent member and gives b"".

    Raises:
        ShardError: the shard is too short or missing.
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
