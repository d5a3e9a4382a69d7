"""Where each sample of a tar shard is: a pass over the tar's headers, kept in a file beside it.

`00000.tar.index` is a safetensors file with the arrays of `ShardIndex`, and with the size and time
of the tar that it describes.
"""

import contextlib
import errno
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from vatt.errors import ShardError

if TYPE_CHECKING:
    from torch import Tensor

# Of a sample with several media, the one whose extension comes first here counts.
MEDIA_EXTENSIONS = (
    *("mp4", "webm", "mkv", "mov", "avi", "m4v", "mpg", "mpeg", "ts", "flv", "wmv", "ogv", "3gp"),
    *("gif", "m4a", "mp3", "wav", "flac", "ogg", "opus", "aac", "wma"),
    *("jpg", "jpeg", "png", "webp", "bmp"),
)

INDEX_SUFFIX = ".index"  # 00000.tar → 00000.tar.index
INDEX_VERSION = "1"
MEDIA, TEXT, JSON = 0, 1, 2  # columns of ShardIndex.members
MAX_HEADER_BYTES = 1 << 20  # of a long name or further attributes, read into memory whole
TAR_BLOCK = 512  # bytes; headers and payloads start at multiples of it
OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class ShardIndex:
    """Where the members of each sample are.

    Args:
        keys: uint8, the UTF-8 names one after the other.
        key_ends: int64 `[N]`, where each name ends in `keys`.
        members: int64 `[N, 3, 2]`: of the media, text and json members the offset (-1: there is
            none) and size in bytes.
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
        """Whether both say the same."""
        mine, theirs = self.arrays(), other.arrays()
        return all(np.array_equal(mine[name], theirs[name]) for name in mine)

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
        """One index over the samples of several, in order; offsets stay those in their shard."""
        starts = np.cumsum([0] + [len(part.keys) for part in parts[:-1]])
        return cls(
            keys=np.concatenate([part.keys for part in parts]),
            key_ends=np.concatenate(
                [part.key_ends + start for part, start in zip(parts, starts, strict=True)]
            ),
            members=np.concatenate([part.members for part in parts]),
        )


class SharedIndex(ShardIndex):
    """An index that worker processes share: forked ones as it is, others through shared memory.

    Its arrays move there when it is first sent; PyTorch sends handles of shared tensors, no copies.
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


def find_shards(folder: Path) -> list[Path]:
    """The tars of a folder, by name.

    Raises:
        ShardError: no such folder, or none in it.
    """
    if not folder.exists():
        raise ShardError(
            f"no shard folder {folder}: correct the path, or make it with "
            f"`vatt shards build MEDIA {folder}`"
        )
    if not folder.is_dir():
        raise ShardError(f"{folder} is a file: give the folder that holds the shards")
    paths = list_shards(folder)
    if not paths:
        raise ShardError(
            f"{folder} holds no shards (*.tar): if it holds media, make shards with "
            f"`vatt shards build {folder} OUT`"
        )
    return paths


def list_shards(folder: Path) -> list[Path]:
    """The tars of a folder, by name; none of them where there are none."""
    return sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))


def read_index(shard: Path) -> ShardIndex:
    """The index of a shard: the one beside it when that is fresh, else by a pass over the headers.

    A shard that was copied or touched, and holds what its index says, keeps its index.

    Raises:
        ShardError: see `scan_shard`; or the shard holds something else than its index says.
    """
    index, is_stored = find_index(shard)
    if not is_stored:
        with contextlib.suppress(OSError):  # a read-only folder: the index stays in memory
            write_index(shard, index)
    return index


def find_index(shard: Path) -> tuple[ShardIndex, bool]:
    """The index of a shard, and whether the one beside it is fresh.

    Raises:
        ShardError: as `read_index`.
    """
    stored = load_index(shard)
    if stored is not None and stored[0] == _stamp(shard):
        return stored[1], True
    index = scan_shard(shard)
    if stored is not None and not index.same_as(stored[1]):
        raise ShardError(
            f"{index_path(shard)} is stale: {shard} has changed since it was made. If the change "
            "is wanted, delete the index and start again; a resumed run then sees other samples"
        )
    return index, False


def scan_shard(shard: Path) -> ShardIndex:
    """Reads a tar's headers.

    Raises:
        ShardError: not a tar, truncated, damaged, without samples, or hostile: absolute paths,
            `..`, links, devices.
    """
    rows: dict[str, tuple[NDArray[np.int64], list[int]]] = {}
    if not shard.is_file():  # reading a pipe would wait for ever
        raise ShardError(f"{shard} is no plain file: give tars")
    try:
        with _Headers(io.FileIO(shard)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _refuse_hostile(shard, member)
                if member.isfile():
                    _place_member(shard, member, rows)
            _check_end(shard, tar)
    except (tarfile.TarError, EOFError) as error:
        if shard.stat().st_size == 0:
            raise ShardError(f"{shard} is empty (0 bytes): delete it or build it again") from error
        raise ShardError(
            f"{shard} is truncated or not a tar ({error}): copy or build it again"
        ) from error
    except OSError as error:
        raise ShardError(f"{shard} cannot be read: {error.strerror}") from error
    if not rows:
        raise ShardError(
            f"{shard} holds no samples (KEY.mp4, KEY.txt, KEY.json): delete it or build it again"
        )
    return ShardIndex.from_rows([(key, members) for key, (members, _) in rows.items()])


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that appears under its name only when the block ends well.

    Raises:
        ShardError: no space left.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise ShardError(
                f"no space left to write {path} ({error.strerror}): free some, or choose a folder "
                "on another disk"
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_written_whole(out: Path) -> Iterator[Path]:
    """A folder to fill whose content appears in `out` only when the block ends well.

    Args:
        out: A folder that is not there, or an empty one.

    Raises:
        ShardError: the folder cannot be written.
    """
    # An empty folder is filled: it can be a mount point or the current folder, which must stay.
    is_there = out.exists()
    partial = (out if is_there else out.parent) / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        yield partial
        if not is_there:
            partial.rename(out)
            return
        for path in sorted(partial.iterdir()):  # build.json, which makes them count, is the last
            path.rename(out / path.name)
    except ShardError as error:  # the user knows the folder by the name it was to get
        raise ShardError(str(error).replace(str(partial), str(out))) from error
    except OSError as error:
        raise ShardError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def index_path(shard: Path) -> Path:
    """Where the index of a shard is."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _stamp(shard: Path) -> dict[str, str]:
    """What an index must agree with to be fresh."""
    try:
        status = shard.stat()
    except OSError as error:
        link = f", a link to {shard.readlink()}," if shard.is_symlink() else ""
        raise ShardError(f"{shard}{link} cannot be read: {error.strerror}") from error
    return {
        "version": INDEX_VERSION,
        "size": str(status.st_size),
        "mtime_ns": str(status.st_mtime_ns),
    }


def write_index(shard: Path, index: ShardIndex) -> None:
    """Writes the index of a finished shard beside it."""
    with written_whole(index_path(shard)) as file:
        file.write(save_arrays(index.arrays(), metadata=_stamp(shard)))


def load_index(shard: Path) -> tuple[dict[str, str], ShardIndex] | None:
    """Stamp and index of a shard; None where there is none that this version reads."""
    path = index_path(shard)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as stored:
            stamp = dict(stored.metadata() or {})
            if stamp.get("version") != INDEX_VERSION:
                return None
            return stamp, ShardIndex(
                **{name: stored.get_tensor(name) for name in ("keys", "key_ends", "members")}
            )
    except SafetensorError:  # a damaged index says nothing about the shard: it is made again
        return None


def leads_outside(name: str) -> bool:
    """Whether a member's name leads out of the folder it would be unpacked in."""
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
) -> None:
    """Notes a member in its sample's row; files that belong to no sample are passed over."""
    folder, _, name = member.name.rpartition("/")
    stem, _, extension = name.partition(".")
    extension = extension.lower()
    if not stem:  # ._name.mp4 and the like
        return
    if extension in MEDIA_EXTENSIONS:
        column, rank = MEDIA, MEDIA_EXTENSIONS.index(extension)
    elif extension in ("txt", "json"):
        column, rank = (TEXT if extension == "txt" else JSON), 0
    else:
        return
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


class _Headers(io.BufferedReader):
    """A tar of which `tarfile` reads the headers: they are small, payloads are passed over."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise ShardError(
                f"{self.name} is refused: a header claims to have {size:,} bytes, at most "
                f"{MAX_HEADER_BYTES:,} are read; build the shard from plain files"
            )
        return super().read(size)


def _check_end(shard: Path, tar: tarfile.TarFile) -> None:
    """Refuses a tar that stops at anything but its end mark; `tarfile` is silent about it."""
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
