"""The media files of a folder: found, checked or encoded anew, and read; faults are noted."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING

from vatt.errors import Fault, MediaError, ShardError
from vatt.media.reader_process import LIMIT_SECONDS, prepare_worker
from vatt.system.workers import Lost, results_in_order

if TYPE_CHECKING:
    from vatt.media.reencode import Reencoding

IN_MEMORY_BYTES = 64 << 20  # larger files are copied in pieces
WORK_SUFFIX = ".reencoding"


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done with a media file before it is packed.

    Args:
        check: Whether it is opened.
        reencoding: How it is encoded anew.
        work: Where that goes.
    """

    check: bool = False
    reencoding: "Reencoding | None" = None
    work: Path = Path()


@dataclass(frozen=True)
class Prepared:
    """What became of a file.

    Args:
        path: What to pack: the file itself, or that encoded anew.
        extension: Of its format.
        fault: Why it cannot be packed; "" if it can.
    """

    path: Path
    extension: str
    fault: str = ""


def prepare_file(job: tuple[Path, Preparation]) -> Prepared:
    """Opens or encodes a file, as it is to be done; runs in a process of its own."""
    path, preparation = job
    own = Prepared(path, path.suffix[1:])
    if preparation.reencoding is None and not preparation.check:
        return own
    from vatt.media.clip import probe

    try:
        if preparation.reencoding is not None:
            encoded = _encoded_file(path, preparation.reencoding, preparation.work)
            if encoded is not None:
                return Prepared(encoded, "mp4")
        if preparation.check:
            probe(path)
    except MediaError as error:
        return Prepared(path, own.extension, error.reason)
    return own


def _encoded_file(path: Path, how: "Reencoding", work: Path) -> Path | None:
    """A file encoded anew, now or by a build that was interrupted; None if it stays as it is."""
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
    """A folder for files encoded anew: kept if the block ends by an error, to go on from it."""
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
    """Where `work_folder` is: on the disk of the folder that is made."""
    return (out if out.exists() else out.parent) / f".{out.name}{WORK_SUFFIX}"


@contextlib.contextmanager
def prepared_media(
    source: Path,
    files: Iterable[str],
    preparation: Preparation,
    faults: list[Fault],
    *,
    num_workers: int,
) -> Iterator[Iterator[tuple[str, Prepared]]]:
    """The files that can be used, with what to pack of them, in their order.

    Args:
        source: Their folder.
        files: Their paths in it.
        preparation: What is done with each.
        faults: Gets what is wrong with the others.
        num_workers: Processes that work ahead; 0 works in this one, where nothing is limited.
    """
    first, second = tee(files)
    with results_in_order(
        prepare_file,
        ((source / name, preparation) for name in first),
        num_workers=num_workers if preparation.check or preparation.reencoding else 0,
        limit_seconds=LIMIT_SECONDS,
        prepare=prepare_worker,
    ) as found:
        yield _without_faults(second, found, faults)


def _without_faults(
    names: Iterable[str], found: Iterable[Prepared | Lost], faults: list[Fault]
) -> Iterator[tuple[str, Prepared]]:
    for name, one in zip(names, found, strict=True):
        if isinstance(one, Lost):
            faults.append(Fault(name, one.reason))
        elif one.fault:
            faults.append(Fault(name, one.fault))
        else:
            yield name, one


def read_media(
    files: Iterable[tuple[str, Prepared]], faults: list[Fault]
) -> Iterator[tuple[str, str, bytes | Path, int]]:
    """Name, extension, content and size of each file that can be read; large ones stay paths."""
    for name, prepared in files:
        path = prepared.path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read() if size <= IN_MEMORY_BYTES else path
        except OSError as error:
            faults.append(Fault(name, f"cannot be read: {error.strerror}"))
            continue
        if size:
            yield name, prepared.extension, content, size
        else:
            faults.append(Fault(name, "is empty (0 bytes)"))
