"""Download of remote shards before training needs them."""

import contextlib
import itertools
import logging
import math
import os
import queue
import threading
from collections.abc import Sequence

from vatt.data.order import GlobalOrder
from vatt.errors import ShardError
from vatt.shards.cache import cache_bytes
from vatt.shards.remote import RemoteShard
from vatt.shards.shard_set import ShardSet

logger = logging.getLogger(__name__)

GIB = 2**30
NUM_THREADS = 4  # downloads at a time; one process of a machine makes them for all


class ShardPrefetch:
    """Downloads the shards that a stream is reading, and those that come next.

    Shards that are shuffled together are needed at the same time. A failed download raises no error
    here: reading the shard tries again and reports the fault. The threads end with the process.

    Args:
        sets: Sets of the stream.
        order: Order of their samples.
    """

    def __init__(self, sets: Sequence[ShardSet], order: GlobalOrder) -> None:
        self._sets = sets
        self._order = order
        self._has_warned = False
        self._asked: set[RemoteShard] = set()
        self._waiting: queue.SimpleQueue[RemoteShard] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def reach(self, position: int) -> None:
        """Requests the shards for a position and those after it; returns at once."""
        now, after = (self._remote(places) for places in self._order.shards_ahead(position))
        after = self._fitting(now, after)
        new = [shard for shard in dict.fromkeys([*now, *after]) if shard not in self._asked]
        self._asked = {*now, *after}
        for shard in new:
            self._waiting.put(shard)
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        while self._waiting.qsize() > 0 and len(self._threads) < min(NUM_THREADS, len(new)):
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def _fitting(self, now: list[RemoteShard], after: list[RemoteShard]) -> list[RemoteShard]:
        """The next shards for which the cache has room; others would push out what is read."""
        new = [shard for shard in after if shard not in now]
        room = cache_bytes() - sum(shard.size or 0 for shard in set(now))
        if room < 0 and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "training mixes %d shards at a time, which have %.1f GiB more than the cache of "
                "remote shards holds: they are downloaded again and again. Set VATT_CACHE_GIB to "
                "at least %.0f, or build smaller shards (vatt shards build --shard-bytes)",
                len(set(now)),
                -room / GIB,
                math.ceil((cache_bytes() - room) / GIB),
            )
        ends = itertools.accumulate(shard.size or 0 for shard in new)
        return [shard for shard, end in zip(new, ends, strict=True) if end <= room]

    def _remote(self, places: list[tuple[int, int]]) -> list[RemoteShard]:
        shards = (self._sets[set_index].shards[shard] for set_index, shard in places)
        return [shard for shard in shards if isinstance(shard, RemoteShard)]

    def _work(self) -> None:
        """Downloads until nothing waits."""
        with contextlib.suppress(queue.Empty):
            while True:
                shard = self._waiting.get_nowait()
                with contextlib.suppress(ShardError, OSError):
                    os.close(shard.open())
