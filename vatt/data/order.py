"""The global order of samples: a pure function of seed, weights and position.

There is no stateful random generator: every number is a hash of integer keys. The order is
therefore the same on every rank, in every worker, on every machine and with every version of NumPy,
and a run can resume at any position at once.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vatt.data.draws import Purpose, SampleRef, draw_bits, draw_permutation
from vatt.errors import UserError

MIX_BLOCK = 10_000  # positions, at least, over which the sets' shares are exact, to 1/10,000
MOST_KEPT = 4  # of the last draws of each kind: a position and those ahead need two


class GlobalOrder:
    """Order of an endless stream: the sample at each position.

    An epoch shuffles the shards, then the samples within each group of shards, so that reading
    stays local. With weights, each set has its own epochs, and every batch contains the sets in
    proportion to their weights (`mix_within`). Without weights, an epoch covers all sets once.
    Memory holds the sizes of the shards and the samples of a few groups.

    Args:
        shard_sizes: Number of samples in each shard of each set.
        weights: Share of each set in the stream; need not sum to 1. None: all samples are equally
            likely.
        seed: Seed of the order.
        shuffle_shards: Number of shards whose samples are shuffled together.

    Raises:
        UserError: there are no samples, or `weights` is not one positive number per set.
    """

    def __init__(
        self,
        shard_sizes: Sequence[ArrayLike],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        shuffle_shards: int = 8,
    ) -> None:
        sizes = [np.asarray(values, dtype=np.int64) for values in shard_sizes]
        empty = [index for index, values in enumerate(sizes) if values.sum() == 0]
        if empty or not sizes:
            raise UserError(f"every set needs at least one sample; sets without: {empty or 'all'}")
        if shuffle_shards < 1:
            raise UserError(f"shuffle_shards must be at least 1, got {shuffle_shards}")
        self.seed = seed
        self.set_sizes = [int(values.sum()) for values in sizes]
        self._first_shard_of_set = np.cumsum([0, *(len(values) for values in sizes)])
        self._first_of_set = np.cumsum([0, *self.set_sizes])
        groups = [np.concatenate(sizes)] if weights is None else sizes
        self._streams = [
            _Stream(group, (seed, index), shuffle_shards) for index, group in enumerate(groups)
        ]
        self._shares = None if weights is None else _checked_shares(weights, len(sizes))
        self._mix(None)

    def __len__(self) -> int:
        """Samples of all sets together: a nominal epoch."""
        return sum(self.set_sizes)

    def mix_within(self, batch_size: int | None) -> None:
        """Mixes the sets evenly within batches. One set, or sets without weights, do not change.

        Args:
            batch_size: Positions of a batch: each contains `share · batch_size` samples of every
                set, rounded up or down. None: the shares are random within `MIX_BLOCK` positions,
                as in runs of earlier versions.
        """
        mixes = self._shares is not None and len(self._shares) > 1
        if mixes and batch_size != self.mixed_within:
            self._mix(batch_size)

    def _mix(self, batch_size: int | None) -> None:
        self.mixed_within = batch_size
        self._batch_size = batch_size or MIX_BLOCK
        self._batches_in_block = math.ceil(MIX_BLOCK / self._batch_size)
        self._block = self._batch_size * self._batches_in_block
        self._counts = None if self._shares is None else _counts(self._shares, self._block)
        self._turns = lru_cache(MOST_KEPT)(self._draw_turns)
        self._fingerprint: str | None = None

    def ref(self, position: int) -> SampleRef:
        """Sample at a position, 0, 1, 2, … without end."""
        if self._counts is None:
            epoch, flat = self._streams[0].sample(position)
            set_index = int(np.searchsorted(self._first_of_set, flat, side="right")) - 1
            return SampleRef(set_index, flat - int(self._first_of_set[set_index]), epoch, position)
        block, offset = divmod(position, self._block)
        sets, turns = self._turns(block)
        set_index = int(sets[offset])
        turn = block * int(self._counts[set_index]) + int(turns[offset])
        epoch, sample_index = self._streams[set_index].sample(turn)
        return SampleRef(set_index, sample_index, epoch, position)

    def shards_ahead(self, position: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Shards that are shuffled together at a position, and those that come next, of every set.

        Returns:
            Both groups of shards; each shard is the index of its set and its index in the set.
        """
        now: list[tuple[int, int]] = []
        after: list[tuple[int, int]] = []
        for index, count in enumerate(self._counts_before(position)):
            for places, shards in zip(
                (now, after), self._streams[index].shards_ahead(count), strict=True
            ):
                places += [self._place_of_shard(index, shard) for shard in shards]
        return now, after

    def _counts_before(self, position: int) -> list[int]:
        """Number of samples that each stream has given before a position."""
        if self._counts is None:
            return [position]
        block, offset = divmod(position, self._block)
        sets, _ = self._turns(block)
        drawn = np.bincount(sets[:offset], minlength=len(self._counts))
        return (block * self._counts + drawn).tolist()

    def _place_of_shard(self, stream: int, shard: int) -> tuple[int, int]:
        if self._counts is not None:
            return stream, shard
        set_index = int(np.searchsorted(self._first_shard_of_set, shard, side="right")) - 1
        return set_index, shard - int(self._first_shard_of_set[set_index])

    def fingerprint(self) -> str:
        """Hash of all that determines the order; it changes if the sequence would change."""
        if self._fingerprint is None:  # every state asks for it, and many shards take a second
            sizes = np.concatenate([stream.shard_sizes for stream in self._streams])
            windows = self._streams[0].shuffle_shards
            counts: Sequence[int] = [] if self._counts is None else self._counts.tolist()
            state = np.zeros(1, dtype=np.uint64)
            mixed = [] if self.mixed_within is None else [-1, self.mixed_within]
            for part in [self.seed, windows, *self.set_sizes, -1, *sizes, -1, *counts, *mixed]:
                state = draw_bits(state.astype(np.int64), part)
            self._fingerprint = f"{int(state[0]):016x}"
        return self._fingerprint

    def _draw_turns(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Set of each position in a block, and the number of earlier positions of that set."""
        assert self._counts is not None
        sets = np.repeat(np.arange(len(self._counts)), self._counts)
        key = (self.seed, Purpose.TURNS, block)
        if self.mixed_within is None:
            sets = sets[draw_permutation(self._block, *key)]
        else:  # like cards: one to each batch in turn, so that batches differ by one per set
            dealt = sets.reshape(self._batch_size, self._batches_in_block).T
            dealt = dealt[draw_permutation(self._batches_in_block, *key)]
            rows, places = np.ogrid[: self._batches_in_block, : self._batch_size]
            shuffled = np.argsort(draw_bits(*key, rows, places), axis=1, kind="stable")
            sets = np.take_along_axis(dealt, shuffled, axis=1).reshape(-1)
        turns = np.empty(self._block, dtype=np.int64)
        for set_index, count in enumerate(self._counts):
            turns[sets == set_index] = np.arange(count)
        return sets, turns


class _Stream:
    """Endless epochs over one list of shards."""

    def __init__(
        self, shard_sizes: NDArray[np.int64], keys: tuple[int, int], shuffle_shards: int
    ) -> None:
        self.shard_sizes = shard_sizes
        self.shuffle_shards = shuffle_shards
        self._keys = keys
        self._first_of_shard = np.cumsum([0, *shard_sizes])
        self._size = int(shard_sizes.sum())
        self._shards = lru_cache(MOST_KEPT)(self._draw_shards)
        self._window = lru_cache(MOST_KEPT)(self._draw_window)

    def sample(self, count: int) -> tuple[int, int]:
        """Epoch and sample that come after `count` others."""
        epoch, offset = divmod(count, self._size)
        _, first_of_window = self._shards(epoch)
        window = int(np.searchsorted(first_of_window, offset, side="right")) - 1
        samples = self._window(epoch, window)
        return epoch, int(samples[offset - int(first_of_window[window])])

    def shards_ahead(self, count: int) -> tuple[list[int], list[int]]:
        """Shards of the window in which a sample comes after `count` others, and of the next."""
        epoch, offset = divmod(count, self._size)
        shards, first_of_window = self._shards(epoch)
        after = int(np.searchsorted(first_of_window, offset, side="right"))
        now = shards[(after - 1) * self.shuffle_shards : after * self.shuffle_shards]
        if after == len(first_of_window):
            shards, after = self._shards(epoch + 1)[0], 0
        next_ones = shards[after * self.shuffle_shards : (after + 1) * self.shuffle_shards]
        return now.tolist(), next_ones.tolist()

    def _draw_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Order of the shards in an epoch, and the start of each group of shards."""
        shards = draw_permutation(len(self.shard_sizes), *self._keys, Purpose.SHARDS, epoch)
        ends = np.cumsum(self.shard_sizes[shards])
        last_of_window = np.arange(self.shuffle_shards, len(shards), self.shuffle_shards) - 1
        return shards, np.concatenate([[0], ends[last_of_window]])

    def _draw_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        """Shuffled samples of one group of shards."""
        shards, _ = self._shards(epoch)
        chosen = shards[window * self.shuffle_shards : (window + 1) * self.shuffle_shards]
        first, sizes = self._first_of_shard[chosen], self.shard_sizes[chosen]
        samples = np.concatenate([np.arange(a, a + n) for a, n in zip(first, sizes, strict=True)])
        return samples[draw_permutation(len(samples), *self._keys, Purpose.SAMPLES, epoch, window)]


def _checked_shares(weights: Sequence[float], num_sets: int) -> NDArray[np.float64]:
    """Share of each set; they sum to 1."""
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != (num_sets,) or not np.all(np.isfinite(shares) & (shares > 0)):
        raise UserError(f"{num_sets} sets need one positive weight each, got {list(weights)}")
    return shares / shares.sum()


def _counts(shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Number of positions of each set in a block, by largest remainders; at least one each."""
    exact = shares * size
    counts = np.maximum(np.floor(exact), 1).astype(np.int64)
    by_remainder = np.argsort(counts - exact, kind="stable")
    missing = size - int(counts.sum())
    counts[by_remainder[: max(missing, 0)]] += 1
    for _ in range(-missing):  # what the smallest were given comes from those with most to spare
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return counts
