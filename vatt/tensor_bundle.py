"""Reads TensorFlow V2 checkpoints ("tensor bundles") without TensorFlow.

PREFIX.index is a sorted string table of LevelDB's form whose values are protocol buffers: under the
empty key a header, under each variable's name the place of its bytes in PREFIX.data-?????-of-?????.
All that is read is checked against its CRC32C, and sizes against the file before memory is taken.
Nothing in a file is ever executed.

Source: LevelDB `doc/table_format.md`; TensorFlow `core/lib/io/format.cc`,
`core/protobuf/tensor_bundle.proto`, `core/framework/{types,tensor_shape,versions}.proto`.
"""

import difflib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vatt.errors import CheckpointError, UserError

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_BYTES = 48  # the places of two blocks, padded to 40 bytes, and the magic number
_TRAILER_BYTES = 5  # behind each block: its compression and its checksum
_MAX_INDEX_BYTES = 64 << 20  # 1,000 variables take about 0.2 MB; also bounds the unpacked names
_MAX_AXES = 64  # NumPy's, as is the limit of 2**63 bytes
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers
_STRING, _BFLOAT16 = 7, 14
# DataType's number → its bytes as NumPy sees them; bfloat16 is the upper half of a float32.
_DTYPES = {1: "<f4", 2: "<f8", 3: "<i4", 4: "|u1", 9: "<i8", 10: "|b1", _BFLOAT16: "<u2", 19: "<f2"}


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """Finds the prefix that the files of a checkpoint share.

    Args:
        path: The prefix itself (`.../ckpt-7`), one of its files, or a folder: then the checkpoint
            that the folder's `checkpoint` file names, else the only one in it.

    Raises:
        CheckpointError: there is none, or several and none is named.
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
    """The variables of a TensorFlow V2 checkpoint; made by `open`, iterates over their names.

    Args:
        prefix: Of the checkpoint's files.
        entries: Name → where its bytes lie, already checked against the files.

    Attributes:
        shapes: Full name, `/.ATTRIBUTES/VARIABLE_VALUE` included → shape.
        dtypes: Full name → type as `read` gives it (bfloat16 as float32).
        unread: Full name → TensorFlow's type of what is listed only, as the string with the object
            graph; not among the names of the bundle.
    """

    def __init__(self, prefix: Path, entries: dict[str, _Entry]) -> None:
        self.prefix = prefix
        self._entries = {name: e for name, e in entries.items() if e.dtype_number in _DTYPES}
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}
        self.dtypes = {name: _read_type(e.dtype_number) for name, e in self._entries.items()}
        self.unread = {
            name: "string" if entry.dtype_number == _STRING else f"number {entry.dtype_number}"
            for name, entry in entries.items()
            if name not in self._entries
        }

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "TensorBundle":
        """Reads the index, and checks that the data files hold what it lists.

        Args:
            path: As of `find_checkpoint`.

        Raises:
            CheckpointError: there is no checkpoint, or it is damaged or of a kind that is not read.
            UserError: google-crc32c is not installed.
        """
        prefix = find_checkpoint(path)
        index = Path(f"{prefix}.index")
        table = _read_table(index)
        if b"" not in table:
            raise CheckpointError(f"{index}: expected a header under the empty key, got none")
        num_shards = _read_header(_Cursor(table.pop(b""), index, "the header"))
        entries = {}
        for key, value in table.items():
            if key.startswith(b"\0"):
                continue  # one slice of a variable whose own entry is refused
            try:
                name = key.decode()
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{index}: a name is not UTF-8: {error}") from error
            cursor = _Cursor(value, index, f"the entry of {name!r}")
            entries[name] = _read_entry(cursor, prefix, num_shards)
        _check_data_files(entries)
        return cls(prefix, entries)

    def __len__(self) -> int:
        """Number of tensors that can be read."""
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        """Full names of the tensors that can be read, sorted by their UTF-8 bytes."""
        return iter(self._entries)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor into memory of its own, and checks its bytes.

        Args:
            name: Full name, as in `shapes`.

        Returns:
            Array of `shapes[name]` and `dtypes[name]`, in the machine's byte order.

        Raises:
            CheckpointError: there is no such tensor, it is not of numbers, or it is damaged.
        """
        if name in self.unread:
            reason = f"{name!r} is of type {self.unread[name]}, which is not read"
            raise CheckpointError(f"{self.prefix}: {reason}")
        if (entry := self._entries.get(name)) is None:
            close = difflib.get_close_matches(name, self._entries, n=1)
            raise CheckpointError(f"{self.prefix}: no tensor {name!r}; the closest name is {close}")
        with entry.path.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        crc = _masked_crc(raw)
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


def _read_header(cursor: "_Cursor") -> int:
    """Checks the header and gives the number of data files."""
    if cursor.data.startswith(b"\n"):  # field 1 is a message in V1 and a number in V2
        raise cursor.error("is of a V1 checkpoint, expected V2: save it again with a newer saver")
    fields = cursor.read_fields({1: _VARINT, 2: _VARINT, 3: _BYTES})
    if endianness := _last(fields[2]):
        raise cursor.error(f"has byte order {endianness}, expected 0: only little-endian is read")
    versions = _Cursor(b"".join(fields[3]), cursor.path, cursor.what).read_fields({2: _VARINT})
    if (version := _last(versions[2])) > 1:
        raise cursor.error(f"needs a reader of version {version}, this one is of version 1")
    return _last(fields[1])


def _read_entry(cursor: "_Cursor", prefix: Path, num_shards: int) -> _Entry:
    wire_types = dict.fromkeys((1, 3, 4, 5), _VARINT) | {2: _BYTES, 6: _FIXED32, 7: _BYTES}
    fields = cursor.read_fields(wire_types)
    if fields[7]:
        num_slices = len(fields[7])
        raise cursor.error(f"has {num_slices} slices: partitioned variables are not read")
    number, shard, offset, size = (_last(fields[field]) for field in (1, 3, 4, 5))
    if not 0 <= shard < num_shards:
        raise cursor.error(f"is in data file {shard}, expected one of {num_shards}")
    shape = _read_shape(_Cursor(b"".join(fields[2]), cursor.path, cursor.what))
    if number in _DTYPES:
        dtype = _read_type(number)
        needed = math.prod(shape) * np.dtype(_DTYPES[number]).itemsize
        if needed != size:
            raise cursor.error(f"has {size} bytes, expected {needed} for {shape} of {dtype}")
        if math.prod(max(axis, 1) for axis in shape) * dtype.itemsize >= 2**63:
            raise cursor.error(f"has shape {shape}, expected less than 2**63 bytes")
    path = Path(f"{prefix}.data-{shard:05d}-of-{num_shards:05d}")
    return _Entry(number, shape, path, offset, size, _last(fields[6]))


def _read_shape(cursor: "_Cursor") -> tuple[int, ...]:
    fields = cursor.read_fields({2: _BYTES, 3: _VARINT})
    if _last(fields[3]) or len(fields[2]) > _MAX_AXES:
        rank = "unknown rank" if _last(fields[3]) else f"{len(fields[2])} axes"
        raise cursor.error(f"has a shape of {rank}, expected at most {_MAX_AXES} axes")
    axes = (_Cursor(axis, cursor.path, cursor.what) for axis in fields[2])
    shape = tuple(_last(axis.read_fields({1: _VARINT})[1]) for axis in axes)
    if min(shape, default=0) < 0:
        raise cursor.error(f"has shape {shape}, expected no negative length")
    return shape


def _last(values: list[int]) -> int:
    """A field's number: the last one given counts, and 0 is not written."""
    return values[-1] if values else 0


def _read_table(path: Path) -> dict[bytes, bytes]:
    """All of a sorted string table, in the order of its keys."""
    with path.open("rb") as file:
        data = file.read(_MAX_INDEX_BYTES + 1)
    if len(data) > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{path}: expected at most {_MAX_INDEX_BYTES} bytes, got more")
    if len(data) < _FOOTER_BYTES or not data.endswith(_MAGIC):
        wanted = f"{_FOOTER_BYTES} bytes or more that end with {_MAGIC!r}"
        got = f"{len(data)} bytes from {data[:8]!r} to {data[-8:]!r}"
        raise CheckpointError(
            f"{path}: no TensorFlow index, or cut off: expected {wanted}, got {got}"
        )
    footer = _Cursor(data[-_FOOTER_BYTES : -len(_MAGIC)], path, "the footer")
    for _ in range(2):  # offset and size of the block of filters, which checkpoints have none of
        footer.read_varint()
    table: dict[bytes, bytes] = {}
    last_key, names_bytes, blocks_end = None, 0, 0
    for _, value in _read_block(data, path, footer.read_varint(), footer.read_varint()):
        handle = _Cursor(value, path, "the place of a block")
        offset, size = handle.read_varint(), handle.read_varint()
        if offset < blocks_end:  # as the same block many times over would be
            raise handle.error(f"is byte {offset}, expected {blocks_end} or more")
        blocks_end = offset + size
        for key, value in _read_block(data, path, offset, size):
            if last_key is not None and key <= last_key:
                reason = f"key {key[:200]!r} comes after {last_key[:200]!r}"
                raise CheckpointError(f"{path}: {reason}, expected sorted keys, each once")
            names_bytes += len(key)  # keys share beginnings: few bytes can unpack to many
            if names_bytes > _MAX_INDEX_BYTES:
                raise CheckpointError(f"{path}: expected at most {_MAX_INDEX_BYTES} bytes of names")
            table[key] = value
            last_key = key
    return table


def _read_block(data: bytes, path: Path, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    end = offset + size
    # At the end stand places at which a search may start, and how many there are: 4 bytes each.
    num_restarts = int.from_bytes(data[max(offset, end - 4) : end], "little")
    entries = data[offset : max(offset, end - 4 * (num_restarts + 1))]
    cursor = _Cursor(entries, path, f"the block of {size} bytes at byte {offset}")
    if end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise cursor.error(f"ends outside the file of {len(data)} bytes")
    crc = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
    if (actual := _masked_crc(data[offset : end + 1])) != crc:
        raise cursor.error(f"is damaged: expected checksum {crc:#010x}, got {actual:#010x}")
    if compression := data[end]:
        kind = f"is compressed (type {compression}, expected 0)"
        raise cursor.error(f"{kind}: compressed tables, as of V1 checkpoints, are not read")
    if 4 * (num_restarts + 1) > size:
        raise cursor.error(f"is too small for the {num_restarts} restarts that it claims")
    key = b""
    while cursor.num_left:
        shared, own_size, value_size = (cursor.read_varint() for _ in range(3))
        if shared > len(key):
            raise cursor.error(f"has a key that shares {shared} bytes with one of {len(key)}")
        key = key[:shared] + cursor.take(own_size)
        yield key, cursor.take(value_size)


class _Cursor:
    """Bytes that are read from the front; whatever does not fit is a CheckpointError."""

    def __init__(self, data: bytes, path: Path, what: str) -> None:
        self.data = data
        self.path = path
        self.what = what
        self._position = 0

    @property
    def num_left(self) -> int:
        return len(self.data) - self._position

    def error(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.what} {reason}")

    def take(self, size: int) -> bytes:
        if size > self.num_left:
            raise self.error(f"ends early: expected {size} more bytes, got {self.num_left}")
        self._position += size
        return self.data[self._position - size : self._position]

    def read_varint(self) -> int:
        """An unsigned number of up to 64 bits, 7 in a byte, the lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80 and value < 2**64:
                return value
        raise self.error("has a number of more than 64 bits")

    def read_fields(self, wire_types: dict[int, int]) -> dict[int, list[Any]]:
        """The rest as a message: field → its values, signed numbers or bytes.

        Args:
            wire_types: Of the fields wanted; others are passed over.
        """
        values: dict[int, list[Any]] = {number: [] for number in wire_types}
        while self.num_left:
            number, wire_type = divmod(self.read_varint(), 8)
            value: int | bytes
            if wire_type == _VARINT:
                value = self.read_varint()
                value -= (value >> 63) << 64  # int32 and int64 are two's complements of 64 bits
            elif wire_type in (_FIXED32, _FIXED64):
                value = int.from_bytes(self.take(4 if wire_type == _FIXED32 else 8), "little")
            elif wire_type == _BYTES:
                value = self.take(self.read_varint())
            else:
                raise self.error(f"has wire type {wire_type}, expected 0, 1, 2 or 5")
            if number in wire_types:
                if (wanted := wire_types[number]) != wire_type:
                    raise self.error(f"has wire type {wire_type} in {number}, expected {wanted}")
                values[number].append(value)
        return values


def _masked_crc(data: bytes) -> int:
    """CRC32C as it is stored: turned by 15 bits and a constant added, modulo 2**32."""
    try:
        import google_crc32c
    except ImportError as error:
        need = "checking a TensorFlow checkpoint needs the package google-crc32c"
        raise UserError(f'{need}: pip install "vatt[convert]"') from error
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
