"""Media files of a folder: checked or re-encoded, and read; faults are collected."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from vatt.errors import Fault, MediaError, ShardError
from vatt.media.reader_process import LIMIT_SECONDS, prepare_worker
from vatt.system.workers import Lost, results_in_order

if TYPE_CHECKING:
    from vatt.config.options import Reencoding

IN_MEMORY_BYTES = 64 << 20  # larger files are copied in pieces
WORK_SUFFIX = ".reencoding"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Steps before a media file is packed.

    Args:
        check: Whether to open the file.
        reencoding: Settings of re-encoding. None: the file is copied.
        work: Folder of re-encoded files.
    """

    check: bool = False
    reencoding: "Reencoding | None" = None
    work: Path = Path()


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


def prepare_file(job: tuple[Path, Preparation]) -> Path | Lost:
    """Opens or encodes a file in a worker process; returns the path of the file to pack."""
    path, preparation = job
    if preparation.reencoding is None and not preparation.check:
        return path
    from vatt.media.clip import probe

    try:
        if preparation.reencoding is not None:
            encoded = _encoded_file(path, preparation.reencoding, preparation.work)
            if encoded is not None:
                return encoded
        if preparation.check:
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
        for partial in work.glob("*.partial"):  # of processes that were ended
            partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            work.rmdir()  # if it is empty
        raise
    shutil.rmtree(work, ignore_errors=True)


def work_folder_of(out: Path) -> Path:
    """Path of `work_folder`, on the same disk as the output folder."""
    return (out if out.exists() else out.parent) / f".{out.name}{WORK_SUFFIX}"


def read_media(
    source: Path,
    files: Iterable[str],
    preparation: Preparation,
    faults: list[Fault],
    *,
    num_workers: int,
) -> Generator[MediaFile, None, None]:
    """Prepares and reads the media files of a folder in their order.

    Args:
        source: The folder.
        files: Paths of the files in it.
        preparation: Steps before a file is packed.
        faults: List that collects files that cannot be used.
        num_workers: Processes that work ahead; 0: this process, without limits of time and memory.
    """
    first, second = tee(files)
    with results_in_order(
        prepare_file,
        ((source / name, preparation) for name in first),
        num_workers=num_workers if preparation.check or preparation.reencoding else 0,
        limit_seconds=LIMIT_SECONDS,
        prepare=prepare_worker,
    ) as paths:
        for name, path in zip(second, paths, strict=True):
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
