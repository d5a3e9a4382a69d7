"""Reading of folders that `vatt extract` wrote, a few windows at a time."""

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vatt.errors import UserError
from vatt.features.files import COVERAGE, FORMATS, Features
from vatt.features.stores import METADATA, load_pyarrow

BATCH_ROWS = 2048  # of a parquet file; 1,024 floats each are 8 MB an array
EXTRACT = "make features with `vatt extract MEDIA -o FEATURES --model MODEL`"


@dataclass(frozen=True, kw_only=True)
class SourceWindows:
    """All windows of an input, or the next ones.

    Args:
        source: Name of the input.
        file: File that holds the vectors.
        settings: Settings of the extraction, as JSON.
        origin: Location of the media and the model.
        arrays: float32 `[n, D]` by name; zeros for windows without the modality.
        coverage: float32 `[n]` by modality: share of each window that the file fills.
        start_seconds: float64 `[n]`.
        end_seconds: float64 `[n]`.
    """

    source: str
    file: Path
    settings: str
    origin: Mapping[str, str]
    arrays: Mapping[str, NDArray[np.float32]]
    coverage: Mapping[str, NDArray[np.float32]]
    start_seconds: NDArray[np.float64]
    end_seconds: NDArray[np.float64]


class FeatureFolder:
    """Folder with results of `vatt extract`.

    Args:
        folder: `--out` of `vatt extract`.

    Raises:
        UserError: the folder does not exist, is empty, or has results in several formats.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}: correct the path, or {EXTRACT}", 2)
        self.folder = folder
        self.files = sorted(_walk(folder))
        kinds = {file.rpartition(".")[2] for file in self.files}
        if not kinds:
            raise UserError(f"{folder} holds no features: {EXTRACT}", 2)
        if len(kinds) > 1:
            raise UserError(
                f"{folder} holds features as {' and as '.join(sorted(kinds))}: keep one of them, "
                "or the same media would be found twice",
                2,
            )
        self._parquet = load_pyarrow("parquet") if kinds == {"parquet"} else None

    def __iter__(self) -> Iterator[SourceWindows]:
        """All windows, file by file; windows of an input follow each other.

        Raises:
            UserError: a file is damaged or was not written by `vatt extract`.
        """
        for file in self.files:
            path = self.folder / file
            try:
                if self._parquet is None:
                    yield _file_windows(path)
                else:
                    yield from _parquet_windows(self._parquet, path)
            # OSError, ValueError: pyarrow's of a damaged file
            except (OSError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())
                message = f"{path} cannot be used ({reason}): delete it, then {EXTRACT}"
                raise UserError(message, 2) from error


def _walk(folder: Path) -> Iterator[str]:
    """Paths of features in a folder; a data set is at its top level."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        at_top = parent == os.fspath(folder)
        for name in files:
            is_part = at_top and name.startswith("part-") and name.endswith(".parquet")
            if not name.startswith(".") and (is_part or name.rpartition(".")[2] in FORMATS):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _file_windows(path: Path) -> SourceWindows:
    features = Features.load(path)
    metadata = features.metadata
    if "settings" not in metadata:
        raise UserError("it does not say with which model it was made")
    return SourceWindows(
        source=metadata["source"],
        file=path,
        settings=metadata["settings"],
        origin=metadata,
        arrays={name: value.numpy() for name, value in features.arrays.items()},
        coverage={name: value.numpy() for name, value in features.coverage.items()},
        start_seconds=features.start_seconds.numpy(),
        end_seconds=features.end_seconds.numpy(),
    )


def _parquet_windows(parquet: ModuleType, path: Path) -> Iterator[SourceWindows]:
    with parquet.ParquetFile(path) as file:
        said = json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"{}"))
        if "settings" not in said:
            raise UserError("it does not say with which model it was made")
        for batch in file.iter_batches(BATCH_ROWS):
            sources = batch.column("source").to_pylist()
            vectors = [n for n in batch.schema.names if _is_vectors(batch.schema.field(n).type)]
            arrays = {name: _dense(batch.column(name)) for name in vectors}
            coverage = {
                name.removesuffix(COVERAGE): batch.column(name).to_numpy()
                for name in batch.schema.names
                if name.endswith(COVERAGE)
            }
            times = [batch.column(f"{at}_seconds").to_numpy() for at in ("start", "end")]
            for source, part in _runs(sources):
                yield SourceWindows(
                    source=source,
                    file=path,
                    settings=said["settings"],
                    origin=said.get("origins", {}).get(source, {}),
                    arrays={name: values[part] for name, values in arrays.items()},
                    coverage={name: values[part] for name, values in coverage.items()},
                    start_seconds=times[0][part],
                    end_seconds=times[1][part],
                )


def _is_vectors(kind: Any) -> bool:
    return hasattr(kind, "list_size")


def _dense(column: Any) -> NDArray[np.float32]:
    """A column of vectors, float32 `[n, D]`, zeros where there is none."""
    dense = np.zeros((len(column), column.type.list_size), dtype=np.float32)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    dense[there] = column.drop_null().flatten().to_numpy().reshape(-1, dense.shape[1])
    return dense


def _runs(sources: Sequence[str]) -> Iterator[tuple[str, slice]]:
    """Equal neighbours, as one slice each."""
    start = 0
    for source, same in itertools.groupby(sources):
        end = start + sum(1 for _ in same)
        yield source, slice(start, end)
        start = end
