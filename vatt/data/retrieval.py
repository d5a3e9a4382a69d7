"""Retrieval set: every record once, from the middle of its file, with all captions."""

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import Dataset

from vatt.batch import Batch
from vatt.data.cache import ClipCache
from vatt.data.clips import (
    ClipSample,
    Geometry,
    collate,
    nearest_segments,
    place_window,
    read_duration,
    read_sample,
)
from vatt.errors import MediaError
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.shard_set import ShardSet

logger = logging.getLogger(__name__)


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
        tokenizer: Tokenizer of the captions.
        geometry: Shapes of a sample. If a record has more than `num_candidates` captions, those
            nearest to the window are used.
        cache: Cache of decoded clips.
        num_clips: Number of records to use, from the first. None: all.
    """

    shards: ShardSet
    tokenizer: Tokenizer
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
        clips = {row: self[indices[row]] for row in self.cache.missing(indices)}
        batch, index = self.cache.batch(indices, clips)
        return replace(batch, keys=tuple(map(self.shards.key, index)))

    def _read(self, sample_index: int) -> ClipSample:
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
        return read_sample(
            record,
            self.geometry,
            self.tokenizer,
            sample_index=sample_index,
            start_seconds=start_seconds,
            captions=[record.segments[index].text for index in chosen],
        )
