"""Files and their labels, from the annotation files of the usual sets or the user's own.

| layout | file | columns | media |
|---|---|---|---|
| csv | the user's own | `file`, `label` or `labels` (split by `;`); times if wanted | paths |
| folder | none | a folder per class | the files in them |
| kinetics | Kinetics-400, -600, -700 | `label,youtube_id,time_start,time_end,split…` | clips |
| moments | Moments in Time | path, label, votes for and against; no header | `training/`, … |
| audioset | AudioSet's segments | id, start, end, quoted labels; three `#` lines before | clips |
| esc50 | ESC-50 | `filename,fold,target,category,…` | `../audio` |

The media of Kinetics and AudioSet are clips cut from the videos as usual; they are found by name
anywhere under a folder. Kinetics' lists of test videos have no labels and cannot be used. Other
columns are ignored.

Source: copies of AudioSet's eval and balanced segments and its classes, and of Kinetics-600's list
of test videos, in public repositories; the README that comes with Moments in Time.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from vatt.errors import Fault, UserError, fault_lines
from vatt.media.folder import find_media
from vatt.sets.items import MediaFiles
from vatt.system.csv_rows import read_rows, read_table

Layout = Literal["csv", "folder", "kinetics", "moments", "audioset", "esc50"]
# beside the lists, as distributed
MOMENTS_FOLDERS = {"trainingSet.csv": "training", "validationSet.csv": "validation"}
ESC50_COLUMNS = ("filename", "fold", "category")


class AnnotationError(UserError):
    """Invalid lines of an annotation file."""

    @classmethod
    def of(cls, path: Path, faults: Sequence[Fault], remedy: str) -> "AnnotationError":
        """Error that names the first faults and counts all.

        Args:
            path: The file.
            faults: The faults of the lines.
            remedy: Sentence that says what to do.
        """
        head = f"{path}: {len(faults)} lines cannot be used"
        return cls("\n".join([head, *fault_lines(faults), remedy]))


def line_fault(line: int, reason: str) -> Fault:
    """Fault of a line; lines are counted from 1."""
    return Fault(f"line {line}", reason)


@dataclass(frozen=True, slots=True)
class Annotation:
    """One line of an annotation file.

    Args:
        line: Number of the line, from 1; 0 for a file of a folder.
        names: Possible names of the media file; the first one that exists is used.
        labels: Labels as written.
        start_seconds: Start of the part that the labels describe.
        end_seconds: End of that part; `inf`: the end of the file.
        fold: Fold of ESC-50, 0 for other sets.
    """

    line: int
    names: tuple[str, ...]
    labels: tuple[str, ...]
    start_seconds: float = 0.0
    end_seconds: float = math.inf
    fold: int = 0


@dataclass(frozen=True)
class Classes:
    """Classes of a set, in order.

    Args:
        labels: Labels in annotation files.
        names: Readable names, which differ from the labels only for AudioSet.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.labels)


def read_annotations(path: Path, layout: Layout, faults: list[Fault]) -> Iterator[Annotation]:
    """Reads the lines of an annotation file.

    Args:
        path: Annotation file, or the folder for the layout `folder`.
        layout: Format of the annotations.
        faults: List that collects lines that cannot be read.

    Raises:
        UserError: the file does not exist, or has other columns.
    """
    if layout == "folder":
        yield from _folder_annotations(path)
        return
    if layout not in LAYOUTS:
        raise UserError(f"data.layout must be one of folder, {', '.join(LAYOUTS)}, got {layout!r}")
    if path.is_dir() or not path.exists():
        hint = ": for a folder per class set data.layout to folder" if path.is_dir() else ""
        raise UserError(f"{path} is no annotation file{hint or ': correct the path'}")
    columns, read = LAYOUTS[layout]
    rows: Iterable[tuple[int, Any]] = read_rows(path)
    if columns:
        rows = read_table(path, columns, faults)
    for line, cells in rows:
        one = read(path, line, cells)
        if isinstance(one, str):
            faults.append(line_fault(line, one))
        elif one is not None:
            yield one


def read_classes(path: Path | None, annotations: Path, layout: Layout) -> Classes:
    """Reads the classes from their own file, or takes all of an annotation file, sorted.

    Args:
        path: AudioSet's `class_labels_indices.csv`, Moments in Time's `moments_categories.txt`
            (`label,index`), a csv with the columns `id` and `name`, or a file with one class per
            line. None: from the annotations.
        annotations: Annotation file.
        layout: Format of the annotations.

    Raises:
        UserError: the file cannot be read, names a class twice, or has fewer than two classes.
    """
    faults: list[Fault] = []
    if path is None:
        found = {
            label for one in read_annotations(annotations, layout, faults) for label in one.labels
        }
        pairs, source = [(label, label) for label in sorted(found)], annotations
    else:
        pairs, source = _read_class_file(path), path
    labels, names = tuple(label for label, _ in pairs), tuple(name for _, name in pairs)
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise UserError(f"{source} names the class {repeated[0]!r} twice: classes must differ")
    if len(labels) < 2 and faults:  # the reason for having so few
        raise AnnotationError.of(annotations, faults, "Correct these lines.")
    if len(labels) < 2:
        raise UserError(f"{source} has {len(labels)} classes: a classifier needs at least 2")
    return Classes(labels, names)


def _read_class_file(path: Path) -> list[tuple[str, str]]:
    if not path.is_file():
        raise UserError(f"no file of classes {path}: correct data.classes")
    rows = list(read_rows(path))
    header = rows[0][1] if rows else []
    for label, name, place in (("mid", "display_name", "index"), ("name", "name", "id")):
        if {label, name, place} <= set(header):
            faults: list[Fault] = []
            table = [row for _, row in read_table(path, (label, name, place), faults)]
            if faults:
                raise AnnotationError.of(path, faults, "Correct these lines.")
            return _by_number(path, [(row[label], row[name], row[place]) for row in table])
    if all(len(row) == 2 and row[1].isdigit() for _, row in rows):
        return _by_number(path, [(row[0], row[0], row[1]) for _, row in rows])
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [(line, line) for line in lines if line]


def _by_number(path: Path, rows: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Labels and names in the order of their numbers, which must run from 0."""
    by_number = {number: (label, name) for label, name, number in rows}
    absent = [n for n in range(len(rows)) if str(n) not in by_number]
    if absent:
        raise UserError(
            f"{path}: {len(rows)} classes must be numbered from 0, but there is no {absent[0]}"
        )
    return [by_number[str(n)] for n in range(len(rows))]


def _folder_annotations(root: Path) -> Iterator[Annotation]:
    for name in find_media(root):
        label = PurePosixPath(name).parts[0]
        if label == name:
            raise UserError(f"{root / name} lies in no class: put it into the folder of its class")
        yield Annotation(0, (name,), (label,))


def _own(path: Path, line: int, row: dict[str, str]) -> Annotation | str:
    if ("label" in row) == ("labels" in row):
        raise UserError(
            f"{path} must have the column label, or labels for several split by ';', and has "
            f"{','.join(row)}"
        )
    several = [part.strip() for part in row.get("labels", "").split(";")]
    labels = (row["label"],) if "label" in row else tuple(filter(None, several))
    if not row["file"] or labels == ("",):
        return "names no file" if not row["file"] else "has no label"
    times = _times(row.get("start_seconds") or "0", row.get("end_seconds") or "inf")
    if times is None:
        return "its times must be seconds, the end after the start"
    return Annotation(line, (row["file"],), labels, *times)


def _kinetics(path: Path, line: int, row: dict[str, str]) -> Annotation | str:
    name, times = row["youtube_id"], _times(row["time_start"], row["time_end"])
    if times is None or not row["label"] or not name:
        return "needs a label, a youtube_id, and times in seconds"
    start, end = map(int, times)
    return Annotation(line, (f"{name}_{start:06d}_{end:06d}", name), (row["label"],))


def _moments(path: Path, line: int, cells: list[str]) -> Annotation | str:
    if len(cells) < 2 or not cells[0] or not cells[1]:
        return "must be a path, a label and votes"
    folder = MOMENTS_FOLDERS.get(path.name)
    names = (cells[0],) if folder is None else (cells[0], f"{folder}/{cells[0]}")
    return Annotation(line, names, (cells[1],))


def _audioset(path: Path, line: int, cells: list[str]) -> Annotation | str | None:
    if cells[0].startswith("#") or cells[0] == "YTID":
        return None
    times = _times(*cells[1:3]) if len(cells) == 4 else None
    labels = tuple(filter(None, cells[-1].split(",")))
    if times is None or not all(re.fullmatch(r"/\w+/\w+", label) for label in labels):
        return 'must be an id, start, end and labels as "/m/09x0r,/t/dd00088"'
    if len({*labels}) < len(labels):
        return f"has a label twice: {','.join(labels)}"
    name, (start, end) = cells[0], times
    milliseconds = f"{name}_{round(start * 1000)}_{round(end * 1000)}"
    seconds = f"{name}_{int(start):06d}_{int(end):06d}"
    return Annotation(
        line, (name, f"Y{name}", milliseconds, seconds, f"{name}_{int(start)}"), labels
    )


def _esc50(path: Path, line: int, row: dict[str, str]) -> Annotation | str:
    if row["fold"] not in {"1", "2", "3", "4", "5"} or not row["category"]:
        return f"needs a category and a fold from 1 to 5: {row['fold']!r}"
    return Annotation(line, (row["filename"],), (row["category"],), fold=int(row["fold"]))


# Columns, none without a header; and a function of a row: its annotation, the fault in it, or None
# for a row of no meaning.
Row = Callable[[Path, int, Any], Annotation | str | None]
LAYOUTS: dict[str, tuple[tuple[str, ...], Row]] = {
    "csv": (("file",), _own),
    "kinetics": (("label", "youtube_id", "time_start", "time_end"), _kinetics),
    "moments": ((), _moments),
    "audioset": ((), _audioset),
    "esc50": (ESC50_COLUMNS, _esc50),
}


def _times(start: str, end: str) -> tuple[float, float] | None:
    try:
        start_seconds, end_seconds = float(start), float(end)
    except ValueError:
        return None
    return (start_seconds, end_seconds) if 0 <= start_seconds < end_seconds else None


def media_finder(
    path: Path, layout: Layout, media: Path | None
) -> tuple[Path, Callable[[Iterable[str]], str | None]]:
    """Folder of the media, and a function that finds a media file by its possible names.

    Args:
        path: Annotation file, or the folder for the layout `folder`.
        layout: Format of the annotations.
        media: Folder of the media. None: the usual place.

    Returns:
        The folder, and a function from names to the path in it, or None if there is no such file.
        The function raises UserError if several files have the name.

    Raises:
        UserError: the folder does not exist.
    """
    if layout in ("kinetics", "audioset"):
        if media is None:
            raise UserError(f"data.media must name the folder of {path}'s clips")
        files = MediaFiles(media)
        return media, lambda names: next(filter(None, map(files.find_id, names)), None)
    root = media
    if root is None:
        root = path if layout == "folder" else path.parent
        if layout == "esc50":
            root = path.parent.parent / "audio"  # beside meta/, as distributed
    if not root.is_dir():
        raise UserError(f"no media folder {root}: correct data.media")
    return root, lambda names: next((name for name in names if (root / name).is_file()), None)
