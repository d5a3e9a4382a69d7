"""Tar shards in buckets or on web servers, downloaded at first use into a cache of limited size.

Training needs the number of samples of every shard before it reads the first one, so the small
indexes beside the tars are downloaded first. A shard without an index is downloaded once to make
the index, which remains in the cache even if the shard is removed.

The name of a copy contains size and version of its shard, so a changed shard is another file. The
least recently used copies are removed first. A reader's open descriptor keeps the bytes of a
removed copy on disk; a later reader downloads the shard again.
"""

import contextlib
import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from vatt.errors import ShardError
from vatt.shards.cache import cache_bytes, locked, make_room, own_folder
from vatt.shards.index import ShardIndex, scan_shard
from vatt.shards.index_file import (
    INDEX_SUFFIX,
    index_path,
    load_index,
    read_index,
    shard_file,
    write_index,
)
from vatt.shards.stores import (
    forget_listing,
    has_changed,
    open_store,
    persist,
    read_if_there,
    with_suffix,
    without_query,
)
from vatt.system.workers import tell_alive

logger = logging.getLogger(__name__)

NUM_THREADS = 16  # that ask for sizes and indexes, which wait for the network only
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteShard:
    """Remote tar with the location of its copy in the cache.

    Args:
        address: Address of the tar.
        path: Path of the copy, which is downloaded when needed.
        size: Size in bytes; None if the server does not say.
        checksum: Kind (as in `hashlib`) and hexadecimal digest; None if the store has none.
        has_index: Whether there is an index beside the tar. None: unknown.
        version: Name and value of the property by which the store describes its version; None if
            there is none.
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
        """Address without its signature."""
        return without_query(self.address)

    def open(self) -> int:
        """Descriptor of the copy, which is downloaded if it does not exist.

        Raises:
            ShardError: the tar cannot be downloaded, has changed, or is not a usable shard.
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
        """Index of the shard: from the cache, from beside the tar, or by downloading the tar.

        Raises:
            ShardError: see `open`.
        """
        index = self.fetch_index()
        if index is None:
            os.close(self.open())  # a download writes the index, too
            index = self.stored_index()
        return read_index(self.path) if index is None else index

    def stored_index(self) -> ShardIndex | None:
        """Index in the cache, if there is one for a shard of this size."""
        stored = load_index(self.path)
        if stored is None or (self.size is not None and stored[0].get("size") != str(self.size)):
            return None
        return stored[1]

    def fetch_index(self) -> ShardIndex | None:
        """Index from the cache or from beside the tar; None if there is none."""
        stored = self.stored_index()
        if stored is not None or self.has_index is False:
            return stored
        store, _ = open_store(self.address)
        content = read_if_there(store, with_suffix(self.address, INDEX_SUFFIX))
        if content is None:
            return None
        with own_folder(self.path), shard_file(index_path(self.path)) as file:
            file.write(content)
        return self.stored_index()

    def _download(self) -> int:
        """Downloads the shard unless another process has done so; returns its descriptor."""
        with locked(self.path):
            with contextlib.suppress(FileNotFoundError):
                return os.open(self.path, os.O_RDONLY)
            with shard_file(self.path) as file:
                partial = Path(file.name)
                make_room(self.size or 0, keep=partial)
                persist(self.address, functools.partial(self._fetch, partial))
                index = self._scan(partial)
                # opened before anybody knows the name, so that nobody can remove it before that
                descriptor = os.open(partial, os.O_RDONLY)
            write_index(self.path, index)
            make_room(0, keep=self.path)  # for a shard of unknown size, or several at once
            return descriptor

    def _fetch(self, partial: Path) -> None:
        """One attempt to download; OSError if the result is incomplete or damaged."""
        from fsspec.callbacks import Callback

        store, place = open_store(self.address)
        alive = Callback(hooks={"alive": lambda *_: tell_alive()})  # called as bytes arrive
        store.get_file(place, str(partial), callback=alive)
        size = partial.stat().st_size
        if self.size is not None and size != self.size:
            raise OSError(f"{size:,} of {self.size:,} bytes came")
        if self.checksum is not None:
            kind, expected = self.checksum
            with partial.open("rb") as file:
                digest = hashlib.file_digest(file, kind).hexdigest()
            if digest != expected:
                raise OSError(f"its {kind} is {digest}, and must be {expected}")
        if self.version is not None:
            forget_listing(store, place)
            if has_changed(store.info(place), self.version):
                raise ShardError(f"{self} has changed since it was listed: start again")

    def _scan(self, partial: Path) -> ShardIndex:
        """Index of the downloaded tar, which must agree with the index beside it."""
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


def read_indexes_of(shards: Sequence[RemoteShard]) -> list[ShardIndex]:
    """Indexes of remote shards; shards without an index are downloaded.

    Raises:
        ShardError: a shard or index cannot be downloaded or used.
    """
    indexes = in_threads(RemoteShard.fetch_index, shards)
    missing = [shard for shard, index in zip(shards, indexes, strict=True) if index is None]
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
        for shard, index in zip(shards, indexes, strict=True)
    ]


def in_threads(function: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Calls a function that waits for the network in several threads; results keep the order."""
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(function, items))
