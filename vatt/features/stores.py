"""Stores for features of many inputs: one file per input, or one parquet data set.

Both record the settings and the content that the features of each input were made with. Files are
complete or absent.
"""

import hashlib
import io
import json
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

from vatt.errors import MediaError, ShardError, UserError
from vatt.features.files import COVERAGE, Features, read_metadata
from vatt.features.inputs import Item
from vatt.system.extras import load_extra
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
        replace: Whether to replace features that were made with other settings.
    """

    def __init__(self, out: Path, suffix: str, settings: str, *, replace: bool = False) -> None:
        self._out, self._suffix, self._settings = out, suffix, settings
        self._replace = replace
        self.num_replaced = 0  # files of other settings so far

    def clean(self, items: Sequence[Item]) -> None:
        """Removes partial files of a killed run; no other process may write meanwhile.

        Raises:
            UserError: the first file that is there was made with other settings.
        """
        remove_partial(self._out, self._suffix)
        there = next((item for item in items if self._path(item.name).exists()), None)
        if there is not None:
            self.holds(there.name, "")
            self.num_replaced = 0

    def holds(self, name: str, stamp: str) -> bool:
        """Whether the folder has the features of an input with this content and these settings.

        Raises:
            UserError: it has features with other settings, which are not to be replaced.
        """
        path = self._path(name)
        try:
            metadata = read_metadata(path)
        except UserError:
            return False
        if metadata.get("settings") != self._settings:
            if not self._replace:
                raise other_settings(path, metadata.get("settings"), self._settings)
            self.num_replaced += 1
            return False
        return metadata.get("stamp") == stamp

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
        replace: Whether to replace features that were made with other settings.

    Raises:
        UserError: pyarrow is missing.
    """

    def __init__(
        self, out: Path, widths: Mapping[str, int], settings: str, *, replace: bool = False
    ) -> None:
        self._out, self._widths, self._settings = out, widths, settings
        self._replace = replace
        self.num_replaced = 0  # inputs whose features had other settings
        self._written_at = time.monotonic()
        self._waiting: dict[str, tuple[str, Features]] = {}
        self._parquet = load_parquet()

    def clean(self, items: Sequence[Item]) -> None:
        """Removes partial files of a killed run, and outdated parts.

        A part is outdated if it has other settings, or an input whose content has changed.

        Raises:
            UserError: a part has other settings, and is not to be replaced.
        """
        remove_partial(self._out, ".parquet")
        described = {path: self._described(path) for path in self._parts()}
        held = {name for one in described.values() for name in one.get("stamps", {})}
        stamps = {item.name: _stamp(item) for item in items if item.name in held}
        for path, one in described.items():
            kept = one.get("stamps", {})
            changed = any(stamps.get(name, stamp) != stamp for name, stamp in kept.items())
            if one.get("settings") != self._settings:
                if not self._replace:
                    raise other_settings(path, one.get("settings"), self._settings)
                self.num_replaced += len(kept)
            elif not changed:
                continue
            path.unlink()

    @cached_property
    def _held(self) -> dict[str, str]:
        """Stamps of the inputs that the parts contain, by name."""
        held: dict[str, str] = {}
        for path in self._parts():
            held |= self._described(path).get("stamps", {})
        return held

    def holds(self, name: str, stamp: str) -> bool:
        """Whether a part has the features of an input with this content and these settings."""
        return self._held.get(name) == stamp

    def write(self, name: str, stamp: str, features: Features) -> None:
        """Adds the features of an input; writes a part when it is full or due."""
        self._waiting[name] = (stamp, features)
        num_windows = sum(len(one) for _, one in self._waiting.values())
        late = time.monotonic() - self._written_at >= PART_SECONDS
        if late or num_windows >= PART_WINDOWS:
            self.close()

    def close(self) -> None:
        """Writes the rows that are not yet on disk."""
        if not self._waiting:
            return
        waiting = dict(sorted(self._waiting.items()))
        content = {
            "settings": self._settings,
            "stamps": {name: stamp for name, (stamp, _) in waiting.items()},
            "origins": {name: dict(features.metadata) for name, (_, features) in waiting.items()},
        }
        text = json.dumps(content, sort_keys=True).encode()
        table = self._table({name: features for name, (_, features) in waiting.items()})
        buffer = io.BytesIO()
        self._parquet.write_table(table.replace_schema_metadata({METADATA: text}), buffer)
        digest = hashlib.sha256(text).hexdigest()[:16]
        write_atomically(self._out / f"part-{digest}.parquet", buffer.getvalue())
        self._waiting.clear()
        self._written_at = time.monotonic()

    def _table(self, stored: Mapping[str, Features]) -> Any:
        import pyarrow

        tables = []
        for name, features in stored.items():
            columns: dict[str, Any] = {
                "source": pyarrow.array([name] * len(features), pyarrow.string()),
                "start_seconds": pyarrow.array(features.start_seconds.numpy()),
                "end_seconds": pyarrow.array(features.end_seconds.numpy()),
            }
            for modality in dict.fromkeys(column.split("_")[0] for column in self._widths):
                shares = features.coverage[modality].numpy()
                columns[f"{modality}{COVERAGE}"] = pyarrow.array(shares)
            for column, width in self._widths.items():
                kind = pyarrow.list_(pyarrow.float32(), width)
                columns[column] = pyarrow.nulls(len(features), kind)
                if column in features.arrays:
                    flat = pyarrow.array(features[column].flatten().numpy())
                    columns[column] = pyarrow.FixedSizeListArray.from_arrays(flat, width)
            tables.append(pyarrow.table(columns))
        return pyarrow.concat_tables(tables)

    def _parts(self) -> list[Path]:
        return sorted(self._out.glob("part-*.parquet"))

    def _described(self, path: Path) -> dict[str, Any]:
        return description(self._parquet.read_schema(path))


def other_settings(path: Path, found: str | None, wanted: str) -> UserError:
    """Error about features of another model or of other settings, which must not be replaced."""
    theirs, ours = json.loads(found or "{}"), json.loads(wanted)
    differences = [name for name, value in ours.items() if theirs.get(name) != value]
    return UserError(
        f"{path} was made with other settings ({', '.join(differences)}): give another folder, or "
        "--replace to extract the features anew",
        2,
    )


def load_parquet() -> ModuleType:
    """Imports the optional `pyarrow.parquet`, or raises a UserError."""
    need = 'parquet needs pyarrow: pip install "vatt[parquet]"'
    return load_extra("pyarrow.parquet", UserError(need))


def description(schema: Any) -> dict[str, Any]:
    """Settings, stamps and origins in the schema of a part; empty if vatt did not write it."""
    described: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA, b"{}"))
    return described


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
