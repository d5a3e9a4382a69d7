"""Evaluation sets: clips of media files with captions or a label."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from vatt.errors import Fault, UserError, fault_lines
from vatt.media.folder import find_media
from vatt.media.source import MediaSource

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Item:
    """A clip of a set.

    Args:
        key: Name of the clip, unique in the set.
        place: File and line that describe the clip, for messages.
        source: Media of the clip. None: they are missing.
        start_seconds: Start of the clip in its file.
        end_seconds: End of the clip; None: the end of the file.
        captions: Captions of the clip, for retrieval.
        label: Class of the clip, for classification.
        splits: `train` or `test` in each fold of the set; "" if the clip is in neither.
        absence: Reason why the clip has no media; "" if it has media.
    """

    key: str
    place: str
    source: MediaSource | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    captions: tuple[str, ...] = ()
    label: str = ""
    splits: tuple[str, ...] = ()
    absence: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationSet:
    """Clips of a set, with and without media.

    Args:
        name: Name of the published set, such as `msrvtt-1k`; `own` for any other.
        items: Clips with media.
        absent: Clips without media.
        description: Paths and settings, for the result file.
    """

    name: str
    items: tuple[Item, ...]
    absent: tuple[Item, ...] = ()
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def num_listed(self) -> int:
        """Number of clips in the annotations."""
        return len(self.items) + len(self.absent)

    @property
    def missing(self) -> tuple[Fault, ...]:
        """Faults of missing clips: where the annotations name them, and why they are missing."""
        return tuple(Fault(item.place, item.absence) for item in self.absent)

    @property
    def labels(self) -> list[str]:
        """All classes, sorted, including those of missing clips."""
        return sorted({item.label for item in (*self.items, *self.absent)})

    def in_split(self, split: str) -> Self:
        """The clips that are in a split in any fold."""
        return replace(
            self,
            items=tuple(item for item in self.items if split in item.splits),
            absent=tuple(item for item in self.absent if split in item.splits),
        )


class MediaFiles:
    """Media files of a folder by id, which is the file name without extension.

    Args:
        folder: Folder to search, with its sub-folders.

    Raises:
        ShardError: the folder does not exist or contains no media.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._paths: dict[str, list[str]] = {}
        for name in find_media(self.folder):
            self._paths.setdefault(PurePosixPath(name).stem, []).append(name)

    def find(self, name: str) -> Path | None:
        """File with an id, or with a path in the folder; None if there is none.

        Raises:
            UserError: several files have this id.
        """
        path: str | None = name
        if not (self.folder / name).is_file():
            path = self.find_id(name)
        return None if path is None else self.folder / path

    def find_id(self, name: str) -> str | None:
        """Path, in the folder, of the file with an id; None if there is none.

        Raises:
            UserError: several files have this id.
        """
        wanted = PurePosixPath(name)
        found = self._paths.get(wanted.stem) or self._paths.get(wanted.name) or []
        parts = wanted.with_suffix("").parts
        if len(found) > 1 and len(parts) > 1:  # such as one name in the folders of two classes
            found = [
                path
                for path in found
                if PurePosixPath(path).with_suffix("").parts[-len(parts) :] == parts
            ]
        if len(found) > 1:
            raise UserError(
                f"{self.folder} has several files for {name}: {', '.join(found)}; leave one of them"
            )
        return found[0] if found else None


def with_media(
    name: str,
    items: Sequence[Item],
    media: str | os.PathLike[str],
    annotations: Path,
    *,
    file_names: Sequence[str] | None = None,
    **description: Any,
) -> EvaluationSet:
    """Set whose clips have their files or are listed as missing.

    Args:
        name: Name of the set.
        items: Clips without media.
        media: Folder of the media.
        annotations: File or folder that describes the clips.
        file_names: Id or path of each clip's file; None: its key.
        description: Further entries of the set's description.

    Raises:
        UserError: several files have the same id, two clips are the same whole file, or there are
            no clips or no files.
        ShardError: the folder contains no media.
    """
    files = MediaFiles(media)
    if not items:
        raise UserError(f"{annotations} describes no clip to evaluate on")
    found: list[Item] = []
    absent: list[Item] = []
    for item, file in zip(items, file_names or [item.key for item in items], strict=True):
        path = files.find(file)
        if path is None:
            absent.append(replace(item, absence=f"{file} has no file in {files.folder}"))
        else:
            found.append(replace(item, source=str(path)))
    whole = [item for item in found if item.end_seconds is None]
    refuse(
        annotations,
        [
            Fault(item.place, f"{item.key!r} is the same clip as {twin.key!r} in {twin.place}")
            for item, twin in _with_twins(whole, lambda item: item.source)
        ],
    )
    if not found:
        lines = "\n".join(fault_lines([Fault(i.place, i.absence) for i in absent], "missing"))
        raise UserError(f"{files.folder} has none of the {len(items)} files asked for\n{lines}")
    description = {"media": str(files.folder), "annotations": str(annotations), **description}
    return EvaluationSet(
        name=name, items=tuple(found), absent=tuple(absent), description=description
    )


def refuse(path: Path, faults: Sequence[Fault]) -> None:
    """Raises UserError with the faults of an annotation file, if there are any."""
    if faults:
        lines = "\n".join(fault_lines(faults, "wrong"))
        raise UserError(f"{path} cannot be used, {len(faults)} entries are wrong\n{lines}")


def items_of(
    path: Path, entries: Iterable[tuple[str, T]], item_of: Callable[[str, T], Item]
) -> list[Item]:
    """The clips of an annotation file, each made of its place and entry.

    Raises:
        UserError: entries for which `item_of` raises one, or names that come twice; all are listed.
    """
    items: list[Item] = []
    faults: list[Fault] = []
    for place, entry in entries:
        try:
            items.append(item_of(place, entry))
        except UserError as error:
            faults.append(Fault(place, str(error)))
    refuse(path, [*faults, *find_repeated(items)])
    return items


def find_repeated(items: Sequence[Item]) -> list[Fault]:
    """Faults of clips whose name an earlier clip has."""
    return [
        Fault(item.place, f"{item.key!r} is in {twin.place} already")
        for item, twin in _with_twins(items, lambda item: item.key)
    ]


def _with_twins(items: Sequence[Item], name: Callable[[Item], Any]) -> list[tuple[Item, Item]]:
    """Clips with the same name as an earlier clip, and that one."""
    first: dict[Any, Item] = {}
    pairs = [(item, first.setdefault(name(item), item)) for item in items]
    return [(item, twin) for item, twin in pairs if twin is not item]
