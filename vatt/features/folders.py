"""Reading of folders that `vatt extract` wrote, a few windows at a time."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vatt.errors import UserError
from vatt.features.files import FORMATS, Features
from vatt.features.stores import description, load_parquet
from vatt.system.bounds import check_parquet

BATCH_ROWS = 2048  # of a parquet file; 1,024 floats each are 8 MB an array
EXTRACT = "make features with `vatt extract MEDIA -o FEATURES --model MODEL`"


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
        self._parquet = load_parquet() if kinds == {"parquet"} else None

    def __iter__(self) -> Iterator[tuple[Path, Features]]:
        """Iterates over all windows; those of an input are in one piece or in consecutive pieces.

        The metadata contain the `source`, the `settings` and the location of the media.

        Raises:
            UserError: a file is damaged or was not written by `vatt extract`.
        """
        for file in self.files:
            path = self.folder / file
            try:
                for features in self._read(path):
                    if not all(features.metadata.get(name) for name in ("source", "settings")):
                        raise UserError("it does not say with which model it was made")
                    yield path, features
            # OSError, ValueError: pyarrow's of a damaged file
            except (OSError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())
                message = f"{path} cannot be used ({reason}): delete it, then {EXTRACT}"
                raise UserError(message, 2) from error

    def _read(self, path: Path) -> Iterator[Features]:
        if self._parquet is None:
            yield Features.load(path)
            return
        with self._parquet.ParquetFile(path) as file:
            row_bytes = sum(map(_num_bytes, file.schema_arrow.types))
            check_parquet(path, file.metadata, row_bytes=row_bytes)
            described = description(file.schema_arrow)
            for batch in file.iter_batches(BATCH_ROWS):
                columns = {name: batch.column(name) for name in batch.schema.names}
                sources = columns.pop("source").to_pylist()
                tensors = {name: _tensor(column) for name, column in columns.items()}
                for source, group in itertools.groupby(range(len(batch)), sources.__getitem__):
                    rows = list(group)
                    origin = described.get("origins", {}).get(source, {})
                    own = {"source": source, "settings": described.get("settings")}
                    part = {name: tensor[rows] for name, tensor in tensors.items()}
                    yield Features.from_tensors(part, origin | own)


def _walk(folder: Path) -> Iterator[str]:
    """Paths of features in a folder; a data set is at its top level."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        at_top = parent == os.fspath(folder)
        for name in files:
            is_part = at_top and name.startswith("part-") and name.endswith(".parquet")
            if not name.startswith(".") and (is_part or name.rpartition(".")[2] in FORMATS):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def _num_bytes(kind: Any) -> int:
    """Memory of a value of a column, at least; a missing vector takes as much as another."""
    size: int = getattr(kind, "list_size", 0)
    return size * _num_bytes(kind.value_type) if size > 0 else 4


def _tensor(column: Any) -> Tensor:
    """Column `[n]`, or vectors float32 `[n, D]` with zeros for missing ones."""
    if not hasattr(column.type, "list_size"):
        return torch.tensor(column.to_numpy())
    dense = torch.zeros(len(column), column.type.list_size)
    present = torch.tensor(column.is_valid().to_pylist(), dtype=torch.bool)
    dense[present] = torch.tensor(column.drop_null().flatten().to_numpy()).view(-1, dense.shape[1])
    return dense
