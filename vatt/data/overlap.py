"""Validation clips that are in the training data, too, found by the indexes of the shards."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vatt.shards.shard_set import ShardSet

MOST_BY_CHANCE = 0.01  # share of clips: numbered files of 10 kB may agree in name and size


def warning_of_overlap(
    train: Sequence[ShardSet], validation: ShardSet, num_clips: int
) -> str | None:
    """Warning if a share of the validation clips that counts is in the training data; else None.

    Args:
        train: Training sets.
        validation: Validation set.
        num_clips: Number of validation clips in use, from the first.
    """
    repeated = repeated_clips(train, validation, num_clips)
    if len(repeated) <= MOST_BY_CHANCE * num_clips:
        return None
    return (
        f"{len(repeated):,} of {num_clips:,} validation clips are training clips as well, by file "
        f"name and size (such as {validation.key(repeated[0])!r}): what is measured on them says "
        "nothing about new clips; give --val shards of media that --train does not have"
    )


def repeated_clips(train: Sequence[ShardSet], validation: ShardSet, num_clips: int) -> list[int]:
    """Validation clips that are in a training shard, or have the name and size of a training clip.

    Names agree if they are equal, or if one is the end of the other: a sub-folder may have been
    packed by itself. Only indexes are compared, which are in memory; no shard is read.

    Args:
        train: Training sets.
        validation: Validation set.
        num_clips: Number of validation clips in use, from the first.

    Returns:
        Indices in the validation set, ascending.
    """
    shards = {place for one in train for place in _places(one)}
    is_shared = np.array([place in shards for place in _places(validation)])
    repeated = np.repeat(is_shared, validation.shard_sizes)[:num_clips]
    rows: dict[tuple[int, str], list[int]] = {}  # validation clips by size and file name
    for row in np.flatnonzero(~repeated).tolist():
        if (size := int(validation.media_sizes[row])) > 0:
            rows.setdefault((size, _file_name(validation.key(row))), []).append(row)
    sizes = np.array(sorted({size for size, _ in rows}), dtype=np.int64)
    for one in train if rows else ():
        alike = np.flatnonzero(np.isin(one.media_sizes, sizes))
        for number, size in zip(alike.tolist(), one.media_sizes[alike].tolist(), strict=True):
            key = one.key(number)
            for row in rows.get((size, _file_name(key)), ()):
                repeated[row] |= _one_ends_with_other(key, validation.key(row))
    return np.flatnonzero(repeated).tolist()


def _places(shards: ShardSet) -> Iterator[Path]:
    """Paths of shards, or of their copies in the cache, comparable between sets."""
    folder = shards.folder.resolve()  # once: a link in the path of each of many tars costs time
    return (folder / path.name for path in shards.paths)


def _file_name(key: str) -> str:
    return key.rpartition("/")[2]


def _one_ends_with_other(one: str, other: str) -> bool:
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")
