"""Tar shards of a bucket or a web server: downloaded when first needed, kept in a bounded cache.

The order of training needs the number of samples of every shard before the first one is read: the
small indexes beside the tars are downloaded first. A shard without one is downloaded once to make
its index, which stays in the cache when the shard leaves it.

A copy in the cache is named by size and version of its shard: a changed shard is another file. The
copies that were not used for longest leave. Readers hold an open descriptor, which keeps the bytes
of a copy on the disk after its name is gone; whoever opens it later downloads it again.
"""

import contextlib
import functools
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from vatt.errors import ShardError
from vatt.shard_cache import cache_bytes, cache_folder, locked, make_room, own_folder
from vatt.shard_index import (
    INDEX_SUFFIX,
    ShardIndex,
    find_shards,
    index_path,
    leads_outside,
    load_index,
    read_index,
    scan_shard,
    write_index,
    written_whole,
)
from vatt.stores import (
    checksum_of,
    faults,
    forget_listing,
    has_changed,
    is_web,
    open_store,
    persist,
    place_of,
    read_if_there,
    sign_of_life,
    version_of,
    with_suffix,
    without_query,
)

if TYPE_CHECKING:
    from vatt.sources import FileWindow

logger = logging.getLogger(__name__)

NUM_THREADS = 16  # that ask for sizes and indexes, which wait for the network only
LIST_NAME = "shards.txt"  # names of a web folder's tars, one a line

T = TypeVar("T")


@dataclass(frozen=True)
class RemoteShard:
    """A tar somewhere else, and the place of its copy in the cache.

    Args:
        address: Where it is.
        path: Where the copy is, once it is needed.
        size: In bytes; None where the server does not say.
        checksum: Kind (as `hashlib` names it) and hexadecimal digest, where the store has one.
        has_index: Whether an index lies beside it; None: unknown.
        version: What its store describes its version by, and how; None where it does not.
    """

    address: str
    path: Path
    size: int | None
    checksum: tuple[str, str] | None = None
    has_index: bool | None = None
    version: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """Name of the tar."""
        return PurePosixPath(str(self)).name

    def __str__(self) -> str:
        """The address, without what signs it."""
        return without_query(self.address)

    def open(self) -> int:
        """A descriptor of the copy, which is downloaded if it is not there.

        Raises:
            ShardError: it cannot be downloaded, has changed, or is no usable shard.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return self._download()
        with contextlib.suppress(OSError):  # the cache of somebody else
            # the time of change stays: it says that the index is fresh
            os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
        return descriptor

    def index(self) -> ShardIndex:
        """Its index: from the cache, from beside it, else by downloading the shard.

        Raises:
            ShardError: as `open`.
        """
        if (stored := _fetch_index(open_store(self.address)[0], self)) is not None:
            return stored
        os.close(self.open())
        return read_index(self.path) if (made := self.stored_index()) is None else made

    def stored_index(self) -> ShardIndex | None:
        """The index in the cache, if it is there and is one of a shard of this size."""
        stored = load_index(self.path)
        if stored is None or (self.size is not None and stored[0].get("size") != str(self.size)):
            return None
        return stored[1]

    def _download(self) -> int:
        """Fetches the shard, unless another process was quicker; its descriptor."""
        with locked(self.path):
            with contextlib.suppress(FileNotFoundError):
                return os.open(self.path, os.O_RDONLY)
            partial = self.path.with_name(f".{self.path.name}.partial")
            make_room(self.size or 0, keep=partial)
            try:
                persist(self.address, functools.partial(self._fetch, partial))
                index = self._scan(partial)
                # opened before anybody knows the name, so that nobody can remove it before that
                descriptor = os.open(partial, os.O_RDONLY)
                partial.replace(self.path)
            finally:
                partial.unlink(missing_ok=True)
            write_index(self.path, index)
            make_room(0, keep=self.path)  # for a shard of unknown size, or several at once
            return descriptor

    def _fetch(self, partial: Path) -> None:
        """One attempt to download; OSError if it came incomplete or damaged."""
        store, place = open_store(self.address)
        store.get_file(place, str(partial), callback=sign_of_life())
        size = partial.stat().st_size
        if self.size is not None and size != self.size:
            raise OSError(f"{size:,} of {self.size:,} bytes came")
        if self.checksum is not None:
            kind, expected = self.checksum
            with partial.open("rb") as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            if found != expected:
                raise OSError(f"its {kind} is {found}, and must be {expected}")
        if self.version is not None:
            forget_listing(store, place)
            if has_changed(store.info(place), self.version):
                raise ShardError(f"{self} has changed since it was listed: start again")

    def _scan(self, partial: Path) -> ShardIndex:
        """The index of what was downloaded, which must agree with the one that was promised."""
        try:
            index = scan_shard(partial)
        except ShardError as error:
            raise ShardError(str(error).replace(str(partial), str(self))) from error
        promised = self.stored_index()
        if promised is not None and not promised.same_as(index):
            index_path(self.path).unlink(missing_ok=True)
            raise ShardError(
                f"{self}{INDEX_SUFFIX} is the index of another version of {self}: put the index "
                "of this one beside it, or none, and start again"
            )
        return index


Shard = Path | RemoteShard


def is_remote(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is named by an address."""
    return isinstance(folder, str) and re.match(r"[a-z][a-z0-9+.-]+://", folder) is not None


def local_or_remote(folder: str) -> Path | str:
    """A folder as given on a command line: paths are paths, addresses stay as they are."""
    return folder if is_remote(folder) else Path(folder)


def find_tars(folder: str | os.PathLike[str]) -> Sequence[Shard]:
    """The shards of a folder or address, by name.

    Raises:
        ShardError: no such folder, or none in it; it cannot be listed or reached.
    """
    place = local_or_remote(os.fspath(folder))
    return find_shards(place) if isinstance(place, Path) else list_remote(place)


def stamp_of(shard: Shard) -> tuple[str | int, ...]:
    """What changes when a shard does: its name, size and time of change or version."""
    if isinstance(shard, RemoteShard):
        return (shard.path.name,)  # holds size and version
    status = shard.stat()
    return (shard.name, status.st_size, status.st_mtime_ns)


def open_shard(shard: Shard) -> int:
    """A descriptor of a shard, local or remote."""
    return shard.open() if isinstance(shard, RemoteShard) else os.open(shard, os.O_RDONLY)


def window_of(shard: Shard, offset: int, size: int) -> "FileWindow":
    """Some bytes of a shard; those of a remote one are downloaded when the window is opened."""
    from vatt.sources import FileWindow

    if isinstance(shard, RemoteShard):
        return FileWindow(str(shard.path), offset, size, shard)
    return FileWindow(str(shard), offset, size)


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
    """The tars at an address, by name.

    Args:
        address: A folder; or tars, as `https://host/shards/{00000..00009}.tar`. Of a folder on a
            web server the tars are those that its `shards.txt` names, or links on its page.

    Raises:
        ShardError: none there, or it cannot be listed or reached.
        UserError: a package is missing for such addresses.
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

    return _in_threads(describe, sorted(addresses))


def read_indexes_of(shards: Sequence[RemoteShard]) -> list[ShardIndex]:
    """The indexes of remote shards; those that have none are downloaded.

    Raises:
        ShardError: a shard or index cannot be downloaded or used.
    """
    store, _ = open_store(shards[0].address)
    found = _in_threads(functools.partial(_fetch_index, store), shards)
    missing = [shard for shard, index in zip(shards, found, strict=True) if index is None]
    total = sum(shard.size or 0 for shard in shards)
    if missing:
        logger.warning(
            "%d of %d shards beside %s have no index: all of these are downloaded once (%.2f GB) "
            "to count their samples. `vatt shards build` makes indexes: upload them with the tars",
            len(missing),
            len(shards),
            missing[0],
            sum(shard.size or 0 for shard in missing) / 1e9,
        )
    if total > cache_bytes():
        logger.warning(
            "the shards beside %s have %.1f GB, the cache keeps %.1f GB: every epoch downloads "
            "them anew unless VATT_CACHE_GIB allows more",
            shards[0],
            total / 1e9,
            cache_bytes() / 1e9,
        )
    return [
        shard.index() if index is None else index
        for shard, index in zip(shards, found, strict=True)
    ]


def _fetch_index(store: Any, shard: RemoteShard) -> ShardIndex | None:
    """The index of a shard from the cache, or from beside it; None where there is none."""
    stored = shard.stored_index()
    if stored is not None or shard.has_index is False:
        return stored
    content = read_if_there(store, with_suffix(shard.address, INDEX_SUFFIX))
    if content is None:
        return None
    with own_folder(shard.path), written_whole(index_path(shard.path)) as file:
        file.write(content)
    return shard.stored_index()


def _list_web(store: Any, address: str) -> list[str]:
    """The tars of a folder on a web server, by its list or by the links on its page."""
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
    first, last = ends.groups()
    before, after = address[: ends.start()], address[ends.end() :]
    return [
        f"{before}{number:0{len(first)}d}{after}" for number in range(int(first), int(last) + 1)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _in_threads(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(function, items))
