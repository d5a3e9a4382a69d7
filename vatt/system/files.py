"""Files that appear whole or not at all, and JSON files of users."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vatt.errors import ShardError, UserError

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Writes a file under a temporary name and renames: readers see the old one or all of the new.

    Args:
        path: Its folder must exist.
        content: All of it.

    Raises:
        OSError: names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, **hooks: Any) -> Any:
    """Content of a JSON file.

    Args:
        path: The file.
        hooks: Arguments of `json.loads`; a `ValueError` of theirs is a fault of the file.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), **hooks)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): correct the path") from error
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise UserError(f"{path} is not JSON ({error}): correct it") from error


def no_space(error: OSError, advice: str) -> str:
    """What to say of a full disk.

    Args:
        error: Its `filename` is named.
        advice: What to do after freeing some.
    """
    where = f" for {error.filename}" if error.filename else ""
    return f"No space left on the disk{where}: free some, then {advice}"


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
