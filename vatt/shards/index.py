"""Index of a shard: keys, offsets and sizes of its members."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


MEDIA, TEXT, JSON = 0, 1, 2  # columns of ShardIndex.members


@dataclass(frozen=True)
class ShardIndex:
    """Keys of the samples and positions of their members.

    Args:
        keys: uint8, concatenated names in UTF-8.
        key_ends: int64 `[N]`, end of each name in `keys`.
        members: int64 `[N, 3, 2]`, offset (-1 if absent) and size in bytes of the media, text and
            json members.
    """

    keys: NDArray[np.uint8]
    key_ends: NDArray[np.int64]
    members: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of samples, `N`."""
        return len(self.key_ends)

    def key(self, sample: int) -> str:
        """Name of a sample."""
        start = self.key_ends[sample - 1] if sample else 0
        return self.keys[start : self.key_ends[sample]].tobytes().decode("utf-8", "surrogateescape")

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The three arrays by name."""
        return {"keys": self.keys, "key_ends": self.key_ends, "members": self.members}

    def same_as(self, other: "ShardIndex") -> bool:
        """Whether both indexes have the same samples at the same positions."""
        return all(
            np.array_equal(array, other.arrays()[name]) for name, array in self.arrays().items()
        )

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[str, NDArray[np.int64]]]) -> Self:
        """Packs `(key, members [3, 2])` of each sample."""
        names = [key.encode("utf-8", "surrogateescape") for key, _ in rows]
        return cls(
            keys=np.frombuffer(b"".join(names), dtype=np.uint8),
            key_ends=np.cumsum([len(name) for name in names], dtype=np.int64),
            members=np.array([members for _, members in rows], dtype=np.int64).reshape(-1, 3, 2),
        )

    @classmethod
    def join(cls, parts: Sequence["ShardIndex"]) -> Self:
        """Joins indexes, in order; offsets remain those in their shards."""
        starts = np.cumsum([0] + [len(part.keys) for part in parts[:-1]])
        return cls(
            keys=np.concatenate([part.keys for part in parts]),
            key_ends=np.concatenate(
                [part.key_ends + start for part, start in zip(parts, starts, strict=True)]
            ),
            members=np.concatenate([part.members for part in parts]),
        )


class SharedIndex(ShardIndex):
    """Index that worker processes share, by fork or through shared memory.

    Its arrays move to shared memory when it is first sent; PyTorch then sends handles, not copies.
    """

    def __getstate__(self) -> dict[str, "Tensor"]:
        """The arrays as shared tensors."""
        import torch

        if "tensors" not in vars(self):
            arrays = self.arrays().items()
            self.__setstate__({name: torch.from_numpy(a).share_memory_() for name, a in arrays})
        return vars(self)["tensors"]

    def __setstate__(self, tensors: dict[str, "Tensor"]) -> None:
        """Takes views of the tensors for its arrays, past `frozen`: they say the same."""
        vars(self).update({name: tensor.numpy() for name, tensor in tensors.items()})
        vars(self)["tensors"] = tensors
