"""Atomic writing of files and folders, locks, and reading of JSON."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vatt.errors import UserError, VattError
from vatt.system.workers import tell_alive

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # full disk, quota, limit on file sizes
LOCK_HELD = (errno.EWOULDBLOCK, errno.EACCES)
LOCK_SECONDS = 0.05  # from one attempt to the next


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Context with a file to write, which appears under its name only if the block succeeds.

    It is then on disk, so a crash of the machine does not lose it.

    Args:
        path: Path of the file; its folder must exist. Until the end, the file has a temporary name
            beside it, `.NAME.PROCESS.partial`, which is its `name`.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    partial = _partial(path, path.parent)
    try:
        with _errors_name(path, partial):
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes bytes to an `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Context with a folder to fill, whose content appears in `path` only if the block succeeds.

    Args:
        path: Folder to create, or an empty folder.
        replace: Whether `path` may have content, which is removed at the end.

    Raises:
        OSError: a file or folder cannot be written; the error names its final path.
    """
    # An empty folder is filled: it can be a mount point or the current folder, which must stay.
    fill = path.exists() and not replace
    parent = path if fill else path.parent
    remove_leftovers(path, parent)
    partial = _partial(path, parent)
    try:
        with _errors_name(path, partial):
            partial.mkdir(parents=True)
            yield partial
            if fill:
                for item in sorted(partial.iterdir()):  # build.json makes them count: it is last
                    item.rename(path / item.name)
            else:
                if replace and path.exists():
                    shutil.rmtree(path)
                partial.rename(path)
            _sync(parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(path: Path, parent: Path) -> None:
    """Removes temporary files of `atomic_file` and `atomic_folder` that killed processes left."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.partial")
    for item in parent.iterdir() if parent.is_dir() else ():
        match = name.fullmatch(item.name)
        if match is None or _is_running(int(match[1])):
            continue
        if item.is_dir():
            shutil.rmtree(item, ignore_errors=True)
        else:
            item.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether there is another process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return process != os.getpid()


def _partial(path: Path, parent: Path) -> Path:
    return parent / f".{path.name}.{os.getpid()}.partial"


@contextlib.contextmanager
def _errors_name(path: Path, partial: Path) -> Iterator[None]:
    """Replaces the temporary name in errors by the final one."""
    try:
        yield
    except VattError as error:
        error.args = tuple(str(one).replace(str(partial), str(path)) for one in error.args)
        raise
    except OSError as error:
        filename = str(error.filename or partial)
        if error.errno is None or not filename.startswith(str(partial)):
            raise
        final = filename.replace(str(partial), str(path))
        raise OSError(error.errno, error.strerror, final) from error


def _sync(folder: Path) -> None:
    """Writes the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every file system can
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, refusal: UserError | None = None) -> Iterator[None]:
    """Context that holds an exclusive lock of a file or folder.

    The lock excludes other processes and threads, and is released when the process ends for any
    reason. On a file system without locks this does nothing.

    Args:
        path: Folder, or file; a missing file is created and remains.
        refusal: Error to raise if the lock is taken. None: wait for the lock.
    """
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, flags, 0o666)
    try:
        while not _take_lock(descriptor):
            if refusal is not None:
                raise refusal
            time.sleep(LOCK_SECONDS)
            tell_alive()
        yield
    finally:
        os.close(descriptor)


def _take_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in LOCK_HELD  # a file system without locks: go on as if alone
    return True


def read_json(path: Path, **hooks: Any) -> Any:
    """Content of a JSON file.

    Args:
        path: The file.
        hooks: Arguments of `json.loads`; if they raise `ValueError`, the file is invalid.

    Raises:
        UserError: the file cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), **hooks)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): correct the path") from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise UserError(f"{path} is not JSON ({error}): correct it") from error


def no_space(error: OSError, advice: str) -> str:
    """Message about a full disk.

    Args:
        error: Error, whose `filename` the message names.
        advice: What to do after freeing space.
    """
    where = f" for {error.filename}" if error.filename else ""
    return f"No space left on the disk{where}: free some, then {advice}"
