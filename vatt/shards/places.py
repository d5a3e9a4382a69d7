"""Access to shards in a local folder or at a remote address."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vatt.errors import ShardError
from vatt.media.folder import walk_media
from vatt.media.source import FileRange, is_web
from vatt.shards.cache import cache_folder
from vatt.shards.index import leads_outside
from vatt.shards.index_file import INDEX_SUFFIX, find_shards, list_shards
from vatt.shards.remote import RemoteShard, in_threads
from vatt.shards.stores import (
    checksum_of,
    faults,
    forget_listing,
    open_store,
    persist,
    place_of,
    read_if_there,
    version_of,
    with_suffix,
    without_query,
)

Shard = Path | RemoteShard
LIST_NAME = "shards.txt"  # names of a web folder's tars, one a line


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
        file = range_of(shard, 0, 0).open()
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


def list_remote(address: str) -> list[RemoteShard]:
    """Tars at an address, sorted by name.

    Args:
        address: Address of a folder, or of tars, such as `https://host/shards/{00000..00009}.tar`.
            In a folder on a web server, `shards.txt` or the links of the page name the tars.

    Raises:
        ShardError: there are no tars, or the address cannot be listed or reached.
        UserError: the package for such addresses is missing.
    """
    address = address.rstrip("/")
    store, folder = open_store(address)
    details: dict[str, dict[str, Any]] = {}
    if without_query(address).endswith(".tar"):
        addresses = _expand(address)
    elif is_web(address):
        addresses = _list_web(store, address)
    else:
        forget_listing(store, folder)
        listed = persist(address, lambda: store.ls(folder, detail=True))
        details = {PurePosixPath(one["name"]).name: one for one in listed}
        addresses = [f"{address}/{name}" for name in details if name.endswith(".tar")]
        addresses = [one for one in addresses if not one.rpartition("/")[2].startswith(".")]
    if not addresses:
        raise ShardError(f"{without_query(address)} holds no shards (*.tar): upload some there")

    def describe(one: str) -> RemoteShard:
        name = PurePosixPath(without_query(one)).name
        detail = details.get(name)
        if detail is None:
            detail = persist(one, lambda: store.info(place_of(store, one)))
        return _described(one, detail, f"{name}{INDEX_SUFFIX}" in details if details else None)

    return in_threads(describe, sorted(addresses))


def _list_web(store: Any, address: str) -> list[str]:
    """Tars of a folder on a web server, by its list or by the links on its page."""
    content = read_if_there(store, with_suffix(address, f"/{LIST_NAME}"))
    if content is not None:
        names = [line for line in content.decode("utf-8", "replace").split() if line]
        for name in names:
            if leads_outside(name) or "://" in name or not name.endswith(".tar"):
                raise ShardError(
                    f"{without_query(address)}/{LIST_NAME} names {name!r}: it must name tars "
                    "in this folder, one a line"
                )
    else:
        try:
            links = store.ls(f"{address}/", detail=False)
        except faults():
            links = []
        names = [PurePosixPath(urlsplit(link).path).name for link in links]
        names = sorted({name for name in names if name.endswith(".tar")})
    if not names:
        raise ShardError(
            f"{without_query(address)} cannot be listed: web servers do not say what is in a "
            f"folder. Put a {LIST_NAME} there that names the tars, one a line, or name them: "
            "'https://host/shards/{00000..00009}.tar'"
        )
    return [with_suffix(address, f"/{name}") for name in names]


def _described(address: str, detail: dict[str, Any], has_index: bool | None) -> RemoteShard:
    """A shard as a store describes it."""
    size = detail.get("size")
    version = version_of(detail)
    folder, _, name = without_query(address).rpartition("/")
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", folder.partition("://")[2])[-60:]
    path = (
        cache_folder().absolute()
        / "shards"
        / f"{readable}-{_digest(folder)}"
        / f"{re.sub(r'[^A-Za-z0-9._-]', '_', name[:-4])}-{_digest(f'{name} {size} {version}')}.tar"
    )
    known = None if size is None else int(size)
    return RemoteShard(address, path, known, checksum_of(detail), has_index, version)


def _expand(address: str) -> list[str]:
    """`{00000..00009}` in an address → its ten addresses."""
    ends = re.search(r"\{(\d+)\.\.(\d+)\}", address)
    if ends is None:
        return [address]
    numbers = range(int(ends[1]), int(ends[2]) + 1)
    return [address.replace(ends[0], str(n).zfill(len(ends[1])), 1) for n in numbers]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
