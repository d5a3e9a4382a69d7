"""Cache folder for copies of remote shards: its path, size limit and locks.

multi-storage-client 1.3 would replace about 50 lines of this, with a cache of 1,500 lines and 14
further packages. It cannot read web servers, does not compare checksums, and enforces the limit
every 300 s only, so downloads can fill the disk.
"""

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from vatt.errors import ShardError, UserError
from vatt.system import files

CACHE_GIB = 100.0  # unless VATT_CACHE_GIB says otherwise
DEAD_SECONDS = 3600.0  # a download that has written nothing for so long was killed
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def cache_folder() -> Path:
    """Folder of the cache: `VATT_CACHE`, or `~/.cache/vatt`."""
    return Path(os.environ.get("VATT_CACHE") or Path.home() / ".cache" / "vatt")


def cache_bytes() -> int:
    """Maximum size of the cache: `VATT_CACHE_GIB`, or 100 GiB.

    Raises:
        UserError: `VATT_CACHE_GIB` is not a number above 0.
    """
    text = os.environ.get("VATT_CACHE_GIB") or str(CACHE_GIB)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"VATT_CACHE_GIB must be a number above 0, got {text!r}")
    return int(value * 2**30)


def make_room(num_bytes: int, keep: Path) -> None:
    """Removes the least recently used copies until the cache is within its limit.

    Args:
        num_bytes: Size of the next download.
        keep: Copy that is never removed, even if it is larger than the limit.
    """
    root = cache_folder() / "shards"
    with locked(root / "bound"):
        copies = []
        excess = num_bytes - cache_bytes()
        for path in (*root.glob("*/*.tar"), *root.glob("*/.*.partial")):
            with contextlib.suppress(FileNotFoundError):  # finished or given up meanwhile
                status = path.stat()
                excess += status.st_size
                is_dead = time.time() - status.st_mtime > DEAD_SECONDS
                if path != keep and (path.suffix == ".tar" or is_dead):
                    copies.append((status.st_atime_ns, status.st_size, path))
        for _, size, path in sorted(copies):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[None]:
    """Creates the folder of a file in the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
        raise ShardError(
            f"the cache {cache_folder()} cannot be written ({error.strerror}): set VATT_CACHE to a "
            "folder that can"
        ) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context that waits for the lock of a file in the cache and holds it."""
    with own_folder(path), files.locked(path.with_name(f".{path.name}.lock")):
        yield
