"""Shard sets to measure with: one shard, filled with a file many times over, under many names."""

import os
import shutil
from pathlib import Path

from vatt.config.geometry import TextConfig
from vatt.media.clip import probe
from vatt.shards.index_file import index_path
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet
from vatt.shards.writer import ShardWriter
from vatt.system.files import atomic_folder

CAPTIONS = ("a camera moves over hills", "now it turns back", "shapes cross the picture")
NUM_SEGMENTS = 8  # spread over a file, so that clips are read from all over it
TEXT = TextConfig(vocab_size=64)


def open_set(folder: Path, media: Path, *, num_shards: int, samples_per_shard: int) -> ShardSet:
    """A set of copies of one file, made once in a folder; all shards share their bytes on disk."""
    out = folder / f"set_{media.stem}_{num_shards}x{samples_per_shard}"
    if not out.exists():
        with atomic_folder(out) as partial:
            first = partial / "00000.tar"
            _write_shard(first, media, samples_per_shard)
            for number in range(1, num_shards):
                shard = partial / f"{number:05d}.tar"
                os.link(first, shard)
                shutil.copy(index_path(first), index_path(shard))
    return ShardSet(out)


def _write_shard(path: Path, media: Path, num_samples: int) -> None:
    seconds = probe(media).duration_seconds / NUM_SEGMENTS
    segments = [
        Segment(number * seconds, (number + 1) * seconds, CAPTIONS[number % len(CAPTIONS)])
        for number in range(NUM_SEGMENTS)
    ]
    content = media.read_bytes()
    with ShardWriter(path) as shard:
        for number in range(num_samples):
            shard.add(f"{number:06d}", content, media.suffix[1:], segments=segments)
