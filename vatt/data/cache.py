"""Cache of decoded clips, in memory that worker processes and epochs share.

Decoding is most of the cost of a small data set. With the cache, a clip is decoded once per view,
`epoch % num_views`; all its random choices (time, bag of captions, crop, mirroring) are drawn per
view instead of per epoch. The sequence of samples does not change. The content of a slot depends
only on its index, so any process may fill it at any time.
"""

import logging
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset

from vatt.batch import Batch
from vatt.data.clips import ClipSample, Geometry, collate
from vatt.data.loader import StartMethod, open_loader, raise_if_error
from vatt.system.progress import progress_bar

logger = logging.getLogger(__name__)

GIB = 2**30
SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it; containers often make it small
SPARED_BYTES = 64 * 2**20  # of shared memory, for the batches that workers hand over
_FILLED, _VIDEO, _AUDIO = 1, 2, 4  # bits of a slot's state
_INT16_MAX = 32_767  # sound is kept as int16: an error of 1.5e-5, below that of the codecs


class ClipCache:
    """Slots for clips in shared memory.

    Slot `n` holds entry `n`; entries beyond the capacity are not cached.

    Args:
        num_entries: Number of clips to cache.
        geometry: Shapes of a clip.
        max_bytes: Maximum memory; less, with a warning, if the machine has too little shared
            memory.
    """

    def __init__(self, num_entries: int, geometry: Geometry, max_bytes: int) -> None:
        self.num_entries = num_entries
        self.geometry = geometry
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "video": (geometry.video_shape, torch.uint8),
            "audio": ((geometry.audio.num_samples,), torch.int16),
            "text": ((geometry.num_candidates, geometry.text.max_words), torch.int32),
            "sample_index": ((), torch.int64),
            "state": ((), torch.uint8),
        }
        self.slot_bytes = sum(math.prod(shape) * kind.itemsize for shape, kind in shapes.values())
        wanted_bytes = min(num_entries, max_bytes // self.slot_bytes) * self.slot_bytes
        self.capacity = _fitting_bytes(wanted_bytes) // self.slot_bytes
        self.num_bytes = self.capacity * self.slot_bytes
        self._slots = {
            name: torch.zeros(self.capacity, *shape, dtype=kind).share_memory_()
            for name, (shape, kind) in shapes.items()
        }

    @property
    def num_filled(self) -> int:
        """Number of slots that hold a clip."""
        return int((self._slots["state"] & _FILLED).sum())

    @property
    def complete(self) -> bool:
        """Whether all entries are cached, so that no clip needs decoding."""
        return self.num_filled == self.num_entries

    def empty_slots(self) -> list[int]:
        """Entries that have a slot but are not cached yet."""
        return (self._slots["state"] == 0).nonzero()[:, 0].tolist()

    def keeps(self, entry: int) -> bool:
        """Whether there is a slot for an entry."""
        return entry < self.capacity

    def batch(
        self, entries: Sequence[int], read: Callable[[int], ClipSample]
    ) -> tuple[Batch, list[int]]:
        """Batch of some entries; if all are cached, this is one copy per modality.

        Args:
            entries: Entry of each row.
            read: Reads the clip of a row that is not cached; it is stored if it has a slot.

        Returns:
            A batch like that of `collate`, but without keys, and the `sample_index` of each row.
        """
        slots = torch.tensor(entries)
        is_loose, slots = slots >= self.capacity, slots.clamp(max=self.capacity - 1)
        is_missing = is_loose | (self._slots["state"][slots] == 0)
        clips = {row: read(row) for row in is_missing.nonzero()[:, 0].tolist()}
        for row, clip in clips.items():
            self.put(entries[row], clip)
        video, audio_int16, text_int32, index, state = (
            self._slots[name].index_select(0, slots)
            for name in ("video", "audio", "text", "sample_index", "state")
        )
        audio, text = audio_int16.to(torch.float32).mul_(1 / _INT16_MAX), text_int32.to(torch.int64)
        video_mask, audio_mask = (state & _VIDEO) > 0, (state & _AUDIO) > 0
        rows = is_loose.nonzero()[:, 0]
        if len(rows):
            loose = [clips[row] for row in rows.tolist()]
            other = collate(loose, self.geometry)
            video[rows], audio[rows], text[rows] = other.video, other.audio, other.text
            video_mask[rows], audio_mask[rows] = other.video_mask, other.audio_mask
            index[rows] = torch.tensor([clip.sample_index for clip in loose])
        batch = Batch(
            video=video, audio=audio, text=text, video_mask=video_mask, audio_mask=audio_mask
        )
        return batch, index.tolist()

    def put(self, entry: int, sample: ClipSample) -> None:
        """Stores a clip in the slot of an entry; the slot is marked as full last."""
        if not self.keeps(entry):
            return
        state = _FILLED
        if sample.video is not None:
            self._slots["video"][entry] = sample.video
            state |= _VIDEO
        if sample.audio is not None:
            amplitude = (sample.audio * _INT16_MAX).round_().clamp_(-_INT16_MAX, _INT16_MAX)
            self._slots["audio"][entry] = amplitude.to(torch.int16)
            state |= _AUDIO
        self._slots["text"][entry] = sample.text.to(torch.int32)
        self._slots["sample_index"][entry] = sample.sample_index
        self._slots["state"][entry] = state


def warm_up(
    cache: ClipCache,
    read: Callable[[int], ClipSample],
    *,
    num_workers: int,
    start_method: StartMethod,
    show_progress: bool,
    title: str,
) -> None:
    """Fills a cache before it is used.

    Args:
        cache: Cache.
        read: Reads the clip of an entry; a method that can be sent to processes.
        num_workers: Processes that read; 0: this process.
        start_method: How the processes start.
        show_progress: Whether to show a progress bar, in clips.
        title: Title of the bar.

    Raises:
        UserError: too many files are unreadable.
        ShardError: a shard has changed since it was opened.
    """
    missing = cache.empty_slots()
    chunks = [missing[start : start + 16] for start in range(0, len(missing), 16)]
    loader = open_loader(
        _Filling(cache, read),
        chunks,
        num_workers=min(num_workers, len(chunks)),
        start_method=start_method,
    )
    with progress_bar(None, title, len(missing), unit="clip", show=show_progress) as bar:
        for number in map(raise_if_error, loader):
            bar.update(number)


class _Filling(Dataset[int]):
    """Reads entries into the cache; gives how many there were."""

    def __init__(self, cache: ClipCache, read: Callable[[int], ClipSample]) -> None:
        self._cache, self._read = cache, read

    def __getitems__(self, entries: list[int]) -> int:
        for entry in entries:
            self._cache.put(entry, self._read(entry))
        return len(entries)


def _fitting_bytes(wanted_bytes: int) -> int:
    """Asks first: writing past the end of shared memory would kill the process silently."""
    if not SHARED_MEMORY.is_dir():
        return wanted_bytes
    free_bytes = shutil.disk_usage(SHARED_MEMORY).free
    fitting_bytes = max(0, min(wanted_bytes, free_bytes - SPARED_BYTES))
    if fitting_bytes < wanted_bytes:
        logger.warning(
            "%s has %.2f GiB free: the cache of decoded clips gets %.2f GiB and not the %.2f GiB "
            "that it was to have, so training is slower; lower data.cache_gib, or enlarge the "
            "shared memory (for Docker: --shm-size)",
            SHARED_MEMORY,
            free_bytes / GIB,
            fitting_bytes / GIB,
            wanted_bytes / GIB,
        )
    return fitting_bytes
