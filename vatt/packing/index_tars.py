"""Indexes for existing tar shards, such as those of video2dataset; nothing is copied.

The indexes are written beside the tars. If that folder is read-only, another folder gets the
indexes and links to the tars; it is used as if it contained the tars.
"""

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from vatt.errors import Fault, MediaError, ShardError, fault_lines
from vatt.packing.build import ShardTotals
from vatt.shards.index import MEDIA, ShardIndex
from vatt.shards.index_file import (
    INDEX_SUFFIX,
    find_index,
    find_shards,
    shard_folder,
    write_index,
)
from vatt.shards.record import read_record
from vatt.system.progress import progress_bar
from vatt.system.workers import Lost, results_in_order


@dataclass(kw_only=True)
class IndexReport(ShardTotals):
    """Report of `index_shards`.

    Args:
        folder: Folder of the indexes.
        is_linked: Whether the tars in this folder are links.
        is_usable: Whether all shards in this folder can be read.
        num_new: Number of indexes that were written; the others were up to date.
        num_without_media: Number of samples without media.
        unusable: Shards that cannot be read; they get no link.
    """

    folder: str
    is_linked: bool
    is_usable: bool = True
    num_new: int = 0
    num_without_media: int = 0
    unusable: list[Fault] = field(default_factory=list)

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


# index of a shard, whether it was stored, and number of captions or fault of each sample
Contents = tuple[ShardIndex, bool, list[int | Fault]]


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
        places = [place / tar.name for tar in tars]
        new_links = [link for link in places if is_linked and not link.is_symlink()]
        for link in new_links:
            link.symlink_to(source.resolve() / link.name)
        with results_in_order(_read_contents, places, num_workers=num_workers) as results:
            pairs = zip(places, results, strict=True)
            bar = progress_bar(pairs, "index", len(tars), unit="shard", show=show_progress)
            for tar, contents in bar:
                _add(report, tar, contents, source)
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


def _add(report: IndexReport, tar: Path, contents: Contents | Lost, source: Path) -> None:
    """Adds the contents of a tar to the report, and writes its index if it had none."""
    if isinstance(contents, Lost):
        reason = contents.reason.replace(str(tar.parent), str(source))
        report.unusable.append(Fault(tar.name, reason))
        return
    index, is_stored, texts = contents
    if not is_stored:
        try:  # by this process, so that Ctrl-C cannot leave a part of one behind
            write_index(tar, index)
        except OSError as error:
            raise ShardError(
                f"the index of {tar} cannot be written ({error.strerror}): name a folder for the "
                f"indexes, `vatt shards build {source} OUT`; nothing is copied"
            ) from error
    media = index.members[:, MEDIA]
    report.num_shards += 1
    report.num_new += not is_stored
    report.num_samples += len(index)
    report.num_captions += sum(count for count in texts if isinstance(count, int))
    report.num_without_text += texts.count(0)
    report.num_without_media += int((media[:, 0] < 0).sum())
    report.num_bytes += int(media[media[:, 0] >= 0, 1].sum())
    report.faults += [fault for fault in texts if isinstance(fault, Fault)]


def _read_contents(tar: Path) -> Contents | Lost:
    """Index and texts of a shard."""
    texts: list[int | Fault] = []
    try:
        index, is_stored = find_index(tar)
        for sample, members in enumerate(index.members):
            key = index.key(sample)
            try:
                texts.append(len(read_record(tar, key, members).segments))
            except MediaError as error:
                texts.append(Fault(f"{tar.name}:{key}", error.reason))
    except ShardError as error:
        return Lost(str(error))
    return index, is_stored, texts
