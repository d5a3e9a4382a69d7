"""Builds an index from features, file by file, so memory does not grow with their number."""

import contextlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from vatt.config.options import IndexOptions
from vatt.errors import UserError
from vatt.features.files import Features
from vatt.features.folders import EXTRACT, FeatureFolder
from vatt.features.media_places import MEDIA, OFFSET, SIZE
from vatt.search.approximate import MOST_EXACT_ROWS, RECALL_AT, build_approximate, load_faiss
from vatt.search.exact import unit_rows
from vatt.search.files import WINDOW, RowWriter, data_written_whole
from vatt.system.progress import progress_bar

NO_FAISS = (
    f"more than {MOST_EXACT_ROWS:,} rows are searched one by one, since faiss is missing: "
    'pip install "vatt[search]" and make the index anew for faster answers'
)


@dataclass(kw_only=True)
class IndexSummary:
    """Content of a new index.

    Args:
        num_sources: Number of files.
        num_windows: Number of their windows.
        arrays: Description of each array in `index.json`.
        not_finite: Number of rows with NaN or infinity, which were left out, by array.
        padding: Number of rows whose windows are mostly padding, which were left out, by array.
        note: A further hint to the user.
    """

    num_sources: int
    num_windows: int
    arrays: dict[str, dict[str, Any]]
    not_finite: Counter[str]
    padding: Counter[str]
    note: str = ""

    def __str__(self) -> str:
        """A few lines."""
        lines = [f"{self.num_windows} windows of {self.num_sources} files"]
        for name, array in self.arrays.items():
            how = "searched exactly"
            if (near := array["approximate"]) is not None:
                how = (
                    f"faiss {near['kind']}, {near['groups']} groups looked into, recall@{RECALL_AT}"
                    f" {near[f'recall@{RECALL_AT}']:.3f} of exact search ({near['queries']} rows)"
                )
            lines.append(f"  {name:12} {array['rows']:>9,} rows of {array['width']}: {how}")
        for name, count in self.not_finite.items():
            lines.append(f"  {name}: {count} rows hold NaN or infinity and are left out")
        for name, count in self.padding.items():
            lines.append(f"  {name}: {count} rows are of ends of files, mostly padding: left out")
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


def build_index(
    folder: Path, out: Path, options: IndexOptions, show_progress: bool = False
) -> IndexSummary:
    """Builds an index of all features in a folder; an earlier one is replaced at the end.

    Args:
        folder: Folder that `vatt extract` wrote.
        out: Folder of the index.
        options: Content of the index.
        show_progress: Whether to show a progress bar.

    Raises:
        UserError: the features do not belong together or lack requested vectors, or the folder has
            other contents.
    """
    if options.approximate:
        load_faiss()  # fails before the work, not after it
    files = FeatureFolder(folder)
    with data_written_whole(out) as (data, index_json):
        with _IndexWriter(data, options) as writer:
            for file, features in progress_bar(files, "index", unit="part", show=show_progress):
                writer.add(file, features)
        summary = writer.summary(folder)
        _add_approximate(data, options, summary)
        settings = json.loads(writer.settings)
        index_json |= {
            "features": str(folder.absolute()),
            "media_folder": None if options.media is None else str(options.media.absolute()),
            "model": options.model or writer.model,
            "fingerprint": settings["model"],
            "window_seconds": settings["window_seconds"],
            "arrays": summary.arrays,
        }
    return summary


def _add_approximate(data: Path, options: IndexOptions, summary: IndexSummary) -> None:
    for name, array in summary.arrays.items():
        wanted = options.approximate
        if wanted is None and array["rows"] > MOST_EXACT_ROWS:
            wanted = find_spec("faiss") is not None
            summary.note = "" if wanted else NO_FAISS
        if wanted:
            matrix = np.load(data / f"{name}.npy", mmap_mode="r")
            array["approximate"] = build_approximate(matrix, data / f"{name}.faiss")


class _IndexWriter(contextlib.ExitStack):
    """Writes rows, windows and files of an index incrementally.

    Args:
        data: Folder to write to.
        options: Content of the index.
    """

    def __init__(self, data: Path, options: IndexOptions) -> None:
        super().__init__()
        self._data, self._options = data, options
        self._windows = self._open("windows.npy", WINDOW)
        self._source_ends = self._open("sources.npy", np.int64)
        self._sources = self.enter_context((data / "sources.jsonl").open("wb"))
        self._arrays: dict[str, dict[str, Any]] = {}  # modality and space by name
        self._writers: dict[str, tuple[RowWriter, RowWriter]] = {}  # vectors and windows by name
        self._files: dict[str, Path] = {}  # by source; the only thing that grows with their number
        self._source: str | None = None
        self._not_finite: Counter[str] = Counter()
        self._padding: Counter[str] = Counter()
        self.settings = ""
        self.model = ""

    def _open(self, name: str, dtype: DTypeLike, row_shape: tuple[int, ...] = ()) -> RowWriter:
        writer = RowWriter(self._data / name, dtype, row_shape)
        return self.enter_context(contextlib.closing(writer))

    def add(self, file: Path, features: Features) -> None:
        """Adds the next windows of a file."""
        self._check_settings(file, features.metadata["settings"])
        if features.metadata["source"] != self._source:
            self._begin_source(file, features.metadata)
        first = self._windows.rows
        table = np.empty(len(features), dtype=WINDOW)
        table["source"] = self._source_ends.rows - 1
        table["start_seconds"] = features.start_seconds
        table["end_seconds"] = features.end_seconds
        self._windows.add(table)
        for name in self._arrays:
            if name in features.arrays:
                self._add_rows(name, file, features, first)

    def _begin_source(self, file: Path, metadata: Mapping[str, str]) -> None:
        source = metadata["source"]
        if source in self._files:
            raise UserError(
                f"{file} and {self._files[source]} both hold {source}: delete one of them", 2
            )
        self._files[source] = file
        self._source = source
        self.model = metadata.get("model", "") or self.model
        place = {name: metadata[name] for name in (MEDIA, OFFSET, SIZE) if name in metadata}
        line = json.dumps({"source": source, **place}, ensure_ascii=False)
        self._sources.write(line.encode() + b"\n")
        self._source_ends.add(np.array([self._sources.tell()]))

    def _add_rows(self, name: str, file: Path, features: Features, first: int) -> None:
        vectors = features[name].numpy()
        finite = np.isfinite(vectors).all(axis=1)
        present = finite & vectors.any(axis=1)  # zeros: the window lacks the modality
        parts = self._arrays[name]["modality"].split("_")
        coverage = np.minimum.reduce([features.coverage[part].numpy() for part in parts])
        at_start = features.start_seconds.numpy() == 0.0
        covered = (coverage >= self._options.least_coverage) | at_start
        self._not_finite[name] += int((~finite).sum())
        self._padding[name] += int((present & ~covered).sum())
        chosen = np.flatnonzero(present & covered)
        if not len(chosen):
            return
        if name not in self._writers:
            self._writers[name] = (
                self._open(f"{name}.npy", np.float32, vectors.shape[1:]),
                self._open(f"{name}.windows.npy", np.int64),
            )
        matrix, places = self._writers[name]
        if vectors.shape[1:] != matrix.row_shape:
            raise UserError(
                f"{file} is damaged: {name} is {vectors.shape[1]} wide, and in other files "
                f"{matrix.row_shape[0]}. Delete it, then {EXTRACT}",
                2,
            )
        matrix.add(unit_rows(vectors[chosen]))
        places.add(chosen + first)

    def _check_settings(self, file: Path, settings: str) -> None:
        """Refuses windows that were made with other settings than the first ones."""
        if not self.settings:
            self.settings, self._first = settings, file
            self._arrays = _chosen(json.loads(settings)["arrays"], self._options, file)
        if settings == self.settings:
            return
        first, other = json.loads(self.settings), json.loads(settings)
        names = {name for name in first | other if first.get(name) != other.get(name)}
        raise UserError(
            f"{file} was made with another {' and another '.join(sorted(names))} than "
            f"{self._first}: run `vatt extract` on all media again, or index them apart",
            2,
        )

    def summary(self, features: Path) -> IndexSummary:
        """Content of the index, when all is written."""
        if not self._writers:
            raise UserError(
                f"{features} holds no vectors of {', '.join(self._arrays)}: the media lack these "
                f"modalities. Choose another --modality, or {EXTRACT}",
                2,
            )
        arrays = {}
        for name, array in self._arrays.items():
            if name in self._writers:
                matrix = self._writers[name][0]
                size = {"rows": matrix.rows, "width": matrix.row_shape[0]}
                arrays[name] = {**array, **size, "approximate": None}
        return IndexSummary(
            num_sources=self._source_ends.rows,
            num_windows=self._windows.rows,
            arrays=arrays,
            not_finite=+self._not_finite,  # without zeros
            padding=+self._padding,
        )


def _chosen(
    forms: Mapping[str, Any], options: IndexOptions, file: Path
) -> dict[str, dict[str, Any]]:
    """Modality and space of the arrays that go into the index."""
    if any(form["tokens"] for form in forms.values()):
        raise UserError(
            f"{file} holds tokens, an index is of one vector a window: extract without --tokens", 2
        )
    arrays = {
        name: {
            "modality": name.removesuffix(f"_{form['space']}"),
            "space": form["space"] or "none",
        }
        for name, form in forms.items()
    }
    modalities, spaces = options.modalities, options.spaces
    chosen = {
        name: array
        for name, array in arrays.items()
        if (modalities is None or array["modality"] in modalities)
        and (spaces is None or array["space"] in spaces)
    }
    if not chosen:
        asked = [*(modalities or ()), *(spaces or ())]
        raise UserError(
            f"the features have no {' with '.join(asked)}, they have {', '.join(arrays)}", 2
        )
    return chosen
