"""Features → an index, a file after the other: memory does not grow with their number."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vatt.errors import UserError
from vatt.features.folders import EXTRACT, FeatureFolder, SourceWindows
from vatt.features.media_places import MEDIA, OFFSET, SIZE
from vatt.search.approximate import MOST_EXACT_ROWS, RECALL_AT, build_approximate, load_faiss
from vatt.search.exact import unit_rows
from vatt.search.files import WINDOW, RowWriter, data_written_whole

NO_FAISS = (
    f"more than {MOST_EXACT_ROWS:,} rows are searched one by one, since faiss is missing: "
    'pip install "vatt[search]" and make the index anew for faster answers'
)
# The first hit for a caption of the demo is right as often with any bound: in 94.7 % without one,
# 95.0 with this, 95.7 with 0.5, 94.7 with whole windows. A low one loses least of how files end.
LEAST_COVERAGE = 0.2


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """What goes into an index.

    Args:
        modalities: `video`, `audio`; None: those that the features have.
        spaces: `va`, `vt`, `joint`, or `none` for the backbone; None: those that they have.
        model: Folder, checkpoint or name on the Hub; None: as the features say.
        media: Folder in which the media lie; None: as the features say.
        approximate: Whether faiss searches; None: where there are more than a million rows.
        least_coverage: Share of a window that its file must give. The rest of the last window of a
            file is padding. The first window of a file counts whatever its coverage.
    """

    modalities: tuple[str, ...] | None = None
    spaces: tuple[str, ...] | None = None
    model: str | None = None
    media: Path | None = None
    approximate: bool | None = None
    least_coverage: float = LEAST_COVERAGE


@dataclass
class IndexReport:
    """What an index holds.

    Args:
        num_sources: Inputs.
        num_windows: Windows of these.
        arrays: What `index.json` says of each.
        left_out: Rows by array that are not a direction: NaN, infinite.
        too_short: Rows by array of windows that are mostly padding.
        notes: What else is to be known.
    """

    num_sources: int = 0
    num_windows: int = 0
    arrays: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    too_short: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """A few lines."""
        lines = [f"{self.num_windows} windows of {self.num_sources} files"]
        for name, said in self.arrays.items():
            how = "searched exactly"
            if (near := said["approximate"]) is not None:
                how = (
                    f"faiss {near['kind']}, {near['groups']} groups looked into, recall@{RECALL_AT}"
                    f" {near[f'recall@{RECALL_AT}']:.3f} of exact search ({near['queries']} rows)"
                )
            lines.append(f"  {name:12} {said['rows']:>9,} rows of {said['width']}: {how}")
        for name, count in self.left_out.items():
            lines.append(f"  {name}: {count} rows hold NaN or infinity and are left out")
        for name, count in self.too_short.items():
            lines.append(f"  {name}: {count} rows are of ends of files, mostly padding: left out")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def build_index(
    features: Path, out: Path, options: IndexOptions, show_progress: bool = False
) -> IndexReport:
    """Makes an index of all features in a folder; one that is there is replaced at the end.

    Args:
        features: What `vatt extract` wrote.
        out: Folder of the index.
        options: What goes in.
        show_progress: Whether to draw a bar.

    Raises:
        UserError: features that do not go together or lack what is asked for, or a place that
            holds something else.
    """
    if options.approximate:
        load_faiss()  # before the work
    folder = FeatureFolder(features)
    report = IndexReport()
    with data_written_whole(out) as (data, said):
        collected = _Collected(data, options)
        with contextlib.ExitStack() as stack:
            collected.open(stack)
            files = tqdm(folder, disable=not show_progress, unit="part")
            for windows in files:
                collected.add(windows)
        report.num_sources, report.num_windows = collected.num_sources, collected.num_windows
        report.arrays = collected.described(features)
        report.left_out, report.too_short = collected.left_out, collected.too_short
        _add_approximate(data, options, report)
        said |= {
            "features": str(features.absolute()),
            "media_folder": None if options.media is None else str(options.media.absolute()),
            "model": options.model or collected.model,
            **collected.settings,
            "arrays": report.arrays,
        }
    return report


def _add_approximate(data: Path, options: IndexOptions, report: IndexReport) -> None:
    for name, said in report.arrays.items():
        wanted = options.approximate
        if wanted is None and said["rows"] > MOST_EXACT_ROWS:
            wanted = _has_faiss()
            if not wanted and NO_FAISS not in report.notes:
                report.notes.append(NO_FAISS)
        if wanted:
            matrix = np.load(data / f"{name}.npy", mmap_mode="r")
            said["approximate"] = build_approximate(matrix, data / f"{name}.faiss")


def _has_faiss() -> bool:
    try:
        load_faiss()
    except UserError:
        return False
    return True


class _Collected:
    """The rows, windows and sources so far.

    Args:
        data: Folder to write to.
        options: What goes in.
    """

    def __init__(self, data: Path, options: IndexOptions) -> None:
        self._data, self._options = data, options
        self._matrices: dict[str, tuple[RowWriter, RowWriter]] = {}
        self._settings = ""
        self._first: Path | None = None
        self._forms: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, Path] = {}  # sources; the only thing here that grows with files
        self._source = ""
        self._written = 0
        self.model = ""
        self.left_out: Counter[str] = Counter()
        self.too_short: Counter[str] = Counter()

    def open(self, stack: contextlib.ExitStack) -> None:
        """Opens the files, which close with the stack."""
        self._stack = stack
        self._windows = stack.enter_context(RowWriter(self._data / "windows.npy", WINDOW))
        self._ends = stack.enter_context(RowWriter(self._data / "sources.npy", np.int64))
        self._lines = stack.enter_context((self._data / "sources.jsonl").open("wb"))

    @property
    def num_sources(self) -> int:
        """Inputs."""
        return self._ends.rows

    @property
    def num_windows(self) -> int:
        """Their windows."""
        return self._windows.rows

    @property
    def settings(self) -> dict[str, Any]:
        """What the features say of how they were made."""
        said = json.loads(self._settings)
        names = {"model": "fingerprint", "window_seconds": "window_seconds"}
        return {ours: said[theirs] for theirs, ours in names.items()}

    def add(self, windows: SourceWindows) -> None:
        """The next windows."""
        self._check_settings(windows)
        if windows.source != self._source or not self._seen:
            self._begin_source(windows)
        first, count = self._windows.rows, len(windows.start_seconds)
        table = np.empty(count, dtype=WINDOW)
        table["source"] = self.num_sources - 1
        table["start_seconds"] = windows.start_seconds
        table["end_seconds"] = windows.end_seconds
        self._windows.add(table)
        for name in self._forms:
            if name in windows.arrays:
                self._add_rows(name, windows, first)

    def _begin_source(self, windows: SourceWindows) -> None:
        source = windows.source
        if source in self._seen:
            raise UserError(
                f"{windows.file} and {self._seen[source]} both hold {source}: delete one of them",
                2,
            )
        self._seen[source] = windows.file
        self._source = source
        self.model = windows.origin.get("model", "") or self.model
        kept = {
            name: windows.origin[name] for name in (MEDIA, OFFSET, SIZE) if name in windows.origin
        }
        line = json.dumps({"source": source, **kept}, ensure_ascii=False).encode() + b"\n"
        self._lines.write(line)
        self._written += len(line)
        self._ends.add(np.array([self._written]))

    def _add_rows(self, name: str, windows: SourceWindows, first: int) -> None:
        vectors = windows.arrays[name]
        finite = np.isfinite(vectors).all(axis=1)
        there = finite & vectors.any(axis=1)  # zeros: the window lacks it
        covered = windows.coverage[self._forms[name]["modality"]] >= self._options.least_coverage
        covered |= windows.start_seconds == 0.0
        chosen = np.flatnonzero(there & covered)
        if short := int((there & ~covered).sum()):
            self.too_short[name] += short
        if lost := int((~finite).sum()):
            self.left_out[name] += lost
        if not len(chosen):
            return
        if name not in self._matrices:
            paths = (self._data / f"{name}.npy", self._data / f"{name}.windows.npy")
            self._matrices[name] = (
                self._stack.enter_context(RowWriter(paths[0], np.float32, vectors.shape[1:])),
                self._stack.enter_context(RowWriter(paths[1], np.int64)),
            )
        matrix, places = self._matrices[name]
        if vectors.shape[1:] != matrix.row_shape:
            raise UserError(
                f"{windows.file} is damaged: {name} is {vectors.shape[1]} wide, and in other files "
                f"{matrix.row_shape[0]}. Delete it, then {EXTRACT}",
                2,
            )
        matrix.add(unit_rows(vectors[chosen]))
        places.add(chosen + first)

    def _check_settings(self, windows: SourceWindows) -> None:
        if windows.settings == self._settings:
            return
        if self._first is None:
            self._settings, self._first = windows.settings, windows.file
            self._forms = self._chosen(json.loads(windows.settings)["arrays"], windows.file)
            return
        mine, theirs = json.loads(self._settings), json.loads(windows.settings)
        names = {name for name in mine | theirs if mine.get(name) != theirs.get(name)}
        raise UserError(
            f"{windows.file} was made with another {' and another '.join(sorted(names))} than "
            f"{self._first}: run `vatt extract` on all media again, or index them apart",
            2,
        )

    def _chosen(self, forms: Mapping[str, Any], file: Path) -> dict[str, dict[str, Any]]:
        """The arrays that go in, with modality and space."""
        if any(form["tokens"] for form in forms.values()):
            raise UserError(
                f"{file} holds tokens, an index is of one vector a window: extract without "
                "--tokens",
                2,
            )
        named = {
            name: {"modality": name.split("_")[0], "space": form["space"] or "none"}
            for name, form in forms.items()
        }
        modalities, spaces = self._options.modalities, self._options.spaces
        chosen = {
            name: form
            for name, form in named.items()
            if (modalities is None or form["modality"] in modalities)
            and (spaces is None or form["space"] in spaces)
        }
        if not chosen:
            asked = [*(modalities or ()), *(spaces or ())]
            raise UserError(
                f"the features have no {' with '.join(asked)}, they have {', '.join(named)}", 2
            )
        return chosen

    def described(self, features: Path) -> dict[str, dict[str, Any]]:
        """For `index.json`, when all is written."""
        if not self._matrices:
            raise UserError(
                f"{features} holds no vectors of {', '.join(self._forms)}: the media lack these "
                f"modalities. Choose another --modality, or {EXTRACT}",
                2,
            )
        return {
            name: {
                **form,
                "rows": self._matrices[name][0].rows,
                "width": self._matrices[name][0].row_shape[0],
                "approximate": None,
            }
            for name, form in self._forms.items()
            if name in self._matrices
        }
