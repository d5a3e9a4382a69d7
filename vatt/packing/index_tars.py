"""Indexes for existing tar shards, such as those of video2dataset; nothing is copied.

The indexes are written beside the tars. If that folder is read-only, another folder gets the
indexes and links to the tars; it is used as if it contained the tars.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from vatt.errors import Fault, MediaError, ShardError, fault_lines
from vatt.shards.index import MEDIA, ShardIndex
from vatt.shards.index_file import (
    INDEX_SUFFIX,
    find_index,
    find_shards,
    shard_folder,
    write_index,
)
from vatt.shards.places import Shard
from vatt.shards.record import read_record
from vatt.shards.remote import RemoteShard
from vatt.system.workers import Lost, results_in_order


@dataclass(kw_only=True)
class IndexReport:
    """Report of `index_shards`.

    Args:
        folder: Folder of the indexes.
        is_linked: Whether the tars in this folder are links.
        is_usable: Whether all shards in this folder can be read.
        num_samples: Number of samples in all shards.
        num_shards: Number of usable tars.
        num_new: Number of indexes that were written; the others were up to date.
        num_captions: Number of captions of all samples.
        num_without_text: Number of samples without captions.
        num_without_media: Number of samples without media.
        num_bytes: Size of the media in bytes.
        seconds: Duration of indexing.
        unusable: Shards that cannot be read; they get no link.
        faults: Samples with damaged texts.
    """

    folder: str
    is_linked: bool
    is_usable: bool = True
    num_samples: int = 0
    num_shards: int = 0
    num_new: int = 0
    num_captions: int = 0
    num_without_text: int = 0
    num_without_media: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    unusable: list[Fault] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def __str__(self) -> str:
        """A few lines for people."""
        links = " (links)" if self.is_linked else ""
        lines = [
            f"{self.folder}: {self.num_samples} samples in {self.num_shards} shards{links}, "
            f"{self.num_bytes / 1e6:.1f} MB, {self.num_captions} captions, "
            f"{self.num_without_text} samples without text, "
            f"{self.num_without_media} without media; "
            f"{self.num_new} indexes made ({self.seconds:.1f} s)",
            *fault_lines(self.unusable, "unusable"),
            *fault_lines(self.faults, "fault"),
        ]
        if not self.is_usable:
            lines.append(f"  {self.folder} can be used when the unusable shards are gone from it")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Contents:
    """Contents of a shard, as a worker read them."""

    index: ShardIndex
    is_stored: bool
    num_captions: int
    num_without_text: int
    faults: tuple[Fault, ...]


def index_shards(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    num_workers: int = 0,
    show_progress: bool = True,
) -> IndexReport:
    """Writes missing indexes of tar shards, and counts the contents of the shards.

    Args:
        source: Folder with `*.tar` in the layout of `vatt/shards/shard_set.py`.
        out: Folder for the indexes and links to the usable tars; it is created, or comes from an
            earlier call. None or `source`: indexes are written beside the tars.
        num_workers: Processes that read tars; 0: this process.
        show_progress: Whether to show a progress bar.

    Raises:
        ShardError: a folder does not exist, has no usable shards, or cannot be written. Faults of
            single shards are in the report.
    """
    started = time.monotonic()
    source = Path(source)
    tars = find_shards(source)
    folder = source if out is None else Path(out)
    is_linked = folder.resolve() != source.resolve()
    report = IndexReport(folder=str(folder), is_linked=is_linked)
    with contextlib.ExitStack() as stack:
        place = folder
        if is_linked and folder.is_dir() and any(folder.iterdir()):
            _refuse_other_contents(folder, source)
        elif is_linked:
            place = stack.enter_context(shard_folder(folder.resolve()))
        new_links = _link(tars, place) if is_linked else []
        places = [place / tar.name for tar in tars]
        bar = tqdm(total=len(tars), desc="index", unit="shard", disable=not show_progress)
        with bar, results_in_order(_read_contents, places, num_workers=num_workers) as results:
            for tar, contents in zip(places, results, strict=True):
                _add(report, tar, contents, source)
                bar.update()
        unusable = {fault.where for fault in report.unusable}
        for link in new_links:
            if link.name in unusable:
                link.unlink()
        report.is_usable = unusable <= {link.name for link in new_links}
        if not report.num_shards:
            raise ShardError(
                f"none of the {len(tars)} shards of {source} can be used; the first one: "
                f"{report.unusable[0].reason}"
            )
    report.seconds = time.monotonic() - started
    return report


def _refuse_other_contents(folder: Path, source: Path) -> None:
    for path in folder.iterdir():
        is_link = path.is_symlink() and path.readlink().parent == source.resolve()
        if not (is_link or path.name.endswith(INDEX_SUFFIX)):
            raise ShardError(
                f"{folder} exists and holds something else than links to the shards of {source} "
                f"({path.name}): delete it, or choose another folder"
            )


def _link(tars: Sequence[Path], folder: Path) -> list[Path]:
    """Links tars into a folder, unless they exist; returns the new links."""
    links = []
    for tar in tars:
        link = folder / tar.name
        if not link.is_symlink():
            link.symlink_to(tar.parent.resolve() / tar.name)
            links.append(link)
    return links


def _add(report: IndexReport, tar: Path, contents: _Contents | Lost, source: Path) -> None:
    """Adds the contents of a tar to the report, and writes its index if it had none."""
    if isinstance(contents, Lost):
        reason = contents.reason.replace(str(tar.parent), str(source))
        report.unusable.append(Fault(tar.name, reason))
        return
    if not contents.is_stored:
        try:  # by this process, so that Ctrl-C cannot leave a part of one behind
            write_index(tar, contents.index)
        except OSError as error:
            raise ShardError(
                f"the index of {tar} cannot be written ({error.strerror}): name a folder for the "
                f"indexes, `vatt shards build {source} OUT`; nothing is copied"
            ) from error
    media = contents.index.members[:, MEDIA]
    report.num_shards += 1
    report.num_new += not contents.is_stored
    report.num_samples += len(contents.index)
    report.num_captions += contents.num_captions
    report.num_without_text += contents.num_without_text
    report.num_without_media += int((media[:, 0] < 0).sum())
    report.num_bytes += int(media[media[:, 0] >= 0, 1].sum())
    report.faults += contents.faults


def _read_contents(tar: Path) -> _Contents | Lost:
    """Index and texts of a shard."""
    faults = []
    num_captions = num_without_text = 0
    try:
        index, is_stored = find_index(tar)
        for sample in range(len(index)):
            try:
                segments = read_record(tar, index.key(sample), index.members[sample]).segments
            except MediaError as error:
                faults.append(Fault(f"{tar.name}:{index.key(sample)}", error.reason))
                continue
            num_captions += len(segments)
            num_without_text += not segments
    except ShardError as error:
        return Lost(str(error))
    return _Contents(index, is_stored, num_captions, num_without_text, tuple(faults))


def read_indexes(
    tars: Sequence[Shard], *, num_workers: int, show_progress: bool
) -> Iterator[tuple[Shard, ShardIndex | Lost]]:
    """Reads the index of each tar; missing ones are written."""
    bar = tqdm(total=len(tars), desc="index", unit="shard", disable=not show_progress)
    with bar, results_in_order(_find, tars, num_workers=num_workers) as results:
        for tar, contents in zip(tars, results, strict=True):
            bar.update()
            if isinstance(contents, Lost):
                yield tar, contents
                continue
            index, is_stored = contents
            if not is_stored and isinstance(tar, Path):
                with contextlib.suppress(OSError):  # a read-only folder
                    write_index(tar, index)
            yield tar, index


def _find(tar: Shard) -> tuple[ShardIndex, bool] | Lost:
    try:
        return (tar.index(), True) if isinstance(tar, RemoteShard) else find_index(tar)
    except ShardError as error:
        return Lost(str(error))
