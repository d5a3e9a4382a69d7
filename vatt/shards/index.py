"""Index of a shard: keys, offsets and sizes of its members, found without unpacking the tar.

Hostile tars are refused.
"""

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from vatt.errors import ShardError
from vatt.media.folder import MEDIA_EXTENSIONS

if TYPE_CHECKING:
    from torch import Tensor

MEDIA, TEXT, JSON = 0, 1, 2  # columns of ShardIndex.members
MAX_HEADER_BYTES = 1 << 20  # of a long name or further attributes, read into memory whole
TAR_BLOCK = 512  # bytes; headers and payloads start at multiples of it


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

    def fits(self, size: int) -> bool:
        """Whether this can be the index of a tar of `size` bytes."""
        arrays = [(str(array.dtype), array.ndim) for array in self.arrays().values()]
        if arrays != [("uint8", 1), ("int64", 1), ("int64", 3)]:
            return False
        offsets, sizes = self.members[..., 0], self.members[..., 1]
        ends = np.concatenate([[0], self.key_ends])
        return bool(
            self.members.shape == (len(self), 3, 2)
            and ends[-1] == len(self.keys)
            and (np.diff(ends) >= 0).all()
            and ((offsets < 0) | ((sizes >= 0) & (sizes <= size - offsets))).all()
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


def scan_shard(shard: Path) -> ShardIndex:
    """Index of a tar, made from its headers.

    Raises:
        ShardError: the file is not a tar, is truncated, damaged, without samples, or hostile
            (absolute paths, `..`, links, devices).
    """
    rows: dict[str, tuple[NDArray[np.int64], list[int]]] = {}
    dotted = ""  # a medium whose name has a further dot: its key would end there
    if not shard.is_file():  # reading a pipe would wait for ever
        raise ShardError(f"{shard} is no plain file: give tars")
    try:
        with _Headers(io.FileIO(shard)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _refuse_hostile(shard, member)
                if member.isfile() and not _place_member(shard, member, rows):
                    dotted = dotted or _dotted(member.name)
            _check_end(shard, tar)
    except (tarfile.TarError, EOFError) as error:
        if shard.stat().st_size == 0:
            raise ShardError(f"{shard} is empty (0 bytes): delete it or build it again") from error
        raise ShardError(
            f"{shard} is truncated or not a tar ({error}): copy or build it again"
        ) from error
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error.strerror}") from error
    if not rows and dotted:
        raise ShardError(
            f"{shard} holds no samples: a key ends at the first dot, and {dotted!r} has another "
            "before its extension; name the files without it, such as a_b.mp4"
        )
    if not rows:
        raise ShardError(
            f"{shard} holds no samples (KEY.mp4, KEY.txt, KEY.json): delete it or build it again"
        )
    return ShardIndex.from_rows([(key, members) for key, (members, _) in rows.items()])


def leads_outside(name: str) -> bool:
    """Whether unpacking a member would write outside the target folder."""
    return (
        name.startswith(("/", "\\"))
        or name[1:2] == ":"
        or ".." in name.replace("\\", "/").split("/")
    )


def _refuse_hostile(shard: Path, member: tarfile.TarInfo) -> None:
    if leads_outside(member.name):
        reason = "leads out of the archive"
    elif member.issym() or member.islnk():
        reason = f"is a link to {member.linkname!r}"
    elif member.issparse() or not (member.isfile() or member.isdir()):
        reason = "is neither a plain file nor a folder"
    else:
        return
    raise ShardError(
        f"{shard} is refused: its member {member.name!r} {reason}; build the shard from plain files"
    )


def _place_member(
    shard: Path, member: tarfile.TarInfo, rows: dict[str, tuple[NDArray[np.int64], list[int]]]
) -> bool:
    """Adds a member to its sample's row; False for files that belong to no sample."""
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    extension = extension.lower()
    if not stem:  # ._name.mp4 and the like
        return False
    if extension in MEDIA_EXTENSIONS:
        column, rank = MEDIA, MEDIA_EXTENSIONS.index(extension)
    elif extension in ("txt", "json"):
        column, rank = (TEXT if extension == "txt" else JSON), 0
    else:
        return False
    key = f"{folder}/{stem}" if folder else stem
    members, ranks = rows.setdefault(
        key, (np.full((3, 2), -1, dtype=np.int64), [len(MEDIA_EXTENSIONS)] * 3)
    )
    if rank == ranks[column]:
        raise ShardError(
            f"{shard} holds {member.name!r} twice: keys must be unique, build the shard again"
        )
    if rank < ranks[column]:
        ranks[column] = rank
        members[column] = member.offset_data, member.size
    return True


def _dotted(name: str) -> str:
    """The name of a media file with a further dot; "" for other names."""
    stem, _, extension = name.rpartition("/")[2].rpartition(".")
    is_media = extension.lower() in MEDIA_EXTENSIONS and stem and not stem.startswith(".")
    return name if is_media else ""


class _Headers(io.BufferedReader):
    """File object from which `tarfile` reads only headers, and skips payloads."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise ShardError(
                f"{self.name} is refused: a header claims to have {size:,} bytes, at most "
                f"{MAX_HEADER_BYTES:,} are read; build the shard from plain files"
            )
        return super().read(size)


def _check_end(shard: Path, tar: tarfile.TarFile) -> None:
    """Refuses a tar that does not end with the end mark, which `tarfile` does not check."""
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(TAR_BLOCK)
    if len(block) < TAR_BLOCK:
        raise ShardError(
            f"{shard} is truncated: it ends at byte {tar.offset + len(block)} without an end mark; "
            "copy or build it again"
        )
    if any(block):
        raise ShardError(f"{shard} is damaged at byte {tar.offset}: copy or build it again")
