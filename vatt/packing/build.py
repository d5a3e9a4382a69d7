"""Building of tar shards from a folder of media."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from vatt.errors import Fault, ShardError, UserError, fault_lines
from vatt.media.folder import find_media
from vatt.packing.beside import find_beside
from vatt.packing.captions import Captions, MediaText, find_captions, read_captions, same_name
from vatt.packing.prepare import MediaFile, prepare_file, read_media, work_folder, work_folder_of
from vatt.shards.index_file import find_shards, list_shards, shard_folder
from vatt.shards.writer import ShardWriter
from vatt.system.files import write_atomically

if TYPE_CHECKING:
    from vatt.config.options import Reencoding

BUILD_FILE = "build.json"  # beside the shards: what they were built from
BUILD_VERSION = 1
SHARD_BYTES = 1_000_000_000  # training reads windows of eight shards: 8 GB of a set
Order = Literal["shuffled", "sorted"]
TAR_BYTES_PER_SAMPLE = 4096  # headers, padding, captions


@dataclass(kw_only=True)
class ShardTotals:
    """Totals over the shards of a folder.

    Args:
        num_samples: Number of samples in all shards.
        num_shards: Number of usable tars.
        num_captions: Number of captions of all samples.
        num_without_text: Number of samples without captions.
        num_bytes: Size of the media in bytes.
        seconds: Time that the work took.
        faults: Files, captions and samples that were left out, or whose texts are damaged.
    """

    num_samples: int = 0
    num_shards: int = 0
    num_captions: int = 0
    num_without_text: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)


@dataclass(kw_only=True)
class BuildReport(ShardTotals):
    """Report of `build_shards`.

    Args:
        out: Shard folder.
        reused: Whether the shards already existed, built from the same files.
        num_blank_captions: Number of captions without words, which were dropped.
        num_unused_videos: Number of videos in HowTo100M's captions that the folder lacks.
        num_with_captions: Number of media with captions, by the name of the caption file or the
            extension of the files beside the media.
        num_ignored: Number of other files in the folder, by extension.
    """

    out: str
    reused: bool = False
    num_blank_captions: int = 0
    num_unused_videos: int = 0
    num_with_captions: dict[str, int] = field(default_factory=dict)
    num_ignored: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.out}: {self.num_samples} samples in {self.num_shards} shards, "
            f"{self.num_bytes / 1e6:.1f} MB, {self.num_captions} captions, "
            f"{self.num_without_text} samples without text"
            + (" (built before from the same files)" if self.reused else f" ({self.seconds:.1f} s)")
        ]
        if self.num_with_captions:
            origins = [f"{number} from {name}" for name, number in self.num_with_captions.items()]
            lines.append(f"  samples with captions: {', '.join(origins)}")
        if self.num_ignored:
            kinds = [f"{number} {kind}" for kind, number in self.num_ignored.items()]
            lines.append(f"  ignored other files: {', '.join(kinds)}")
        if self.num_blank_captions:
            lines.append(f"  left out: {self.num_blank_captions} captions without a word")
        if self.num_unused_videos:
            lines.append(f"  captions of {self.num_unused_videos} videos that are not there")
        return "\n".join(lines + fault_lines(self.faults, "left out"))


def build_shards(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    samples_per_shard: int = 500,
    shard_bytes: int = SHARD_BYTES,
    order: Order = "shuffled",
    captions: str | os.PathLike[str] | None = None,
    files: Collection[str] | None = None,
    check_media: bool = True,
    reencoding: "Reencoding | None" = None,
    replace: bool = False,
    num_workers: int = 0,
    show_progress: bool = True,
) -> BuildReport:
    """Packs the media of a folder and its sub-folders, with captions, into shards.

    Media files are copied, or videos are re-encoded. The key of a sample is its path without
    extension, with `_` for each dot and slash; `KEY.json` contains the path as `file`. The folder
    appears under its name only when it is complete.

    Args:
        source: Folder with media files, and `captions.jsonl`, `.csv` or `.parquet` in the format of
            `vatt/packing/captions.py`, or `.srt`, `.vtt`, `.ass`, Whisper's `.json` or `.txt`
            beside the media.
        out: Folder to create, or an empty one. Existing shards of the same files are kept, also
            those of earlier versions, which were sorted, had no limit in bytes, and had not been
            checked unless asked for.
        samples_per_shard: Largest number of samples in a shard.
        shard_bytes: Size of the media in bytes at which a shard ends; its last file may exceed it.
        order: `shuffled` by a hash of the files' paths: training mixes the samples of a few
            neighbouring shards only, so those of a folder must not be neighbours. Files that are
            added do not change the order of the others. `sorted` by path.
        captions: Caption file with another path, or captions of HowTo100M (the JSON, or a folder
            with one csv per video).
        files: Media files to pack, by path in the folder. None: all.
        check_media: Whether to open every file and leave out those that cannot be opened; takes
            some ms per file.
        reencoding: Settings of re-encoding videos; sound and still images are copied. Damaged files
            are left out. An interrupted build continues after the last encoded file.
        replace: Whether existing shards of other files, captions or options are replaced.
        num_workers: Processes that open or encode files ahead of packing; 0: this process.
        show_progress: Whether to show a progress bar.

    Raises:
        ShardError: the folder does not exist or has no media, `out` has other contents, or the disk
            is full.
        UserError: `samples_per_shard` or `shard_bytes` is below 1.
    """
    started = time.monotonic()
    source, out = Path(source), Path(out).resolve()
    if samples_per_shard < 1:
        raise UserError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    if shard_bytes < 1:
        raise UserError(f"shard_bytes must be at least 1, got {shard_bytes}")
    others: list[str] = []
    media = find_media(source, others)
    caption_file = find_captions(source, captions)
    beside = find_beside(media, others)
    chosen = media if files is None else [name for name in media if name in files]
    texts_beside = sorted(beside[name] for name in chosen if name in beside)
    stamped, how = chosen + texts_beside, [] if reencoding is None else [reencoding]
    named = partial(_fingerprint, source, stamped, caption_file, samples_per_shard)
    fingerprint = named(check_media, *how, shard_bytes, order)

    def earlier() -> list[str]:  # versions that had no shard_bytes and no order, and did not check
        if shard_bytes != SHARD_BYTES:
            return []
        return [named(checked, *how) for checked in (False, True)]

    built = _built_before(out, fingerprint, earlier, replace=replace)
    if built is not None:
        return built
    texts = Captions()
    if caption_file is not None:
        texts = read_captions(caption_file, chosen, show_progress=show_progress)
    texts.beside = {
        name: source / other
        for file, other in beside.items()
        if (name := same_name(file)) not in texts.texts
    }
    faults = texts.faults
    faults += _unmatched(texts.texts, media, source)
    if reencoding is None:  # else nobody knows what will be needed
        _check_space(source, chosen, out)
    with (
        contextlib.nullcontext(Path()) if reencoding is None else work_folder(out) as work,
        shard_folder(out, replace=replace) as folder,
    ):
        prepare = partial(prepare_file, check=check_media, reencoding=reencoding, work=work)
        num_workers = num_workers if check_media or reencoding else 0
        ordered = sorted(chosen, key=_hash_of_name) if order == "shuffled" else chosen
        contents = read_media(
            source, ordered, prepare, faults, num_workers=num_workers, show_progress=show_progress
        )
        report = BuildReport(out=str(out))
        with contextlib.closing(contents):
            _write_shards(report, contents, texts, folder, samples_per_shard, shard_bytes)
        if not report.num_samples:
            raise ShardError(
                f"none of the {len(chosen)} media files of {source} can be used"
                + (f"; the last one, {faults[-1]}" if faults else "")
            )
        report.seconds, report.faults = time.monotonic() - started, faults
        report.num_blank_captions, report.num_unused_videos = texts.num_blank, texts.num_unused
        report.num_with_captions = dict(texts.num_media)
        used = {caption_file, *texts.beside.values()}
        rest = (path for name in others if not {path := source / name, *path.parents} & used)
        texts.num_ignored.update(path.suffix.lower() or path.name for path in rest)
        report.num_ignored = dict(texts.num_ignored.most_common())
        note = {"version": BUILD_VERSION, "fingerprint": fingerprint, "report": asdict(report)}
        write_atomically(folder / BUILD_FILE, json.dumps(note, indent=1).encode())
    return report


def _write_shards(
    report: BuildReport,
    media: Iterator[MediaFile],
    captions: Captions,
    out: Path,
    samples_per_shard: int,
    shard_bytes: int,
) -> None:
    """Writes all files, and their numbers into the report."""
    keys: set[str] = set()
    while (first := next(media, None)) is not None:
        full = report.num_bytes + shard_bytes
        with ShardWriter(out / f"{report.num_shards:05d}.tar") as shard:
            for file in chain([first], media):
                text = captions.read_text(file.name)
                caption = " ".join(segment.text for segment in text.segments)
                metadata = {"file": file.name, **text.metadata}
                key = _new_key(file.name, keys)
                shard.add(
                    key, file.content, file.extension, caption, metadata, segments=text.segments
                )
                report.num_samples += 1
                report.num_captions += len(text.segments)
                report.num_without_text += not text.segments
                report.num_bytes += file.size
                if len(shard) == samples_per_shard or report.num_bytes >= full:
                    break
        report.num_shards += 1


def _hash_of_name(file: str) -> tuple[bytes, str]:
    """Key of the shuffled order."""
    return hashlib.sha256(file.encode(errors="surrogateescape")).digest(), file


def _new_key(file: str, keys: set[str]) -> str:
    """Unique key of a file: `a/b.c.mp4` → `a_b_c`."""
    stem = str(PurePosixPath(file).with_suffix("")).replace("/", "_").replace(".", "_")
    key = next(key for key in chain([stem], (f"{stem}_{n}" for n in count(2))) if key not in keys)
    keys.add(key)
    return key


def _unmatched(texts: dict[str, MediaText], files: Sequence[str], source: Path) -> list[Fault]:
    """Faults of captions whose files do not exist."""
    missing = sorted(set(texts) - {same_name(file) for file in files})
    unknown, absent = "is no media file that vatt knows", "there is no such file"
    return [
        Fault(name, f"has captions, but {unknown if (source / name).exists() else absent}")
        for name in missing
    ]


def _fingerprint(
    source: Path, files: Sequence[str], captions: Path | None, *options: object
) -> str:
    """Names, sizes and times of the files, the captions and the options, as one number."""
    digest = hashlib.sha256(repr((BUILD_VERSION, options)).encode())
    if captions is not None and captions.is_dir():
        tables = {f"{PurePosixPath(name).stem}.csv" for name in files}
        _add_stamps(digest, captions, sorted(tables))
    elif captions is not None:
        with captions.open("rb") as file:  # in pieces: caption files can be larger than memory
            while piece := file.read(1 << 20):
                digest.update(piece)
    _add_stamps(digest, source, files)
    return digest.hexdigest()


def _add_stamps(digest: "hashlib._Hash", folder: Path, names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(OSError):  # a broken link is reported when it is read
            status = (folder / name).stat()
            digest.update(repr((name, status.st_size, status.st_mtime_ns)).encode())


def _built_before(
    out: Path, fingerprint: str, earlier: Callable[[], Sequence[str]], *, replace: bool
) -> BuildReport | None:
    """Report of existing shards of the same files; None if there are none.

    Args:
        out: Shard folder.
        fingerprint: Fingerprint of the files and options.
        earlier: Gives the fingerprints of earlier versions, whose shards are accepted.
        replace: Whether shards of others will be replaced, and count as none.

    Raises:
        ShardError: the folder has other contents.
    """
    work = work_folder_of(out)
    if not out.exists() or (out.is_dir() and not any(path != work for path in out.iterdir())):
        return None
    refusal = f"{out} exists and holds something else: delete it, or choose another folder"
    try:
        built = json.loads((out / BUILD_FILE).read_bytes())
        faults = [  # version 0.1 wrote "name" for "where"
            Fault(fault.get("where") or fault["name"], fault["reason"])
            for fault in built["report"]["faults"]
        ]
        changes = {"faults": faults, "out": str(out), "reused": True}
        report = BuildReport(**{**built["report"], **changes})
        same = built["fingerprint"] == fingerprint or built["fingerprint"] in earlier()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ShardError(refusal) from None
    if replace and (not same or len(list_shards(out)) != report.num_shards):
        return None
    if not same:
        raise ShardError(
            f"{out} holds shards of other files, captions or options than these: delete it to "
            "build it again, or choose another folder"
        )
    if len(find_shards(out)) != report.num_shards:
        raise ShardError(f"{out} has lost some of its {report.num_shards} shards: delete it")
    return report


def _check_space(source: Path, files: Sequence[str], out: Path) -> None:
    """Refuses a build for which the disk has too little space."""
    needed = 0
    for name in files:
        with contextlib.suppress(OSError):
            needed += (source / name).stat().st_size + TAR_BYTES_PER_SAMPLE
    existing = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ShardError(
            f"{out} needs {needed / 1e6:,.1f} MB and its disk has {free / 1e6:,.1f} MB left: free "
            "some, or choose a folder on another disk"
        )
