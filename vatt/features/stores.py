"""Stores for features of many inputs: one file per input, or one parquet data set.

Both record the settings and the content that the features of each input were made with. Files are
complete or absent.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from vatt.errors import MediaError, ShardError, UserError
from vatt.features.files import Features, read_metadata
from vatt.features.inputs import Item
from vatt.system.files import write_atomically

PART_WINDOWS = 10_000  # rows of a part of a data set; 512 floats each are 20 MB an array
PART_SECONDS = 300  # so much work at most is lost with a killed run
METADATA = b"vatt"  # in the schema of a part


class FileStore:
    """One file for each input, `OUT/NAME.npz`.

    Args:
        out: Folder.
        suffix: `.npz` or `.safetensors`.
        settings: Settings of the extraction.
    """

    def __init__(self, out: Path, suffix: str, settings: str) -> None:
        self._out, self._suffix, self._settings = out, suffix, settings

    def clean(self, items: Sequence[Item]) -> None:
        """Removes partial files of a killed run; no other process may write meanwhile."""
        remove_partial(self._out, self._suffix)

    def open(self) -> None:
        """Does nothing: files are looked up one by one."""

    def holds(self, name: str, stamp: str) -> bool:
        """Whether the folder has the features of an input with this content and these settings."""
        try:
            metadata = read_metadata(self._path(name))
        except UserError:
            return False
        return (metadata.get("settings"), metadata.get("stamp")) == (self._settings, stamp)

    def write(self, name: str, stamp: str, features: Features) -> None:
        """Keeps the features of an input."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        own = {"source": name, "stamp": stamp, "settings": self._settings}
        Features(**(vars(features) | {"metadata": {**features.metadata, **own}})).save(path)

    def close(self) -> None:
        """Does nothing: every file is already written."""

    def _path(self, name: str) -> Path:
        return self._out / f"{name}{self._suffix}"


class ParquetStore:
    """One data set, `OUT/part-….parquet`, with a row for each window, its source and times.

    Args:
        out: Folder.
        widths: Columns of vectors, with their widths.
        settings: Settings of the extraction.
        part_windows: Number of rows after which a part is written.
        part_seconds: Time after which a part is written, even if it has fewer rows.

    Raises:
        UserError: pyarrow is missing.
    """

    def __init__(
        self,
        out: Path,
        widths: Mapping[str, int],
        settings: str,
        part_windows: int = PART_WINDOWS,
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self._out, self._widths, self._settings = out, widths, settings
        self._part_windows, self._part_seconds = part_windows, part_seconds
        self._written_at = time.monotonic()
        self._held: dict[str, str] = {}
        self._waiting: dict[str, tuple[str, Features]] = {}
        load_pyarrow()

    def clean(self, items: Sequence[Item]) -> None:
        """Removes partial files of a killed run, and outdated parts.

        A part is outdated if it has other settings, or an input whose content has changed.
        """
        remove_partial(self._out, ".parquet")
        described = {path: _described(path) for path in self._parts()}
        held = {name for one in described.values() for name in one.get("stamps", {})}
        stamps = {item.name: _stamp(item) for item in items if item.name in held}
        for path, one in described.items():
            kept = one.get("stamps", {})
            changed = any(stamps.get(name, stamp) != stamp for name, stamp in kept.items())
            if changed or one.get("settings") != self._settings:
                path.unlink()

    def open(self) -> None:
        """Looks up the inputs that the parts contain."""
        for path in self._parts():
            self._held |= _described(path).get("stamps", {})

    def holds(self, name: str, stamp: str) -> bool:
        """Whether a part has the features of an input with this content and these settings."""
        return self._held.get(name) == stamp

    def write(self, name: str, stamp: str, features: Features) -> None:
        """Adds the features of an input; writes a part when it is full or due."""
        self._waiting[name] = (stamp, features)
        num_windows = sum(len(one) for _, one in self._waiting.values())
        late = time.monotonic() - self._written_at >= self._part_seconds
        if late or num_windows >= self._part_windows:
            self.close()

    def close(self) -> None:
        """Writes the rows that are not yet on disk."""
        if not self._waiting:
            return
        names = sorted(self._waiting)
        stamps = {name: self._waiting[name][0] for name in names}
        pyarrow, parquet = load_pyarrow(), load_pyarrow("parquet")
        tables = [self._table(pyarrow, name, self._waiting[name][1]) for name in names]
        origins = {name: dict(self._waiting[name][1].metadata) for name in names}
        text = json.dumps(
            {"settings": self._settings, "stamps": stamps, "origins": origins}, sort_keys=True
        )
        table = pyarrow.concat_tables(tables).replace_schema_metadata({METADATA: text.encode()})
        buffer = io.BytesIO()
        parquet.write_table(table, buffer)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        write_atomically(self._out / f"part-{digest}.parquet", buffer.getbuffer())
        self._waiting.clear()
        self._written_at = time.monotonic()

    def _table(self, pyarrow: ModuleType, name: str, features: Features) -> Any:
        count = len(features)
        columns: dict[str, Any] = {
            "source": pyarrow.array([name] * count, pyarrow.string()),
            "start_seconds": pyarrow.array(features.start_seconds.numpy()),
            "end_seconds": pyarrow.array(features.end_seconds.numpy()),
        }
        for modality in dict.fromkeys(column.split("_")[0] for column in self._widths):
            columns[f"{modality}_coverage"] = pyarrow.array(features.coverage[modality].numpy())
        for column, width in self._widths.items():
            if column in features.arrays:
                flat = pyarrow.array(np.ascontiguousarray(features[column].numpy()).ravel())
                columns[column] = pyarrow.FixedSizeListArray.from_arrays(flat, width)
            else:
                kind = pyarrow.list_(pyarrow.float32(), width)
                columns[column] = pyarrow.nulls(count, kind)
        return pyarrow.table(columns)

    def _parts(self) -> list[Path]:
        return sorted(self._out.glob("part-*.parquet"))


def load_pyarrow(part: str = "") -> ModuleType:
    """Imports the optional package pyarrow, or a module of it.

    Raises:
        UserError: pyarrow is not installed.
    """
    from importlib import import_module

    try:
        return import_module(f"pyarrow.{part}" if part else "pyarrow")
    except ImportError as error:
        raise UserError('parquet needs pyarrow: pip install "vatt[parquet]"') from error


def remove_partial(out: Path, suffix: str) -> None:
    """Removes temporary files of `write_atomically` that a killed process left in a folder."""
    for path in out.rglob(f".*{suffix}.*.partial"):
        path.unlink(missing_ok=True)


def _stamp(item: Item) -> str | None:
    """Stamp of an input's content; None if the content no longer exists."""
    try:
        return item.locate()[1]
    except (MediaError, ShardError):
        return None


def _described(path: Path) -> dict[str, Any]:
    """Metadata of a part; empty if `vatt extract` did not write it."""
    metadata = load_pyarrow("parquet").read_schema(path).metadata or {}
    described: dict[str, Any] = json.loads(metadata.get(METADATA, b"{}"))
    return described
