"""Reads TensorFlow V2 checkpoints ("tensor bundles") without TensorFlow.

PREFIX.index is a sorted string table in LevelDB's format, whose values are protocol buffers. The
empty key has a header; each variable's name has the position of its bytes in
PREFIX.data-?????-of-?????. All content is checked against its CRC32C, and sizes are checked against
the file before memory is allocated. Nothing in a file is ever executed.

Source: LevelDB `doc/table_format.md`; TensorFlow `core/lib/io/format.cc`,
`core/protobuf/tensor_bundle.proto`, `core/framework/{types,tensor_shape,versions}.proto`.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vatt.errors import CheckpointError, nearest
from vatt.official.table import BYTES, FIXED32, VARINT, Cursor, masked_crc, read_table

_MAX_AXES = 64  # NumPy's, as is the limit of 2**63 bytes
_STRING, _BFLOAT16 = 7, 14
# DataType's number → its bytes as NumPy sees them; bfloat16 is the upper half of a float32.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 9: "<i8", 10: "|b1", _BFLOAT16: "<u2", 19: "<f2"}


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Finds the prefix that the files of a checkpoint share.

    Args:
        path: The prefix itself (`.../ckpt-7`), one of its files, or a folder. In a folder, this is
            the checkpoint that the file `checkpoint` names, or the only one.

    Raises:
        CheckpointError: there is no checkpoint, or there are several and no file names one.
    """
    given = Path(path)
    prefix = Path(re.sub(r"\.(index|data-\d{5}-of-\d{5})$", "", str(given)))
    if _is_file(f"{prefix}.index"):
        return prefix
    if not given.is_dir():
        hint = "give a prefix, its .index file or its folder (V1 checkpoints have no .index)"
        raise CheckpointError(f"{given}: expected {prefix.name}.index, which is not there; {hint}")
    found = sorted(str(file).removesuffix(".index") for file in given.glob("?*.index"))
    names = [Path(prefix).name for prefix in found]
    if (named := _read_named_path(given / "checkpoint")) is not None:
        # TensorFlow may have written an absolute path, of the machine that it ran on.
        candidates = [given / named] if not named.startswith("/") else []
        for candidate in [*candidates, given / re.split(r"[/\\]", named)[-1]]:
            if _is_file(f"{candidate}.index"):
                return candidate
        reason = f"its file `checkpoint` names {named[:200]!r}, expected one of {names}"
        raise CheckpointError(f"{given}: {reason}: name one")
    if len(found) != 1:
        reason = f"expected one *.index or a file `checkpoint`, got {names}"
        reason += ": name one" if found else ""
        raise CheckpointError(f"{given}: {reason}")
    return Path(found[0])


def _read_named_path(state: Path) -> str | None:
    if not _is_file(state):
        return None
    with state.open(encoding="utf-8", errors="replace") as file:
        head = file.read(1 << 16)  # the path is on the first line
    match = re.search(r'^model_checkpoint_path: *"([^"\n]*)"', head, re.MULTILINE)
    return match[1] if match else None


def _is_file(path: str | Path) -> bool:
    return os.path.isfile(path)  # noqa: PTH113 (pathlib raises for a name that is too long)


@dataclass(frozen=True)
class _Entry:
    dtype_number: int
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int  # bytes
    masked_crc: int


class TensorBundle:
    """Variables of a TensorFlow V2 checkpoint; create it by `open`.

    Args:
        prefix: Prefix of the checkpoint's files.
        entries: Position of the bytes of each variable, already checked against the files.

    Attributes:
        shapes: Shape by full name, including `/.ATTRIBUTES/VARIABLE_VALUE`, sorted by UTF-8 bytes.
        unread: TensorFlow's type of entries that cannot be read, by full name, such as the string
            with the object graph.
    """

    def __init__(self, prefix: Path, entries: dict[str, _Entry]) -> None:
        self.prefix = prefix
        self._entries = {name: e for name, e in entries.items() if e.dtype_number in _DTYPES}
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.unread = {
            name: "string" if entry.dtype_number == _STRING else f"number {entry.dtype_number}"
            for name, entry in entries.items()
            if name not in self._entries
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TensorBundle":
        """Opens a checkpoint: reads its index, and checks the sizes of the data files.

        Args:
            path: Prefix of the files, one of the files, or their folder (`find_checkpoint`).

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or of an unsupported kind.
            UserError: google-crc32c is not installed.
        """
        prefix = find_checkpoint(path)
        index = Path(f"{prefix}.index")
        table = read_table(index)
        if b"" not in table:
            raise CheckpointError(f"{index}: expected a header under the empty key, got none")
        num_shards = _read_header(Cursor(table.pop(b""), index, "the header"))
        entries = {}
        for key, value in table.items():
            if key.startswith(b"\0"):
                continue  # one slice of a variable whose own entry is refused
            try:
                name = key.decode()
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{index}: a name is not UTF-8: {error}") from error
            cursor = Cursor(value, index, f"the entry of {name!r}")
            entries[name] = _read_entry(cursor, prefix, num_shards)
        _check_data_files(entries)
        return cls(prefix, entries)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor and verifies its checksum.

        Args:
            name: Full name, as in `shapes`.

        Returns:
            Array of `shapes[name]` in the machine's byte order; bfloat16 as float32.

        Raises:
            CheckpointError: there is no such tensor, it is not numeric, or it is damaged.
        """
        if name in self.unread:
            reason = f"{name!r} is of type {self.unread[name]}, which is not read"
            raise CheckpointError(f"{self.prefix}: {reason}")
        if (entry := self._entries.get(name)) is None:
            hint = nearest(name, self._entries)
            raise CheckpointError(f"{self.prefix}: no tensor {name!r}.{hint}")
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        crc = masked_crc(raw)
        if (len(raw), crc) != (entry.size, entry.masked_crc):
            wanted = f"{entry.size} bytes with checksum {entry.masked_crc:#010x}"
            got = f"{len(raw)} with {crc:#010x}"
            reason = f"tensor {name!r} is damaged: expected {wanted}, got {got}"
            raise CheckpointError(f"{entry.path}: {reason}")
        values = np.frombuffer(raw, _DTYPES[entry.dtype_number])
        if entry.dtype_number == _BFLOAT16:
            return (values.astype(np.uint32) << 16).view(np.float32).reshape(entry.shape)
        return values.astype(_read_type(entry.dtype_number)).reshape(entry.shape)


def _read_type(dtype_number: int) -> np.dtype[Any]:
    stored = "<f4" if dtype_number == _BFLOAT16 else _DTYPES[dtype_number]
    return np.dtype(stored).newbyteorder("=")


def _check_data_files(entries: dict[str, _Entry]) -> None:
    file_sizes: dict[Path, int] = {}
    for name, entry in entries.items():
        path, end = entry.path, entry.offset + entry.size
        if path not in file_sizes:
            if not _is_file(path):
                raise CheckpointError(
                    f"{path}: expected a file with tensor {name!r}, it is missing"
                )
            file_sizes[path] = path.stat().st_size
        if min(entry.offset, entry.size) < 0 or end > file_sizes[path]:
            wanted = f"expected tensor {name!r} in bytes {entry.offset} to {end}"
            raise CheckpointError(f"{path}: {wanted}, got {file_sizes[path]} bytes: copied whole?")
    wanted_bytes, num_bytes = sum(e.size for e in entries.values()), sum(file_sizes.values())
    if wanted_bytes > num_bytes:  # a small file must not pass for terabytes of tensors
        reason = f"tensors overlap: {wanted_bytes} bytes of them in {num_bytes} bytes of files"
        raise CheckpointError(f"{min(file_sizes)}: {reason}")


def _read_header(cursor: "Cursor") -> int:
    """Checks the header and gives the number of data files."""
    if cursor.data.startswith(b"\n"):  # field 1 is a message in V1 and a number in V2
        raise cursor.error("is of a V1 checkpoint, expected V2: save it again with a newer saver")
    fields = cursor.read_fields({1: VARINT, 2: VARINT, 3: BYTES})
    if endianness := _last(fields[2]):
        raise cursor.error(f"has byte order {endianness}, expected 0: only little-endian is read")
    versions = Cursor(b"".join(fields[3]), cursor.path, cursor.what).read_fields({2: VARINT})
    if (version := _last(versions[2])) > 1:
        raise cursor.error(f"needs a reader of version {version}, this one is of version 1")
    return _last(fields[1])


def _read_entry(cursor: "Cursor", prefix: Path, num_shards: int) -> _Entry:
    wire_types = dict.fromkeys((1, 3, 4, 5), VARINT) | {2: BYTES, 6: FIXED32, 7: BYTES}
    fields = cursor.read_fields(wire_types)
    if fields[7]:
        num_slices = len(fields[7])
        raise cursor.error(f"has {num_slices} slices: partitioned variables are not read")
    number, shard, offset, size = (_last(fields[field]) for field in (1, 3, 4, 5))
    if not 0 <= shard < num_shards:
        raise cursor.error(f"is in data file {shard}, expected one of {num_shards}")
    shape = _read_shape(Cursor(b"".join(fields[2]), cursor.path, cursor.what))
    if number in _DTYPES:
        dtype = _read_type(number)
        needed = math.prod(shape) * np.dtype(_DTYPES[number]).itemsize
        if needed != size:
            raise cursor.error(f"has {size} bytes, expected {needed} for {shape} of {dtype}")
        if math.prod(max(axis, 1) for axis in shape) * dtype.itemsize >= 2**63:
            raise cursor.error(f"has shape {shape}, expected less than 2**63 bytes")
    path = Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}")
    return _Entry(number, shape, path, offset, size, _last(fields[6]))


def _read_shape(cursor: "Cursor") -> tuple[int, ...]:
    fields = cursor.read_fields({2: BYTES, 3: VARINT})
    if _last(fields[3]) or len(fields[2]) > _MAX_AXES:
        rank = "unknown rank" if _last(fields[3]) else f"{len(fields[2])} axes"
        raise cursor.error(f"has a shape of {rank}, expected at most {_MAX_AXES} axes")
    axes = (Cursor(axis, cursor.path, cursor.what) for axis in fields[2])
    shape = tuple(_last(axis.read_fields({1: VARINT})[1]) for axis in axes)
    if min(shape, default=0) < 0:
        raise cursor.error(f"has shape {shape}, expected no negative length")
    return shape


def _last(values: list[int]) -> int:
    """Number in a field: the last value counts, and 0 is not written."""
    return values[-1] if values else 0
