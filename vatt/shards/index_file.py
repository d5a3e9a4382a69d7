"""Index files: positions of a tar's samples, read from its headers and stored beside it.

`00000.tar.index` is a safetensors file with the arrays of `ShardIndex`, and with the size and time
of the tar that it describes.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from vatt.errors import ShardError
from vatt.shards.index import ShardIndex, scan_shard
from vatt.system.files import NO_SPACE, atomic_file, atomic_folder

INDEX_SUFFIX = ".index"  # 00000.tar → 00000.tar.index
INDEX_VERSION = "1"


def find_shards(folder: Path) -> list[Path]:
    """Tars of a folder, sorted by name; at least one.

    Raises:
        ShardError: the folder does not exist or has no tars.
    """
    if not folder.exists():
        raise ShardError(
            f"no shard folder {folder}: correct the path, or make it with "
            f"`vatt shards build MEDIA {folder}`"
        )
    if not folder.is_dir():
        raise ShardError(f"{folder} is a file: give the folder that holds the shards")
    paths = list_shards(folder)
    if not paths:
        raise ShardError(
            f"{folder} holds no shards (*.tar): if it holds media, make shards with "
            f"`vatt shards build {folder} OUT`"
        )
    return paths


def list_shards(folder: Path) -> list[Path]:
    """Tars of a folder, sorted by name; may be empty."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def read_index(shard: Path) -> ShardIndex:
    """Index of a shard: the file beside it if that is up to date, else made from the headers.

    The index of a shard that was copied or touched is kept if the shard's content matches it.

    Raises:
        ShardError: see `scan_shard`; or the shard does not match its index.
    """
    index, is_stored = find_index(shard)
    if not is_stored:
        with contextlib.suppress(OSError):  # a read-only folder: the index stays in memory
            write_index(shard, index)
    return index


def find_index(shard: Path) -> tuple[ShardIndex, bool]:
    """Index of a shard, and whether the file beside it is up to date.

    Raises:
        ShardError: see `read_index`.
    """
    stored = load_index(shard)
    if stored is not None and stored[0] == _stamp(shard):
        return stored[1], True
    index = scan_shard(shard)
    if stored is not None and not index.same_as(stored[1]):
        raise ShardError(
            f"{index_path(shard)} is stale: {shard} has changed since it was made. If the change "
            "is wanted, delete the index and start again; a resumed run then sees other samples"
        )
    return index, False


def index_path(shard: Path) -> Path:
    """Path of the index of a shard."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _stamp(shard: Path) -> dict[str, str]:
    """Size and time of a shard, which an up-to-date index repeats."""
    try:
        status = shard.stat()
    except OSError as error:
        link = f", a link to {shard.readlink()}," if shard.is_symlink() else ""
        raise ShardError(f"{shard}{link} cannot be read: {error.strerror}") from error
    return {
        "version": INDEX_VERSION,
        "size": str(status.st_size),
        "mtime_ns": str(status.st_mtime_ns),
    }


@contextlib.contextmanager
def shard_file(path: Path) -> Iterator[BinaryIO]:
    """`atomic_file` in a folder of shards.

    Raises:
        ShardError: the disk is full.
    """
    try:
        with atomic_file(path) as file:
            yield file
    except OSError as error:
        if error.errno in NO_SPACE:
            raise ShardError(
                f"no space left to write {path} ({error.strerror}): free some, or choose a folder "
                "on another disk"
            ) from error
        raise


@contextlib.contextmanager
def shard_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """`atomic_folder` for shards.

    Args:
        path: Folder to create, or an empty folder.
        replace: Whether `path` may have content, which is removed at the end.

    Raises:
        ShardError: the folder cannot be written.
    """
    try:
        with atomic_folder(path, replace=replace) as folder:
            yield folder
    except OSError as error:
        raise ShardError(f"{path} cannot be written: {error.strerror or error}") from error


def write_index(shard: Path, index: ShardIndex) -> None:
    """Writes the index of a finished shard beside it."""
    with shard_file(index_path(shard)) as file:
        file.write(save_arrays(index.arrays(), metadata=_stamp(shard)))


def load_index(shard: Path) -> tuple[dict[str, str], ShardIndex] | None:
    """Stamp and index from a shard's index file; None if this version cannot read it."""
    path = index_path(shard)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as stored:
            stamp = dict(stored.metadata() or {})
            if stamp.get("version") != INDEX_VERSION:
                return None
            index = ShardIndex(
                **{name: stored.get_tensor(name) for name in ("keys", "key_ends", "members")}
            )
            return (stamp, index) if index.fits(int(stamp["size"])) else None
    # a damaged index says nothing about the shard: it is made again
    except (SafetensorError, LookupError, TypeError, ValueError):
        return None
