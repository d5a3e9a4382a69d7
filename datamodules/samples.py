"""The training set: a reference of the global order → one sample, or a whole batch.

All draws are named by (seed, set, sample, epoch), never by the worker or the batch. A clip that
cannot be read is replaced: by another start in the same file, then by the next samples of its set;
that too is a function of the same names.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.cache import ClipCache
from datamodules.clips import (
    ClipSample,
    Durations,
    Geometry,
    collate,
    nearest_segments,
    place_window,
    read_duration,
    read_sample,
)
from datamodules.failures import ReadCounts
from datamodules.order import SampleRef, draw_bits, draw_uniforms
from vatt.batch import Batch
from vatt.errors import MediaError
from vatt.preprocess import View
from vatt.shards import ShardSet
from vatt.text import Tokenizer
from vatt.transforms import AugmentConfig, Piece

T = TypeVar("T")

STARTS_PER_FILE = 2  # the planned start and one other, before the next sample is taken
FILES_PER_SAMPLE = 10  # so many unreadable files in a row are no accident
_DRAW, _TIES, _KEEP, _CHANGES = 11, 12, 13, 14  # what a number is drawn for; order.py uses 1…3


class ClipSamples(Dataset[ClipSample]):
    """Training samples of one or more shard sets.

    Args:
        sets: The shard sets, in the order of `GlobalOrder`.
        tokenizer: Captions → ids.
        geometry: Shapes of a sample; `num_candidates` nearest captions make the MIL-NCE bag.
        seed: Names the draws.
        augment: Random views; colours and noise are changed later, on the device, as the batch's
            seeds say.
        captions_per_step: So many captions of a bag, drawn anew every epoch. None: the whole bag.
        max_failure_rate: Share of unreadable clips above which reading stops.
        cache: Keeps decoded clips, one for each of `num_views` views of a sample.
        num_views: The epochs share so many views of a sample that the cache can keep; others are
            drawn anew every epoch.
    """

    def __init__(
        self,
        sets: Sequence[ShardSet],
        tokenizer: Tokenizer,
        geometry: Geometry,
        *,
        seed: int,
        augment: AugmentConfig,
        captions_per_step: int | None = None,
        max_failure_rate: float = 0.05,
        cache: ClipCache | None = None,
        num_views: int = 1,
    ) -> None:
        self.sets = list(sets)
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.seed = seed
        self.augment = augment
        self.captions_per_step = captions_per_step
        self.counts = ReadCounts(max_failure_rate)
        self.cache = cache
        self.num_views = num_views
        self._first_of_set = [0, *itertools.accumulate(len(one) for one in self.sets)]
        self._durations = [Durations(len(one)) for one in self.sets]

    def __len__(self) -> int:
        """Samples of all sets."""
        return sum(len(one) for one in self.sets)

    def __getitem__(self, ref: SampleRef) -> ClipSample:
        """The sample of a reference, or its replacement.

        Raises:
            TooManyFailuresError: more clips are unreadable than allowed.
        """
        return read_or_replace(ref, len(self.sets[ref.set_index]), self._read, self.counts)

    def __getitems__(self, refs: list[SampleRef]) -> Batch:
        """The batch of some references."""
        if self.cache is None:
            batch = collate([self[ref] for ref in refs], self.geometry)
        else:
            batch = self._read_cached(self.cache, refs)
        batch = dataclasses.replace(batch, seeds=name_seeds(refs, seed=self.seed))
        if self.captions_per_step is None or batch.text is None:
            return batch
        text = draw_captions(batch.text, refs, count=self.captions_per_step, seed=self.seed)
        return dataclasses.replace(batch, text=text, text_mask=None)

    def fill_cache(self, entries: Sequence[int]) -> None:
        """Reads some entries into the cache."""
        assert self.cache is not None
        refs = [self._ref_of(entry) for entry in entries]
        self.cache.fill(entries, lambda row: self[refs[row]])

    def _read_cached(self, cache: ClipCache, refs: Sequence[SampleRef]) -> Batch:
        entries = [
            (self._first_of_set[ref.set_index] + ref.sample_index) * self.num_views
            + ref.epoch % self.num_views
            for ref in refs
        ]

        def read(row: int) -> ClipSample:
            kept = entries[row] < cache.capacity
            return self[self._ref_of(entries[row]) if kept else refs[row]]

        return cache.read_batch(
            entries, read, lambda row, index: self.sets[refs[row].set_index].key(index)
        )

    def _ref_of(self, entry: int) -> SampleRef:
        """What a slot of the cache holds: the sample as epoch `view` would draw it."""
        number, view = divmod(entry, self.num_views)
        set_index = bisect.bisect_right(self._first_of_set, number) - 1
        return SampleRef(set_index, number - self._first_of_set[set_index], epoch=view, position=-1)

    def _read(self, ref: SampleRef, attempt: int) -> ClipSample:
        """Draws time, captions and view, and reads."""
        record = self.sets[ref.set_index][ref.sample_index]
        names = (self.seed, ref.set_index, ref.sample_index, ref.epoch, attempt)
        choice, *draws = draw_uniforms(*names, _DRAW, np.arange(7)).tolist()
        segments = record.segments
        durations = self._durations[ref.set_index]
        duration_seconds = durations.seconds(ref.sample_index, lambda: read_duration(record))
        # The second attempt goes anywhere: a file with one caption would give the damaged place
        # again.
        own = int(choice * len(segments)) if segments and attempt == 0 else None
        window_seconds = self.geometry.window_seconds
        start_seconds = place_window(
            None if own is None else segments[own], duration_seconds, window_seconds, draws[0]
        )
        ties = draw_bits(*names, _TIES, np.arange(len(segments)))
        bag = nearest_segments(segments, start_seconds, start_seconds + window_seconds, ties)
        if own is not None:
            bag = [own, *(index for index in bag if index != own)]
        return read_sample(
            record,
            self.geometry,
            self.tokenizer,
            sample_index=ref.sample_index,
            start_seconds=start_seconds,
            captions=[segments[index].text for index in bag[: self.geometry.num_candidates]],
            view=draw_view(self.augment, draws[1:]),
        )


def read_or_replace(
    ref: SampleRef, size: int, read: Callable[[SampleRef, int], T], counts: ReadCounts
) -> T:
    """What a reference names or, where that cannot be read, another sample of its set.

    Args:
        ref: The sample.
        size: Samples of its set.
        read: Reads a sample, at its planned start or, in a second attempt, at another.
        counts: Counts what could be read and what not.

    Raises:
        TooManyFailuresError: more clips are unreadable than allowed.
    """
    num_files = min(FILES_PER_SAMPLE, size)
    for step in range(num_files):
        sample_index = (ref.sample_index + step) % size
        chosen = dataclasses.replace(ref, sample_index=sample_index)
        for attempt in range(STARTS_PER_FILE):
            try:
                sample = read(chosen, attempt)
            except MediaError as error:
                if attempt == 0:  # so that the rate is one of files, not of attempts
                    counts.add_failure(error)
            else:
                counts.add_success()
                return sample
    raise counts.too_many(f"{num_files} files in a row")


def draw_view(augment: AugmentConfig, draws: Sequence[float]) -> View:
    """A random view.

    Args:
        augment: What is changed, and how much.
        draws: Five uniform numbers.
    """
    extent, vertical, horizontal, flip, aspect = draws
    piece, scale = None, 1.0
    if augment.crop == "area":
        aspect = _between(augment.aspect_range, aspect)
        piece = Piece(aspect=aspect, extent=extent, area_range=augment.area_range)
    else:
        scale = _between(augment.scale_range, extent)
    return View(
        piece=piece,
        scale=scale,
        vertical=vertical,
        horizontal=horizontal,
        flip=flip < augment.flip_rate,
    )


def _between(ends: tuple[float, float], share: float) -> float:
    low, high = ends
    return low + share * (high - low)


def draw_captions(text: Tensor, refs: Sequence[SampleRef], *, count: int, seed: int) -> Tensor:
    """Some captions of each bag, those that say something first.

    Args:
        text: int64 `[B, K, J]`.
        refs: The rows' samples, which name the draws.
        count: Captions to keep.
        seed: Names the draws.

    Returns:
        int64 `[B, count, J]`.
    """
    chances = draw_uniforms(seed, *_names(refs)[..., None], _KEEP, np.arange(text.shape[1]))
    blank = (text == 0).all(dim=-1)
    order = (torch.from_numpy(chances) + blank).argsort(dim=1)[:, :count]
    return text.gather(1, order[..., None].expand(-1, -1, text.shape[2]))


def name_seeds(refs: Sequence[SampleRef], *, seed: int) -> Tensor:
    """What the random changes of each clip are drawn from: by sample and epoch, no place or rank.

    Args:
        refs: The rows' samples.
        seed: Names the draws.

    Returns:
        int64 `[B]`, at least 0.
    """
    bits = draw_bits(seed, *_names(refs), _CHANGES)
    return torch.from_numpy((bits >> np.uint64(1)).astype(np.int64))


def _names(refs: Sequence[SampleRef]) -> NDArray[np.int64]:
    """Set, sample and epoch of each row, `[3, B]`."""
    return np.array([(ref.set_index, ref.sample_index, ref.epoch) for ref in refs]).T
