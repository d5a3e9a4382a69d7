"""An index on disk: matrices of unit vectors, a table of windows, and what they belong to.

`index.json` names the folder `data-N` that holds the rest, and is replaced at the end of a build:
readers see the old index or all of the new one. In that folder are

- `NAME.npy`, float32 `[rows, D]`, for each array such as `video_vt`,
- `NAME.windows.npy`, int64 `[rows]`, the window of each row,
- `windows.npy`, structured: number of the source, start and end in seconds,
- `sources.jsonl`, a line an input, and `sources.npy`, int64, where each line ends,
- `NAME.faiss`, of an approximate index.
"""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vatt.errors import UserError
from vatt.system.files import write_atomically

FORMAT_VERSION = 1
INDEX_JSON = "index.json"
LOCK = ".lock"
WINDOW = np.dtype([("source", "<i8"), ("start_seconds", "<f8"), ("end_seconds", "<f8")])
MAKE = "make one with `vatt index FEATURES -o INDEX`"


class RowWriter:
    """An `.npy` file that grows row by row: its header is written anew when its length is known.

    Args:
        path: The file.
        dtype: Of its elements.
        row_shape: Of a row.
    """

    def __init__(self, path: Path, dtype: DTypeLike, row_shape: tuple[int, ...] = ()) -> None:
        self._file: BinaryIO = path.open("wb")
        self._dtype, self.row_shape = np.dtype(dtype), row_shape
        self.rows = 0
        self._write_header()

    def _write_header(self) -> None:
        described = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.rows, *self.row_shape),
        }
        # numpy pads it so that the number of rows can become any
        np.lib.format.write_array_header_1_0(self._file, described)

    def add(self, rows: NDArray[Any]) -> None:
        """Appends rows."""
        self._file.write(np.ascontiguousarray(rows, dtype=self._dtype).data)
        self.rows += len(rows)

    def close(self) -> None:
        """Completes the file."""
        with self._file:
            self._file.seek(0)
            self._write_header()

    def __enter__(self) -> Self:
        """The writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Completes the file, or closes it as it is."""
        if error is None:
            self.close()
        else:
            self._file.close()


@contextlib.contextmanager
def data_written_whole(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder for the data of an index, and what its `index.json` is to say.

    Both count when the block ends well; an index that was there counts until then.

    Args:
        out: Folder of the index; made where it is missing.

    Raises:
        UserError: it holds something else, or another process makes an index there.
    """
    _refuse_foreign(out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process makes an index in {out}: wait for it", 2) from error
        numbers = [int(path.name.removeprefix("data-")) for path in _data_folders(out)]
        data = out / f"data-{max(numbers, default=0) + 1}"
        data.mkdir()
        said: dict[str, Any] = {"format_version": FORMAT_VERSION, "data": data.name}
        try:
            yield data, said
            text = json.dumps(said, indent=1, ensure_ascii=False)
            write_atomically(out / INDEX_JSON, text.encode())
        except BaseException:
            shutil.rmtree(data, ignore_errors=True)
            raise
        for other in _data_folders(out):  # of the index before, and of runs that were killed
            if other != data:
                shutil.rmtree(other, ignore_errors=True)


def _data_folders(out: Path) -> list[Path]:
    return [path for path in out.glob("data-*") if path.name.removeprefix("data-").isdigit()]


def _refuse_foreign(out: Path) -> None:
    """An index may take a place that is free, or that of an index."""
    if out.is_dir():
        ours = {INDEX_JSON, LOCK, *(path.name for path in _data_folders(out))}
        others = [
            path.name
            for path in out.iterdir()
            if path.name not in ours and not path.name.startswith(f".{INDEX_JSON}.")
        ]
        if not others:
            return
        raise UserError(f"{out} holds other things ({others[0]}): name a folder for the index", 2)
    if out.exists():
        raise UserError(f"{out} is a file: name a folder for the index", 2)


@dataclass(frozen=True)
class Window:
    """A row's place in the media.

    Args:
        source: Number of the input.
        start_seconds: From the file's start.
        end_seconds: Not after the file's end.
    """

    source: int
    start_seconds: float
    end_seconds: float


class SearchFiles:
    """The data of an index, memory-mapped; who has it open goes on with it when it is replaced.

    Args:
        path: Folder of the index.

    Raises:
        UserError: there is none, it is damaged, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said = read_json(path)
        self._data = path / self.said["data"]
        self.arrays: Mapping[str, Mapping[str, Any]] = self.said["arrays"]
        self._matrices = {name: self._map(f"{name}.npy") for name in self.arrays}
        self._places = {name: self._map(f"{name}.windows.npy") for name in self.arrays}
        self._windows = self._map("windows.npy")
        self._lines: NDArray[np.uint8] = self._map("sources.jsonl")
        self._source_ends = self._map("sources.npy")
        self.num_sources = len(self._source_ends)
        self.num_windows = len(self._windows)

    def matrix(self, name: str) -> NDArray[np.float32]:
        """Vectors of an array, float32 `[rows, D]` of unit length."""
        return self._matrices[name]

    def faiss_path(self, name: str) -> Path:
        """Where an approximate index of an array is."""
        return self._data / f"{name}.faiss"

    def windows(self, name: str, rows: NDArray[np.int64]) -> list[Window]:
        """The places of some rows of an array."""
        numbers = self._places[name][rows]
        return [Window(*values) for values in self._windows[numbers].tolist()]

    def source(self, number: int) -> dict[str, str]:
        """Name of an input (`source`), and where its media lie."""
        start = int(self._source_ends[number - 1]) if number else 0
        line = self._lines[start : int(self._source_ends[number])]
        try:
            described: dict[str, str] = json.loads(line.tobytes())
            described["source"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(f"{self._data / 'sources.jsonl'} is damaged: {MAKE}", 2) from error
        return described

    def _map(self, name: str) -> NDArray[Any]:
        path = self._data / name
        try:
            if path.suffix == ".npy":
                return np.load(path, mmap_mode="r", allow_pickle=False)
            return np.memmap(path, mode="r")
        except Exception as error:  # numpy raises many kinds, by what the file is instead
            raise UserError(f"{path} is missing or damaged: {MAKE}", 2) from error


def read_json(path: Path) -> dict[str, Any]:
    """What an index says of itself.

    Raises:
        UserError: there is none, it is damaged, or of another version.
    """
    file = path / INDEX_JSON
    if not file.is_file():
        raise UserError(f"there is no index in {path}: {MAKE}", 2)
    try:
        said: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = said["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged: {MAKE}", 2) from error
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} is an index of version {version}, this vatt reads {FORMAT_VERSION}: {MAKE}", 2
        )
    return said
