"""Members of a tar file, read from its headers; hostile tars are refused."""

import io
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vatt.errors import ShardError
from vatt.media.folder import MEDIA_EXTENSIONS
from vatt.shards.index import JSON, MEDIA, TEXT, ShardIndex

MAX_HEADER_BYTES = 1 << 20  # of a long name or further attributes, read into memory whole
TAR_BLOCK = 512  # bytes; headers and payloads start at multiples of it


def scan_shard(shard: Path) -> ShardIndex:
    """Index of a tar, made from its headers.

    Raises:
        ShardError: the file is not a tar, is truncated, damaged, without samples, or hostile
            (absolute paths, `..`, links, devices).
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
) -> None:
    """Adds a member to its sample's row; files that belong to no sample are skipped."""
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
