"""An index on disk: matrices of unit vectors, a table of windows, and what they belong to.

`index.json` names the folder `data-N` that holds the rest, and is replaced at the end of a build:
readers see the old index or all of the new one. In that folder are

- `NAME.npy`, float32 `[rows, D]`, for each array such as `video_vt`,
- `NAME.windows.npy`, int64 `[rows]`, the window of each row,
- `windows.npy`, structured: number of the file, start and end in seconds,
- `sources.jsonl`, one line per file, and `sources.npy`, int64, the byte at which each line ends,
- `NAME.faiss`, where the array is searched approximately.
"""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vatt.errors import UserError
from vatt.search.exact import release
from vatt.system.files import locked, write_atomically

FORMAT_VERSION = 1
INDEX_JSON = "index.json"
LOCK = ".lock"
WINDOW = np.dtype([("source", "<i8"), ("start_seconds", "<f8"), ("end_seconds", "<f8")])
MAKE = "make one with `vatt index FEATURES -o INDEX`"


class RowWriter:
    """An `.npy` file that grows row by row; `close` writes its final length into the header.

    Args:
        path: The file.
        dtype: Type of the elements.
        row_shape: Shape of one row.
    """

    def __init__(self, path: Path, dtype: DTypeLike, row_shape: tuple[int, ...] = ()) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self.row_shape = np.dtype(dtype), row_shape
        self.rows = 0
        self._write_header()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.row_shape),
        }
        # numpy pads the header, so that any number of rows fits later
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, rows: NDArray[Any]) -> None:
        """Appends rows."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Completes the file."""
        with self._file:
            self._file.seek(0)
            self._write_header()


@contextlib.contextmanager
def data_written_whole(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yields a folder for the data of an index, and the content of its `index.json`.

    Both take effect when the block ends well; an earlier index stays valid until then.

    Args:
        out: Folder of the index; created if missing.

    Raises:
        UserError: the folder has other contents, or another process is writing an index there.
    """
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    refusal = UserError(f"another process makes an index in {out}: wait for it", 2)
    with locked(out / LOCK, refusal):
        numbers = [int(path.name.removeprefix("data-")) for path in _data_folders(out)]
        data = out / f"data-{max(numbers, default=0) + 1}"
        data.mkdir()
        content: dict[str, Any] = {"format_version": FORMAT_VERSION, "data": data.name}
        try:
            yield data, content
            text = json.dumps(content, indent=1, ensure_ascii=False)
            write_atomically(out / INDEX_JSON, text.encode())
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            raise
        for other in _data_folders(out):  # of the earlier index, and of killed runs
            if other != data:
                shutil.rmtree(other, ignore_errors=True)


def _data_folders(out: Path) -> list[Path]:
    return [path for path in out.glob("data-*") if path.name.removeprefix("data-").isdigit()]


def _refuse_foreign(out: Path) -> None:
    """Refuses a folder that contains anything other than an index."""
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder for the index", 2)
    known = {INDEX_JSON, LOCK, *(path.name for path in _data_folders(out))}
    for name in (path.name for path in out.glob("*")):
        if name not in known and not name.startswith(f".{INDEX_JSON}."):
            raise UserError(f"{out} holds other things ({name}): name a folder for the index", 2)


class SearchFiles:
    """The data of an index, memory-mapped; stays readable when the index is replaced.

    Args:
        path: Folder of the index.

    Raises:
        UserError: there is no index, it is damaged, or it has another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = read_index_json(path)
        self._data = path / self.content["data"]
        self.arrays: Mapping[str, Mapping[str, Any]] = self.content["arrays"]
        self._matrices = {name: self._map(f"{name}.npy") for name in self.arrays}
        self._places = {name: self._map(f"{name}.windows.npy") for name in self.arrays}
        self._windows = self._map("windows.npy")
        times = (self._windows[at] for at in ("start_seconds", "end_seconds"))
        if self._windows.dtype != WINDOW or not all(np.isfinite(one).all() for one in times):
            raise UserError(f"{self._data / 'windows.npy'} is damaged: {MAKE}", 2)
        release(self._windows)
        for name, places in self._places.items():
            matrix = self._matrices[name]
            if matrix.dtype != np.float32 or matrix.shape[:-1] != places.shape:
                raise UserError(f"{self._data / name}.npy is damaged: {MAKE}", 2)
        self._lines: NDArray[np.uint8] = self._map("sources.jsonl")
        self._source_ends = self._map("sources.npy")
        self.num_sources = len(self._source_ends)
        self.num_windows = len(self._windows)

    def matrix(self, name: str) -> NDArray[np.float32]:
        """Unit vectors of an array, float32 `[rows, D]`."""
        return self._matrices[name]

    def faiss_path(self, name: str) -> Path:
        """File of an array's approximate index."""
        return self._data / f"{name}.faiss"

    def windows(self, name: str, rows: NDArray[np.int64]) -> list[tuple[int, float, float]]:
        """Windows of some rows of an array: index of the file, start and end in seconds."""
        try:
            windows: list[tuple[int, float, float]]
            windows = self._windows[self._places[name][rows]].tolist()
        except IndexError as error:
            raise UserError(f"{self._data / name}.windows.npy is damaged: {MAKE}", 2) from error
        return windows

    def source(self, number: int) -> dict[str, str]:
        """Name of a file (`source`), and the place of its media."""
        try:
            start = int(self._source_ends[number - 1]) if number else 0
            line = self._lines[start : int(self._source_ends[number])]
            source: dict[str, str] = json.loads(line.tobytes())
            source["source"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{self._data / 'sources.jsonl'} is damaged: {MAKE}", 2) from error
        return source

    def _map(self, name: str) -> NDArray[Any]:
        path = self._data / name
        try:
            if path.suffix == ".npy":
                return np.load(path, mmap_mode="r", allow_pickle=False)
            return np.memmap(path, mode="r")
        except Exception as error:  # numpy raises many kinds
            raise UserError(f"{path} is missing or damaged: {MAKE}", 2) from error


def read_index_json(path: Path) -> dict[str, Any]:
    """Content of an index's `index.json`.

    Raises:
        UserError: there is no index, it is damaged, or it has another version.
    """
    file = path / INDEX_JSON
    if not file.is_file():
        raise UserError(f"there is no index in {path}: {MAKE}", 2)
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = content["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {MAKE}", 2) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is an index of version {version}, this vatt reads {FORMAT_VERSION}: {MAKE}", 2
        )
    return content
