"""Files that appear whole or not at all."""

import errno
import os
from pathlib import Path

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


def no_space(error: OSError, advice: str) -> str:
    """What to say of a full disk.

    Args:
        error: Its `filename` is named.
        advice: What to do after freeing some.
    """
    where = f" for {error.filename}" if error.filename else ""
    return f"No space left on the disk{where}: free some, then {advice}"
