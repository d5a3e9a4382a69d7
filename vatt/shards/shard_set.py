"""Reading of tar shards by index of the sample.

A shard is a plain tar in the layout that video2dataset writes: `KEY.mp4` (or `.webm`, `.m4a`, …),
`KEY.txt` and `KEY.json`, one after the other. Its index (`index_file.py`) contains their positions,
so that a sample can be read without scanning the archive: texts by one `pread` each, media as a
`FileRange` of the tar.
"""

import bisect
import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vatt.errors import MediaError
from vatt.shards.index import MEDIA, SharedIndex
from vatt.shards.index_file import read_index
from vatt.shards.places import Shard, find_tars, is_remote, local_or_remote
from vatt.shards.record import Record, read_record
from vatt.shards.remote import RemoteShard, read_indexes_of


class ShardSet(Sequence[Record]):
    """All shards of a folder as one sequence of records, sorted by the names of the shards.

    It keeps no file open. Worker processes share its index of about 66 bytes per sample.

    Args:
        folder: Folder with `*.tar`: a path, or an address such as `s3://bucket/shards`. Missing
            index files are written beside the tars (or kept in memory if the folder is read-only).

    Raises:
        ShardError: the folder does not exist or has no shards; a shard is empty, truncated, hostile
            or not a tar; or an index belongs to another version of its shard.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.name = str(local_or_remote(os.fspath(folder)))
        self.shards = find_tars(folder)
        self.paths = [one if isinstance(one, Path) else one.path for one in self.shards]
        self.folder = self.paths[0].parent if is_remote(folder) else Path(folder)
        remote = [one for one in self.shards if isinstance(one, RemoteShard)]
        parts = read_indexes_of(remote) if remote else [read_index(path) for path in self.paths]
        self.shard_sizes = np.array([len(part) for part in parts], dtype=np.int64)
        self._ends = np.cumsum(self.shard_sizes).tolist()
        self._index = SharedIndex.join(parts)

    def __len__(self) -> int:
        """Number of samples in all shards."""
        return len(self._index)

    def __getitem__(self, sample: int) -> Record:  # type: ignore[override]  # no slices
        """Reads the texts of a sample; its media is not touched.

        Raises:
            IndexError: no such sample.
            MediaError: the sample's json or text is damaged.
            ShardError: the shard has changed since it was opened.
        """
        sample = self._position(sample)
        shard = self.shard(sample)
        return read_record(shard, self._index.key(sample), self._index.members[sample])

    def key(self, sample: int) -> str:
        """Name of a sample, without reading its shard."""
        return self._index.key(self._position(sample))

    @property
    def media_sizes(self) -> NDArray[np.int64]:
        """Bytes of each sample's media, int64 `[N]`; -1 for a sample without media."""
        return self._index.members[:, MEDIA, 1]

    def shard(self, sample: int) -> Shard:
        """Tar that contains a sample."""
        return self.shards[bisect.bisect_right(self._ends, self._position(sample))]

    def captions(self) -> Iterator[str]:
        """All captions of the set, in order.

        Samples with a damaged json or txt are skipped; `vatt shards check` names them.
        """
        for sample in range(len(self)):
            with contextlib.suppress(MediaError):
                yield from (segment.text for segment in self[sample].segments)

    def _position(self, sample: int) -> int:
        position = sample + len(self) if sample < 0 else sample
        if not 0 <= position < len(self):
            raise IndexError(f"sample {sample} of {self.name}, which has {len(self)}")
        return position

    def __repr__(self) -> str:
        """Folder and numbers."""
        return f"ShardSet({self.name!r}: {len(self)} samples in {len(self.paths)} shards)"
