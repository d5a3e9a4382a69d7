"""The retrieval set: every record once, from the middle of its file, with all its captions."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.cache import ClipCache
from datamodules.clips import (
    ClipSample,
    Geometry,
    collate,
    nearest_segments,
    place_window,
    read_duration,
    read_sample,
)
from datamodules.loader import StartMethod, open_loader, unpack
from vatt.batch import Batch
from vatt.errors import MediaError
from vatt.shards import ShardSet
from vatt.text import Tokenizer

logger = logging.getLogger(__name__)


def count_captions(shards: ShardSet) -> int:
    """Captions of the record that has most."""
    counts = [0]
    for sample_index in range(len(shards)):
        try:
            counts.append(len(shards[sample_index].segments))
        except MediaError:
            continue  # the row will be empty, and reading it says why
    return max(counts)


class RetrievalSamples(Dataset[ClipSample]):
    """Every record of a shard set, always the same way.

    A record that cannot be read gives a row whose masks are all False, and a warning that names the
    file.

    Args:
        shards: The shard set.
        tokenizer: Captions → ids.
        geometry: Shapes; of records with more than `num_candidates` captions those nearest to the
            window are taken.
        cache: Keeps decoded clips.
        num_clips: The first so many records; None: all.
    """

    def __init__(
        self,
        shards: ShardSet,
        tokenizer: Tokenizer,
        geometry: Geometry,
        cache: ClipCache | None = None,
        num_clips: int | None = None,
    ) -> None:
        self.shards = shards
        self.num_clips = len(shards) if num_clips is None else num_clips
        self.tokenizer = tokenizer
        self.geometry = geometry
        self.cache = cache

    def __len__(self) -> int:
        """Records."""
        return self.num_clips

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
        return self.cache.read_batch(
            indices, lambda row: self[indices[row]], lambda _, index: self.shards.key(index)
        )

    def fill_cache(self, entries: Sequence[int]) -> None:
        """Reads some records into the cache."""
        assert self.cache is not None
        self.cache.fill(entries, lambda row: self[entries[row]])

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


class RetrievalLoader:
    """Batches of a set for evaluation. Rank `r` of `W` takes the records `r::W`.

    So that all ranks make the same number of steps, the first records come again at the end of some
    ranks; their keys tell. Lightning leaves loaders alone that are not its own kind: it neither
    splits this one again nor advises on workers.

    Args:
        samples: The set; its `__getitems__` makes the batch of a list of indices.
        batch_size: Rows per rank.
        rank: This process.
        world_size: Number of processes.
        num_workers: Processes that read, started for each pass. With everything cached none is
            needed.
        start_method: How they start.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        start_method: StartMethod = "forkserver",
    ) -> None:
        size = len(samples)  # type: ignore[arg-type]  # torch's data sets have none in general
        num_rows = -(-size // world_size)
        rows = [(rank + world_size * row) % size for row in range(num_rows)]
        self._loader = open_loader(
            samples,
            [rows[first : first + batch_size] for first in range(0, num_rows, batch_size)],
            num_workers=num_workers,
            start_method=start_method,
        )

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """All records of this rank.

        Raises:
            ShardError: a shard has changed since it was opened.
        """
        return map(unpack, self._loader)
