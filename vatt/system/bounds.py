"""Bounds on the memory that a file may take, checked by what it states before it is read."""

import zipfile
from pathlib import Path
from typing import Any

from vatt.errors import UserError, VattError

SMALL_BYTES = 64 << 20  # which a file of any size may unpack to
# Times its own size, beyond that. Vectors and texts pack to a tenth at best, and zeros to a
# thousandth: a "bomb" of 10 MB has 10 GB.
MOST_TIMES = 100


def check_bytes(
    path: Path, num_bytes: int, most_bytes: int, error: type[VattError] = UserError
) -> None:
    """Refuses to read more bytes than a file of its kind can need.

    Args:
        path: The file.
        num_bytes: Bytes that reading it would take.
        most_bytes: Limit.
        error: Kind of the error.

    Raises:
        VattError: there are more; of the kind `error`.
    """
    if num_bytes > most_bytes:
        raise error(
            f"{path} is refused: reading it would take {num_bytes:,} bytes of memory, and at most "
            f"{most_bytes:,} are allowed; get the file anew from where it was made, or leave it out"
        )


def check_unpacked(
    path: Path, num_bytes: int, *, times: int = MOST_TIMES, error: type[VattError] = UserError
) -> None:
    """Refuses a file that unpacks to far more bytes than it has.

    Args:
        path: The file.
        num_bytes: Bytes that it says it unpacks to.
        times: Multiple of its size that is allowed, if more than `SMALL_BYTES`; 1 for files whose
            parts are not packed.
        error: Kind of the error.

    Raises:
        VattError: it unpacks to more; of the kind `error`.
    """
    check_bytes(path, num_bytes, max(SMALL_BYTES, times * path.stat().st_size), error)


def check_parquet(
    path: Path, metadata: Any, *, row_bytes: int = 1, error: type[VattError] = UserError
) -> None:
    """Refuses a parquet file whose metadata state far more bytes or rows than it can hold.

    Args:
        path: The file.
        metadata: `pyarrow.parquet.FileMetaData` of the file.
        row_bytes: Memory that a row takes at least.
        error: Kind of the error.

    Raises:
        VattError: it states more; of the kind `error`.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    pages = sum(group.total_byte_size for group in groups)
    check_unpacked(path, max(pages, metadata.num_rows * row_bytes), error=error)


def unpacked_bytes(archive: zipfile.ZipFile) -> int:
    """Bytes of all members of an archive, unpacked; reading a member yields no more."""
    return sum(member.file_size for member in archive.infolist())
