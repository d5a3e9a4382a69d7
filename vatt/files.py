"""Files that appear whole or not at all, and JSON files of users."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from vatt.errors import UserError

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
