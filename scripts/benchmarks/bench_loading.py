"""The shard loader: worker processes, the index of a large set, memory, and where a run resumes."""

import gc
import os
import re
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from bench_media import SMALL_KIND, TINY_KIND, MediaKind, make_media
from bench_sets import CAPTIONS, TEXT, open_set
from torch.utils.data import Dataset

from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.data.clips import Geometry
from vatt.data.loader import PositionedLoader, open_loader, raise_if_error
from vatt.data.order import GlobalOrder
from vatt.data.samples import ClipSamples
from vatt.gpu_check.figures import Row, median_seconds
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.shard_set import ShardSet

NUM_WORKERS = 2
BATCH_SIZE = 4
MEGABYTE = 1e6
PAGE_SAMPLES = 64  # a page of 4 KiB holds the index rows of 85 samples
GEOMETRY = Geometry(video=VideoConfig(), audio=AudioConfig(), text=TEXT, num_candidates=2)
SMALL_GEOMETRY = replace(
    GEOMETRY,
    video=VideoConfig(num_frames=8, frame_rate=5.0, image_size=32, patch_size=(4, 8, 8)),
    audio=AudioConfig(sample_rate=16_000, num_samples=25_600, patch_size=256),
)


def _open_loader(shards: ShardSet, geometry: Geometry, *, num_workers: int) -> PositionedLoader:
    """As a training run opens it."""
    tokenizer = Tokenizer.train(CAPTIONS, TEXT.vocab_size)
    samples = ClipSamples([shards], tokenizer, geometry, seed=0, augment=AugmentConfig())
    order = GlobalOrder([shards.shard_sizes])
    return PositionedLoader(samples, order, batch_size=BATCH_SIZE, num_workers=num_workers)


def measure_workers(
    folder: Path,
    goals: Sequence[tuple[MediaKind, float, int]],
    *,
    geometry: Geometry,
    media_seconds: float,
    rounds: int,
) -> list[Row]:
    """Clips per second of two workers and of one reading process, in turns, on the same clips.

    Args:
        folder: Where files are made.
        goals: Kind of file, ratio to reach, and batches timed in a round.
        geometry: Shapes of a clip.
        media_seconds: Length of the files.
        rounds: Rounds of both. Medians count; the ratio is the median of the rounds' ratios, since
            a virtual machine may be slower in one minute than in the next.
    """
    torch.set_num_threads(1)  # one reading process is one core's work
    rows = []
    for kind, at_least, num_batches in goals:
        media = make_media(folder, kind, media_seconds)
        shards = open_set(folder, media, num_shards=8, samples_per_shard=4)
        loaders = [_open_loader(shards, geometry, num_workers=count) for count in (0, NUM_WORKERS)]
        rates: list[list[float]] = [[], []]
        for _ in range(rounds):
            for loader, taken in zip(loaders, rates, strict=True):
                taken.append(_clips_per_second(loader, num_batches))
        alone, together = map(statistics.median, rates)
        ratio = statistics.median(two / one for one, two in zip(*rates, strict=True))
        rows += [
            Row(kind.name, "one reading process", alone, "clips/s"),
            Row(kind.name, "two workers", together, "clips/s"),
            Row(kind.name, "two workers, of one process", ratio, "×", at_least=at_least),
        ]
    return rows


def _clips_per_second(loader: PositionedLoader, num_batches: int) -> float:
    """In the long run: the first batch of each worker, with its start, is not counted."""
    batches = _endless(loader)
    for _ in range(NUM_WORKERS):
        next(batches)
    before = time.perf_counter()
    for _ in range(num_batches):
        next(batches)
    seconds = time.perf_counter() - before
    loader.close()  # the workers, which have gone on reading
    return num_batches * BATCH_SIZE / seconds


def _endless(loader: PositionedLoader) -> Any:
    while True:
        yield from loader


def measure_index(folder: Path, *, num_shards: int, samples_per_shard: int) -> list[Row]:
    """Time to open a large set, and private memory of a worker for its index."""
    media = make_media(folder, TINY_KIND, 1)
    small = open_set(folder, media, num_shards=1, samples_per_shard=samples_per_shard)
    shape = {"num_shards": num_shards, "samples_per_shard": samples_per_shard}
    large = open_set(folder, media, **shape)
    opening = {"open": partial(open_set, folder, media, **shape)}
    seconds = median_seconds(opening, 5, torch.device("cpu"))["open"]
    size = sum(array.nbytes for array in large._index.arrays().values()) / MEGABYTE
    memory, base = (statistics.median(_private_megabytes(shards)) for shards in (large, small))
    limit = max(0.1 * size, 0.5)
    case = f"{len(large):,} samples"
    return [
        Row(case, "opens", seconds, "s", at_most=1.0),
        Row(case, "index", size, "MB"),
        Row(case, "private memory of a worker for it", memory - base, "MB", at_most=limit),
    ]


class _Touched(Dataset[float]):
    """Looks up samples all over a set; each item is the private memory of the process."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards

    def __getitems__(self, indices: list[int]) -> float:
        for sample in range(0, len(self._shards), PAGE_SAMPLES):
            _ = self._shards[sample]
        gc.collect()
        lines = Path("/proc/self/smaps_rollup").read_text()
        return sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB", lines, re.M))) * 1024 / MEGABYTE


def _private_megabytes(shards: ShardSet) -> list[float]:
    """Private memory of each worker."""
    batches = [[number] for number in range(NUM_WORKERS)]
    loader = open_loader(
        _Touched(shards), batches, num_workers=NUM_WORKERS, start_method="forkserver"
    )
    return list(map(raise_if_error, loader))


def measure_memory(folder: Path, *, num_clips: int, num_warm_up: int) -> list[Row]:
    """Growth of memory and of open files over many clips."""
    media = make_media(folder, SMALL_KIND, 10)
    shards = open_set(folder, media, num_shards=8, samples_per_shard=8)
    loader = _open_loader(shards, SMALL_GEOMETRY, num_workers=0)
    batches = _endless(loader)
    for _ in islice(batches, num_warm_up // BATCH_SIZE):
        pass
    files, megabytes = _num_open_files(), _resident_megabytes()
    for _ in islice(batches, num_clips // BATCH_SIZE):
        pass
    grown = _resident_megabytes() - megabytes
    case = f"{num_clips:,} clips"
    return [
        Row(case, "growth of memory", grown, "MB", at_most=50),
        Row(case, "files left open", _num_open_files() - files, at_most=0),
    ]


def _resident_megabytes() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / MEGABYTE


def _num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def measure_resume(
    folder: Path, positions: Sequence[int], *, num_shards: int, samples_per_shard: int, rounds: int
) -> list[Row]:
    """Time from a loaded state to its first batch, at several positions."""
    torch.set_num_threads(1)
    media = make_media(folder, TINY_KIND, 1)
    shards = open_set(folder, media, num_shards=num_shards, samples_per_shard=samples_per_shard)
    state = _open_loader(shards, SMALL_GEOMETRY, num_workers=0).state_dict()

    def resume(position: int) -> None:
        loader = _open_loader(shards, SMALL_GEOMETRY, num_workers=0)
        loader.load_state_dict({**state, "position": position})
        next(iter(loader))

    steps = {position: partial(resume, position) for position in positions}
    medians = median_seconds(steps, rounds, torch.device("cpu"))
    slowest = max(medians.values()) / medians[positions[0]]
    case = f"{len(shards):,} samples"
    return [
        *(Row(f"at {at:,}", "first batch", 1e3 * seconds, "ms") for at, seconds in medians.items()),
        Row(case, "slowest, of that at the start", slowest, "×", at_most=1.5),
    ]
