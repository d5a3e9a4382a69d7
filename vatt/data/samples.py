"""Data sets of clips: the training set, and the retrieval set for evaluation.

The training set reads a sample, or a batch, by references of the global order. All draws depend on
(seed, set, sample, epoch), never on the worker or the batch. An unreadable clip is replaced by
another start in the same file, then by the next samples of its set; this depends on the same
values. The retrieval set has every record once, from the middle of its file.
"""

import bisect
import dataclasses
import itertools
import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from vatt.batch import Batch
from vatt.config.augment import AugmentConfig
from vatt.data.cache import ClipCache
from vatt.data.clips import (
    ClipSample,
    Durations,
    Geometry,
    collate,
    nearest_segments,
    place_window,
    read_duration,
    read_sample,
)
from vatt.data.draws import (
    Purpose,
    SampleRef,
    draw_bits,
    draw_captions,
    draw_uniforms,
    draw_view,
    name_seeds,
)
from vatt.data.failures import ReadCounts, read_or_replace
from vatt.errors import MediaError
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.record import Record
from vatt.shards.shard_set import ShardSet

logger = logging.getLogger(__name__)


@dataclass(eq=False, repr=False)
class ClipSamples(Dataset[ClipSample]):
    """Training samples of one or more shard sets.

    Args:
        sets: Shard sets, in the order of `GlobalOrder`.
        tokenizer: Tokenizer of the captions. None: captions are left out.
        geometry: Shapes of a sample; the `num_candidates` nearest captions are the bag of MIL-NCE.
        seed: Seed of the draws.
        augment: Random views. Colours and noise are changed later on the device, by the seeds of
            the batch.
        captions_per_step: Number of captions drawn from the bag in each epoch. None: the whole bag.
        max_failure_rate: Share of unreadable files above which reading stops.
        cache: Cache of decoded clips, one for each of `num_views` views of a sample.
        num_views: Number of views of a cached sample, which the epochs reuse. Samples that are not
            cached get a new view in every epoch.
    """

    sets: Sequence[ShardSet]
    tokenizer: Tokenizer | None
    geometry: Geometry
    _: KW_ONLY
    seed: int
    augment: AugmentConfig
    captions_per_step: int | None = None
    max_failure_rate: float = 0.05
    cache: ClipCache | None = None
    num_views: int = 1

    def __post_init__(self) -> None:
        """Counts samples and allocates memory that processes share."""
        self.counts = ReadCounts(self.max_failure_rate, len(self))
        self._first_of_set = [0, *itertools.accumulate(len(one) for one in self.sets)]
        self._durations = [Durations(len(one)) for one in self.sets]

    def __len__(self) -> int:
        """Samples of all sets."""
        return sum(len(one) for one in self.sets)

    def __getitem__(self, ref: SampleRef) -> ClipSample:
        """The sample of a reference, or its replacement.

        Raises:
            TooManyFailuresError: more files are unreadable than allowed.
        """
        size, first = len(self.sets[ref.set_index]), self._first_of_set[ref.set_index]
        return read_or_replace(ref, size, self._read, self.counts, first)

    def __getitems__(self, refs: list[SampleRef]) -> Batch:
        """Batch of some references."""
        if self.cache is None:
            batch = collate([self[ref] for ref in refs], self.geometry)
        else:
            batch = self._read_cached(self.cache, refs)
        batch = dataclasses.replace(batch, seeds=name_seeds(refs, seed=self.seed))
        if self.captions_per_step is None or batch.text is None:
            return batch
        text = draw_captions(batch.text, refs, count=self.captions_per_step, seed=self.seed)
        return dataclasses.replace(batch, text=text, text_mask=None)

    def read_entry(self, entry: int) -> ClipSample:
        """The sample in a slot of the cache, as epoch `view` would draw it."""
        number, view = divmod(entry, self.num_views)
        set_index = bisect.bisect_right(self._first_of_set, number) - 1
        return self[SampleRef(set_index, number - self._first_of_set[set_index], epoch=view)]

    def _read_cached(self, cache: ClipCache, refs: Sequence[SampleRef]) -> Batch:
        entries = [
            (self._first_of_set[ref.set_index] + ref.sample_index) * self.num_views
            + ref.epoch % self.num_views
            for ref in refs
        ]

        def read(row: int) -> ClipSample:
            return self.read_entry(entries[row]) if cache.keeps(entries[row]) else self[refs[row]]

        batch, index = cache.batch(entries, read)
        keys = (self.sets[ref.set_index].key(i) for ref, i in zip(refs, index, strict=True))
        return dataclasses.replace(batch, keys=tuple(keys))

    def _read(self, ref: SampleRef, attempt: int) -> ClipSample:
        """Draws time, captions and view, and reads."""
        record = self.sets[ref.set_index][ref.sample_index]
        names = (self.seed, ref.set_index, ref.sample_index, ref.epoch, attempt)
        choice, *draws = draw_uniforms(*names, Purpose.CLIP, np.arange(8)).tolist()
        segments = record.segments
        durations = self._durations[ref.set_index]
        duration_seconds = durations.seconds(ref.sample_index, lambda: read_duration(record))
        # The second attempt goes anywhere: a file with one caption would give the damaged place
        # again.
        planned = int(choice * len(segments)) if segments and attempt == 0 else None
        window_seconds = self.geometry.window_seconds
        start_seconds = place_window(
            None if planned is None else segments[planned],
            duration_seconds,
            window_seconds,
            draws[0],
        )
        ties = draw_bits(*names, Purpose.TIES, np.arange(len(segments)))
        bag = nearest_segments(segments, start_seconds, start_seconds + window_seconds, ties)
        if planned is not None:
            bag = [planned, *(index for index in bag if index != planned)]
        return read_sample(
            record,
            self.geometry,
            self.tokenizer,
            sample_index=ref.sample_index,
            start_seconds=start_seconds,
            captions=[segments[index].text for index in bag[: self.geometry.num_candidates]],
            view=draw_view(self.augment, draws[1:]),
        )


def count_captions(shards: ShardSet) -> int:
    """Largest number of captions of any record."""
    counts = [0]
    for sample_index in range(len(shards)):
        try:
            counts.append(len(shards[sample_index].segments))
        except MediaError:
            continue  # the row will be empty, and reading it says why
    return max(counts)


@dataclass(eq=False, repr=False)
class RetrievalSamples(Dataset[ClipSample]):
    """All records of a shard set, for evaluation; each read gives the same clip.

    An unreadable record gives a row whose masks are all False, and a warning that names the file.

    Args:
        shards: Shard set.
        tokenizer: Tokenizer of the captions. None: captions are left out.
        geometry: Shapes of a sample. If a record has more than `num_candidates` captions, those
            nearest to the window are used.
        cache: Cache of decoded clips.
        num_clips: Number of records to use, from the first. None: all.
    """

    shards: ShardSet
    tokenizer: Tokenizer | None
    geometry: Geometry
    cache: ClipCache | None = None
    num_clips: int | None = None

    def __len__(self) -> int:
        """Number of records."""
        return len(self.shards) if self.num_clips is None else self.num_clips

    def __getitem__(self, sample_index: int) -> ClipSample:
        """One record."""
        try:
            return self._read(sample_index)
        except MediaError as error:
            logger.warning("left out of the retrieval set: %s", error)
            shape = (self.geometry.num_candidates, self.geometry.text.max_words)
            return ClipSample(
                key=self.shards.key(sample_index),
                sample_index=sample_index,
                video=None,
                audio=None,
                text=torch.zeros(shape, dtype=torch.int64),
            )

    def __getitems__(self, indices: list[int]) -> Batch:
        """A batch of records."""
        if self.cache is None:
            return collate([self[index] for index in indices], self.geometry)
        batch, index = self.cache.batch(indices, lambda row: self[indices[row]])
        return dataclasses.replace(batch, keys=tuple(map(self.shards.key, index)))

    def place(self, sample_index: int) -> tuple[Record, float, list[str]]:
        """Record, start of its window in seconds, and the captions that are used, in order.

        Raises:
            MediaError: the record cannot be read.
        """
        record = self.shards[sample_index]
        window_seconds = self.geometry.window_seconds
        start_seconds = place_window(None, read_duration(record), window_seconds, share=0.5)
        nearest = nearest_segments(
            record.segments,
            start_seconds,
            start_seconds + window_seconds,
            ties=np.arange(len(record.segments), dtype=np.uint64),
        )
        chosen = sorted(nearest[: self.geometry.num_candidates])
        return record, start_seconds, [record.segments[index].text for index in chosen]

    def _read(self, sample_index: int) -> ClipSample:
        record, start_seconds, captions = self.place(sample_index)
        return read_sample(
            record,
            self.geometry,
            self.tokenizer,
            sample_index=sample_index,
            start_seconds=start_seconds,
            captions=captions,
        )
