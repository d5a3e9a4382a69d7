"""Sets for classification with their folds, from the files in which they are distributed.

- UCF101: the folder `ucfTrainTestlist` with `trainlist01.txt`, `testlist01.txt`, … and, for the
  numbers of the classes, `classInd.txt`: 3 folds.
- HMDB51: the folder with `CLASS_test_split1.txt`, …, where 1 is train, 2 test, 0 neither: 3 folds.
- ESC-50: `esc50.csv` with the columns `filename,fold,target,category,…`: each of 5 folds is the
  test set once.
- The user's own csv: `file,label`, and `split` (train or test) or `fold` (each is the test set
  once); without either all clips are for testing.

Source: copies of UCF101's lists in public repositories; code in public repositories that reads the
others.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vatt.errors import Fault, UserError
from vatt.sets.annotations import ESC50_COLUMNS
from vatt.sets.items import EvaluationSet, Item, items_of, refuse, with_media
from vatt.system.csv_rows import read_rows, read_table

TRAIN, TEST = "train", "test"
HMDB_SPLITS = {"0": "", "1": TRAIN, "2": TEST}
_UCF_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_HMDB_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")


def read_classification_set(
    data: str | os.PathLike[str], media: str | os.PathLike[str]
) -> EvaluationSet:
    """Reads a labelled set from its lists or its csv file.

    Args:
        data: Folder with the lists of UCF101 or HMDB51, ESC-50's csv, or a csv of your own.
        media: Folder of the files that the lists name.

    Raises:
        UserError: there are no annotations, entries are invalid (the error names the lines), or
            all files are missing.
        ShardError: the folder contains no media.
    """
    path = Path(data)
    if path.is_dir():
        names = sorted(inner.name for inner in path.iterdir())
        if any(_UCF_LIST.fullmatch(name) for name in names):
            return _read_ucf101(path, media)
        if any(_HMDB_LIST.fullmatch(name) for name in names):
            return _read_hmdb51(path, media)
        raise UserError(
            f"{path} has neither trainlist01.txt (UCF101) nor CLASS_test_split1.txt (HMDB51)"
        )
    if not path.is_file():
        raise UserError(f"no annotations at {path}: correct the path")
    return _read_label_csv(path, media)


def _read_ucf101(folder: Path, media: str | os.PathLike[str]) -> EvaluationSet:
    """Reads UCF101; the class of a video is the name of its folder."""
    classes = _read_classes(folder / "classInd.txt")

    def entry_of(split: str, words: list[str]) -> tuple[str, str, str]:
        label, _, file = words[0].partition("/")
        if not file or "/" in file or len(words) > 2:
            raise UserError(f"must be CLASS/FILE and a number, got {words}")
        if classes and label not in classes:
            raise UserError(f"{label!r} is no class of classInd.txt")
        if classes and len(words) == 2 and words[1] != classes[label]:
            number = f"class {label!r} is {classes[label]} in classInd.txt"
            raise UserError(f"{number}, here {words[1]}")
        return words[0], label, split

    return _read_lists(
        "ucf101", folder, media, _UCF_LIST, "{}list{:02d}.txt", entry_of, names=(TRAIN, TEST)
    )


def _read_hmdb51(folder: Path, media: str | os.PathLike[str]) -> EvaluationSet:
    """Reads HMDB51; the class of a video is the name of its folder and part of its list's name."""

    def entry_of(label: str, words: list[str]) -> tuple[str, str, str]:
        if len(words) != 2 or words[1] not in HMDB_SPLITS:
            raise UserError(f"must be a file and 0, 1 or 2, got {words}")
        return f"{label}/{words[0]}", label, HMDB_SPLITS[words[1]]

    return _read_lists("hmdb51", folder, media, _HMDB_LIST, "{}_test_split{}.txt", entry_of)


def _read_lists(
    set_name: str,
    folder: Path,
    media: str | os.PathLike[str],
    pattern: re.Pattern[str],
    form: str,
    entry_of: Callable[[str, list[str]], tuple[str, str, str]],
    names: Sequence[str] = (),
) -> EvaluationSet:
    """A set of which each fold has lists, named by `pattern`, or by `form` as a format.

    A name holds a word of the list's own and the number of the fold. `entry_of` gives key, label
    and split of a clip from that word and the words of a line; `names` are the own words that each
    fold must have, if others than those that one of them has.
    """
    lists = {
        (match[1], int(match[2])): path
        for path in sorted(folder.iterdir())
        if (match := pattern.fullmatch(path.name))
    }
    folds = sorted({fold for _, fold in lists})
    wanted = itertools.product(names or sorted({name for name, _ in lists}), folds)
    if absent := sorted(form.format(*one) for one in wanted if one not in lists):
        raise UserError(f"{folder} lacks {', '.join(absent)}")
    faults: list[Fault] = []
    clips: dict[tuple[str, str], dict[int, tuple[str, str]]] = {}  # place and split by fold
    for (name, fold), path in lists.items():
        place = ""
        for place, words in _read_words(path):
            try:
                key, label, split = entry_of(name, words)
            except UserError as error:
                faults.append(Fault(place, str(error)))
                continue
            clip = clips.setdefault((key, label), {})
            if fold in clip:
                faults.append(Fault(place, f"{key!r} is in {clip[fold][0]} already"))
            clip[fold] = place, split
        if not place:
            reason = "names no video: take the list as it is distributed"
            faults.append(Fault(path.name, reason))
    refuse(folder, faults)
    items = []
    for (key, label), clip in clips.items():
        splits = tuple(clip[fold][1] if fold in clip else "" for fold in folds)
        place = next(iter(clip.values()))[0]
        items.append(Item(key=key, place=place, label=label, splits=splits))
    return with_media(set_name, items, media, folder)


def _read_label_csv(path: Path, media: str | os.PathLike[str]) -> EvaluationSet:
    """Reads a csv: ESC-50, a set in its format, or clips of your own."""
    header = {*next(read_rows(path), (0, []))[1]}
    esc50 = set(ESC50_COLUMNS) <= header
    file_column, label_column = ("filename", "category") if esc50 else ("file", "label")
    if not esc50 and {"split", "fold"} <= header:
        raise UserError(f"{path}, line 1: has both split and fold; leave one of them out")
    part_column = "fold" if "fold" in header else "split"
    rows = list(read_table(path, (file_column, label_column)))
    parts = {row.get(part_column, TEST) for _, row in rows}
    splits: dict[str, tuple[str, ...]] = {TRAIN: (TRAIN,), TEST: (TEST,)}
    if part_column == "fold":  # each is the test set once
        folds = sorted(parts, key=lambda fold: (len(fold), fold))
        splits = {test: tuple(TEST if fold == test else TRAIN for fold in folds) for test in folds}
    known = {row[label_column] for _, row in rows if row.get(part_column) == TRAIN}

    def item_of(place: str, row: dict[str, str]) -> Item:
        file, label, part = row[file_column], row[label_column], row.get(part_column, TEST)
        if not (file and label and part):
            raise UserError("needs a file, a label and a split or fold")
        if part not in splits:
            raise UserError(f"split must be {TRAIN} or {TEST}, got {part!r}")
        if part_column == "split" and known and label not in known:
            raise UserError(f"no training clip has the label {label!r}")
        return Item(key=file, place=place, label=label, splits=splits[part])

    items = items_of(path, ((f"{path.name}, line {n}", row) for n, row in rows), item_of)
    if part_column == "fold" and len(parts) == 1:
        refuse(path, [Fault(path.name, f"needs at least two folds, has {parts.pop()}")])
    return with_media("esc50" if esc50 else "own", items, media, path)


def _read_classes(path: Path) -> dict[str, str]:
    """The number of each class; empty without such a file."""
    classes: dict[str, str] = {}
    for place, words in _read_words(path) if path.is_file() else ():
        if len(words) != 2:
            raise UserError(f"{place}: must be a number and a class, got {words}")
        if words[1] in classes or words[0] in classes.values():
            raise UserError(f"{place}: {' '.join(words)!r} has a number or class that was there")
        classes[words[1]] = words[0]
    return classes


def _read_words(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Place and words of each line that is not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if words := line.split():
            yield f"{path.name}, line {number}", words
