"""Compact list of labelled media files, made from annotations."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from vatt.errors import Fault, nearest
from vatt.sets.annotations import (
    Annotation,
    AnnotationError,
    Classes,
    Layout,
    line_fault,
    media_finder,
    read_annotations,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """A file or a part of a file.

    Args:
        key: Unique name: the path in the media folder, with the times of the part.
        path: Path of the file.
        labels: Indices of its classes.
        start_seconds: Start of the part.
        end_seconds: End of the part; `inf`: the end of the file.
    """

    key: str
    path: Path
    labels: tuple[int, ...]
    start_seconds: float
    end_seconds: float


class LabelledFiles(Sequence[LabelledFile]):
    """Files in memory that worker processes share; about 30 bytes per file besides its path.

    Args:
        root: Folder of the media.
        files: Path relative to the folder, indices of the classes, and start and end in seconds.
    """

    def __init__(
        self, root: Path, files: Iterable[tuple[str, Sequence[int], float, float]]
    ) -> None:
        self.root = root
        rows = [json.dumps(file).encode() for file in files]
        self._ends = torch.tensor([0, *map(len, rows)]).cumsum(0).share_memory_()
        joined = np.frombuffer(b"".join(rows), dtype=np.uint8)
        self._rows = torch.from_numpy(joined.copy()).share_memory_()

    def __len__(self) -> int:
        """Number of files."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> LabelledFile:  # type: ignore[override]  # no slices
        """File at an index.

        Raises:
            IndexError: there are fewer.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        first, end = self._ends[index : index + 2].tolist()
        name, labels, start_seconds, end_seconds = json.loads(bytes(self._rows[first:end].numpy()))
        return LabelledFile(
            key=_key(name, start_seconds, end_seconds),
            path=self.root / name,
            labels=tuple(labels),
            start_seconds=start_seconds,
            end_seconds=end_seconds,
        )


def _plain(name: str) -> str:
    """Normalised path: `./a` becomes `a`."""
    # few have them, and AudioSet has ten million names
    return PurePosixPath(name).as_posix() if "./" in name or "//" in name else name


def _key(name: str, start_seconds: float, end_seconds: float) -> str:
    if start_seconds == 0 and math.isinf(end_seconds):
        return name
    return f"{name}@{start_seconds:g}-{end_seconds:g}"


def read_files(
    path: Path,
    layout: Layout,
    classes: Classes,
    *,
    multi_label: bool = False,
    media: Path | None = None,
    allow_missing: bool = False,
    takes: Callable[[Annotation], bool] = lambda _: True,
) -> LabelledFiles:
    """Reads the files that an annotation file names, with the indices of their classes.

    Args:
        path: Annotation file, or folder with a sub-folder per class.
        layout: Format of the annotations.
        classes: All classes.
        multi_label: Whether a file may have several labels, or none.
        media: Folder of the media. None: the usual place.
        allow_missing: Whether to leave out missing files with a warning instead of raising an
            error.
        takes: Tells whether to use a line.

    Raises:
        AnnotationError: labels are unknown, or files are missing or repeated; the error counts all
            such lines and names the first ones.
        UserError: the annotation file cannot be read.
    """
    root, find = media_finder(path, layout, media)
    numbers = {label: number for number, label in enumerate(classes.labels)}
    faults: list[Fault] = []
    missing: list[Fault] = []
    places: dict[str, int] = {}
    files: list[tuple[str, list[int], float, float]] = []
    for one in read_annotations(path, layout, faults):
        if not takes(one):
            continue
        unknown = [label for label in one.labels if label not in numbers]
        name = find(_plain(name) for name in one.names)
        if unknown:
            hint = nearest(unknown[0], classes.labels)
            faults.append(line_fault(one.line, f"unknown label {unknown[0]!r}.{hint}"))
        elif len(one.labels) != 1 and not multi_label:
            reason = f"has {len(one.labels)} labels, and classifier.multi_label is false"
            faults.append(line_fault(one.line, reason))
        elif name is None:
            missing.append(line_fault(one.line, f"there is no file {one.names[0]!r} in {root}"))
        elif (key := _key(name, one.start_seconds, one.end_seconds)) in places:
            reason = f"{key!r} was in line {places[key]} already"
            faults.append(line_fault(one.line, reason))
        else:
            places[key] = one.line
            of_file = [numbers[label] for label in one.labels]
            files.append((name, of_file, one.start_seconds, one.end_seconds))
    if faults:
        raise AnnotationError.of(path, faults, "Correct these lines, or data.classes.")
    if missing and not (allow_missing and files):
        remedy = "Correct data.media, or go on without these by data.allow_missing true."
        raise AnnotationError.of(path, missing, remedy)
    if missing:
        error = AnnotationError.of(path, missing, f"Going on with the {len(files)} that are there.")
        logger.warning("%s", error)
    if not files:
        raise AnnotationError(f"{path} names no file: nothing to read")
    return LabelledFiles(root, files)
