"""Media of the quickstart: packed into shards, checked, and bad files left out."""

import hashlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vatt.demo.stages import StageRecord, stage
from vatt.errors import Fault, UserError
from vatt.packing.build import BUILD_FILE, BuildReport, build_shards
from vatt.packing.check import CheckReport, SampleCheck, check_shards
from vatt.shards.shard_set import ShardSet
from vatt.system.csv_rows import write_rows
from vatt.system.files import read_json
from vatt.system.machine import num_cores

VALIDATION_SHARE = 0.1
LEAST_FILES = 50  # with validation; recall among five says little already
SHOWN_FAULTS = 3
LEFT_OUT = "left_out"  # in the record: what the check found, by file


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """Counts of the usable files of a folder, as the check found them.

    Args:
        num_files: Number of files.
        hours: Length of all files together.
        num_pictures: Number of files with a picture.
        num_sounds: Number of files with sound.
        num_captioned: Number of files with captions.
        num_video_audio: Number of files with picture and sound.
        num_video_text: Number of files with picture and captions.
        check_seconds: Time of decoding them all, on all cores.
    """

    num_files: int
    hours: float
    num_pictures: int
    num_sounds: int
    num_captioned: int
    num_video_audio: int
    num_video_text: int
    check_seconds: float

    def __str__(self) -> str:
        """One line."""
        hours = self.hours
        length = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
        return (
            f"{self.num_files} files, {length}: {self.num_pictures} with picture, "
            f"{self.num_sounds} with sound, {self.num_captioned} with captions"
        )


@dataclass(frozen=True, kw_only=True)
class PackedMedia:
    """A folder of media as shards.

    Args:
        train: Shards for training.
        validation: Shards for validation; None if there are too few files.
        facts: What is in all of them.
    """

    train: Path
    validation: Path | None
    facts: MediaFacts

    def fingerprints(self) -> list[str]:
        """Fingerprints of the files and captions in the shards."""
        return [_fingerprint(one) for one in (self.train, self.validation) if one is not None]


def pack_media(folder: Path, media: Sequence[str], out: Path, record: StageRecord) -> PackedMedia:
    """Packs and checks the media of a folder; files that cannot be decoded are left out.

    Args:
        folder: Folder of the media.
        media: Paths of the files in it.
        out: Folder of the shards.
        record: Record of the stages.

    Raises:
        ShardError: no file can be used.
    """
    shards = _Shards(folder, media, out / "shards", record)
    with stage("shards") as current:
        current.stands = shards.build()
        current.result = shards.summary()
    found = record.run("check", shards.fingerprints, shards.check, out / "check.csv")
    print_faults(shards.faults(), out / "left_out.csv")
    known = [field.name for field in fields(MediaFacts)]
    facts = MediaFacts(**{name: found[name] for name in known})
    train, *validation = shards.folders
    return PackedMedia(train=train, validation=next(iter(validation), None), facts=facts)


def print_faults(faults: Sequence[Fault], path: Path) -> None:
    """Prints the first faults, and writes all of them to a csv file."""
    path.unlink(missing_ok=True)
    if not faults:
        return
    write_rows(path, [("what", "reason"), *((fault.where, fault.reason) for fault in faults)])
    for fault in faults[:SHOWN_FAULTS]:
        print(f"  left out: {fault}")
    if len(faults) > SHOWN_FAULTS:
        print(f"  … and {len(faults) - SHOWN_FAULTS} more: {path}")


def split_by_name(names: Sequence[str]) -> list[set[str]]:
    """Files for training and, if there are enough, for validation.

    A hash of the name decides, so that a file stays in its part when others are added.

    Example:
        >>> [len(part) for part in split_by_name([f"{n}.mp4" for n in range(30)])]
        [30]
    """
    validation = {name for name in names if _draw(name) < VALIDATION_SHARE}
    if len(names) < LEAST_FILES or not validation:
        return [{*names}]
    return [{*names} - validation, validation]


def _draw(name: str) -> float:
    """Number in [0, 1) that belongs to a name."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64


class _Shards:
    """Shards of a folder's files: those for training and, with enough files, for validation."""

    def __init__(self, folder: Path, media: Sequence[str], out: Path, record: StageRecord) -> None:
        self._folder, self._media, self._out, self._record = folder, media, out, record
        self.folders: list[Path] = []
        self.reports: list[BuildReport] = []

    def build(self) -> bool:
        """Packs the usable files; whether all shards were there."""
        left_out = self._left_out()
        usable = [name for name in self._media if name not in left_out]
        if not usable:
            name, entry = next(iter(left_out.items()))
            raise UserError(
                f"none of the {len(left_out)} media files of {self._folder} can be decoded; "
                f"{name}: {entry['reason']}"
            )
        self.folders, self.reports = [], []
        for part, names in zip(("train", "validation"), split_by_name(usable), strict=False):
            self.folders.append(self._out / part)
            report = build_shards(
                self._folder, self._out / part, files=names, replace=True, num_workers=num_cores()
            )
            self.reports.append(report)
        if len(self.folders) == 1:
            shutil.rmtree(self._out / "validation", ignore_errors=True)
        return all(report.reused for report in self.reports)

    def check(self) -> dict[str, Any]:
        """Decodes all samples, and packs again without those that cannot be decoded."""
        started = time.monotonic()
        rows = [row for one in self.folders for row in self._checked(one)]
        seconds = time.monotonic() - started
        if bad := {file: row.fault for file, row in rows if row.fault}:
            stamps = {file: {"stamp": self._stamp(file), "reason": bad[file]} for file in bad}
            self._record.write(LEFT_OUT, {**self._left_out(), **stamps})
            self.build()
        CheckReport(str(self._out), tuple(row for _, row in rows)).write_csv(
            self._out.parent / "check.csv"
        )
        facts = _facts_of([row for _, row in rows if not row.fault], seconds)
        return {"result": str(facts), **asdict(facts)}

    def fingerprints(self) -> list[str]:
        """Fingerprints of the files and captions in the shards."""
        return [_fingerprint(folder) for folder in self.folders]

    def summary(self) -> str:
        """One line."""
        parts = [report.num_samples for report in self.reports]
        captions = sum(report.num_captions for report in self.reports)
        apart = f", {parts[1]} of them for validation" if len(parts) > 1 else ""
        ignored = self.reports[0].num_ignored  # the same for both parts
        others = ", ".join(f"{number} {kind}" for kind, number in ignored.items())
        return f"{sum(parts)} files packed{apart}, {captions} captions" + (
            f"; not used: {others}" if others else ""
        )

    def faults(self) -> list[Fault]:
        """All that was left out, each once."""
        found = {fault.where: fault for report in self.reports for fault in report.faults}
        entries = self._left_out().items()
        return [*found.values(), *(Fault(name, entry["reason"]) for name, entry in entries)]

    def _checked(self, folder: Path) -> list[tuple[str, SampleCheck]]:
        """Results of the check, each with the name of its file."""
        shards = ShardSet(folder)
        files = {shards.key(row): str(shards[row].metadata["file"]) for row in range(len(shards))}
        return [(files[row.key], row) for row in check_shards(folder, num_workers=num_cores()).rows]

    def _left_out(self) -> dict[str, Any]:
        """Files that an earlier check could not decode, and that have not changed since."""
        entries = self._record.content.get(LEFT_OUT, {})
        return {
            name: entry
            for name, entry in entries.items()
            if name in self._media and entry["stamp"] == self._stamp(name)
        }

    def _stamp(self, name: str) -> str:
        status = (self._folder / name).stat()
        return f"{status.st_size}@{status.st_mtime_ns}"


def _fingerprint(folder: Path) -> str:
    return str(read_json(folder / BUILD_FILE)["fingerprint"])


def _facts_of(rows: Sequence[SampleCheck], seconds: float) -> MediaFacts:
    has = [
        (row.width is not None, row.sample_rate is not None, row.num_captions > 0) for row in rows
    ]
    return MediaFacts(
        num_files=len(rows),
        hours=sum(row.duration_seconds or 0.0 for row in rows) / 3600,
        num_pictures=sum(picture for picture, _, _ in has),
        num_sounds=sum(sound for _, sound, _ in has),
        num_captioned=sum(text for _, _, text in has),
        num_video_audio=sum(picture and sound for picture, sound, _ in has),
        num_video_text=sum(picture and text for picture, _, text in has),
        check_seconds=round(seconds, 2),
    )
