"""Media files of a folder: checked or re-encoded, and read; faults are collected."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vatt.errors import Fault, MediaError, ShardError
from vatt.media.reader_process import LIMIT_SECONDS, prepare_worker
from vatt.system.progress import progress_bar
from vatt.system.workers import Lost, results_in_order

if TYPE_CHECKING:
    from vatt.config.options import Reencoding

IN_MEMORY_BYTES = 64 << 20  # larger files are copied in pieces
WORK_SUFFIX = ".reencoding"


@dataclass(frozen=True)
class MediaFile:
    """A media file to pack.

    Args:
        name: Path in the media folder.
        extension: Extension of its format, without a dot.
        content: Bytes of the file, or its path if it is large.
        size: Size in bytes.
    """

    name: str
    extension: str
    content: bytes | Path
    size: int


def prepare_file(
    path: Path, *, check: bool, reencoding: "Reencoding | None", work: Path
) -> Path | Lost:
    """Opens or encodes a file in a worker process; returns the path of the file to pack."""
    if reencoding is None and not check:
        return path
    from vatt.media.clip import probe

    try:
        if reencoding is not None:
            encoded = _encoded_file(path, reencoding, work)
            if encoded is not None:
                return encoded
        if check:
            probe(path)
    except MediaError as error:
        return Lost(error.reason)
    return path


def _encoded_file(path: Path, how: "Reencoding", work: Path) -> Path | None:
    """Re-encoded file, from now or from an interrupted build; None if the file is copied."""
    from vatt.media.reencode import reencode

    try:
        status = path.stat()
    except OSError:
        return None  # is reported when it is read
    named = repr((str(path), status.st_size, status.st_mtime_ns, how))
    encoded = work / hashlib.sha256(named.encode()).hexdigest()  # no extension: it is no source
    return encoded if encoded.exists() or reencode(path, encoded, how) else None


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Context with a folder for re-encoded files; it is kept after an error, for a later resume."""
    work = work_folder_of(out)
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"{work} cannot be made: {error.strerror}") from error
    try:
        yield work
    except BaseException:
        for unfinished in work.glob("*.partial"):  # of processes that were ended
            unfinished.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            work.rmdir()  # if it is empty
        raise
    shutil.rmtree(work, ignore_errors=True)


def work_folder_of(out: Path) -> Path:
    """Path of `work_folder`, on the same disk as the output folder."""
    return (out if out.exists() else out.parent) / f".{out.name}{WORK_SUFFIX}"


def read_media(
    source: Path,
    files: Sequence[str],
    prepare: Callable[[Path], Path | Lost],
    faults: list[Fault],
    *,
    num_workers: int,
    show_progress: bool,
) -> Generator[MediaFile, None, None]:
    """Prepares and reads the media files of a folder in their order.

    Args:
        source: The folder.
        files: Paths of the files in it.
        prepare: Returns the path of the file to pack, like `prepare_file`.
        faults: List that collects files that cannot be used.
        num_workers: Processes that work ahead; 0: this process, without limits of time and memory.
        show_progress: Whether to draw a progress bar.
    """
    with results_in_order(
        prepare,
        (source / name for name in files),
        num_workers=num_workers,
        limit_seconds=LIMIT_SECONDS,
        prepare=prepare_worker,
    ) as paths:
        bar = progress_bar(files, "shards", unit="file", show=show_progress)
        for name, path in zip(bar, paths, strict=True):
            if isinstance(path, Lost):
                faults.append(Fault(name, path.reason))
                continue
            try:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    content = file.read() if size <= IN_MEMORY_BYTES else path
            except OSError as error:
                faults.append(Fault(name, f"cannot be read: {error.strerror}"))
                continue
            if size:
                # a file encoded anew has no extension
                yield MediaFile(name, path.suffix[1:] or "mp4", content, size)
            else:
                faults.append(Fault(name, "is empty (0 bytes)"))
