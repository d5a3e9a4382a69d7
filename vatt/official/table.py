"""TensorFlow's sorted string tables, the format of a checkpoint's index."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vatt.errors import CheckpointError, UserError
from vatt.system.extras import load_extra

_MAGIC = 0xDB4775248B80FB57.to_bytes(8, "little")
_FOOTER_BYTES = 48  # the places of two blocks, padded to 40 bytes, and the magic number
_TRAILER_BYTES = 5  # behind each block: its compression and its checksum
_MAX_INDEX_BYTES = 64 << 20  # 1,000 variables take about 0.2 MB; also bounds the unpacked names
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def read_table(path: Path) -> dict[bytes, bytes]:
    """Reads a sorted string table, in the order of its keys."""
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
    footer = Cursor(data[-_FOOTER_BYTES : -len(_MAGIC)], path, "the footer")
    for _ in range(2):  # offset and size of the block of filters, which checkpoints have none of
        footer.read_varint()
    table: dict[bytes, bytes] = {}
    last_key, names_bytes, blocks_end = None, 0, 0
    for _, value in _read_block(data, path, footer.read_varint(), footer.read_varint()):
        handle = Cursor(value, path, "the place of a block")
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
    cursor = Cursor(entries, path, f"the block of {size} bytes at byte {offset}")
    if end + _TRAILER_BYTES > len(data) - _FOOTER_BYTES:
        raise cursor.error(f"ends outside the file of {len(data)} bytes")
    crc = int.from_bytes(data[end + 1 : end + _TRAILER_BYTES], "little")
    if (actual := masked_crc(data[offset : end + 1])) != crc:
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


class Cursor:
    """Reader of bytes from the front; invalid data raise CheckpointError."""

    def __init__(self, data: bytes, path: Path, what: str) -> None:
        self.data = data
        self.path = path
        self.what = what
        self._position = 0

    @property
    def num_left(self) -> int:
        """Number of bytes not yet read."""
        return len(self.data) - self._position

    def error(self, reason: str) -> CheckpointError:
        """Error that names the file and this part of it."""
        return CheckpointError(f"{self.path}: {self.what} {reason}")

    def take(self, size: int) -> bytes:
        """Reads the next bytes.

        Raises:
            CheckpointError: fewer bytes are left.
        """
        if size > self.num_left:
            raise self.error(f"ends early: expected {size} more bytes, got {self.num_left}")
        self._position += size
        return self.data[self._position - size : self._position]

    def read_varint(self) -> int:
        """Reads an unsigned number of up to 64 bits: 7 bits per byte, lowest first."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80 and value < 2**64:
                return value
        raise self.error("has a number of more than 64 bits")

    def read_fields(self, wire_types: dict[int, int]) -> dict[int, list[Any]]:
        """Reads the rest as a message: values of each field, signed numbers or bytes.

        Args:
            wire_types: Wire types of the wanted fields; others are skipped.
        """
        values: dict[int, list[Any]] = {number: [] for number in wire_types}
        while self.num_left:
            number, wire_type = divmod(self.read_varint(), 8)
            value: int | bytes
            if wire_type == VARINT:
                value = self.read_varint()
                value -= (value >> 63) << 64  # int32 and int64 are two's complements of 64 bits
            elif wire_type in (FIXED32, FIXED64):
                value = int.from_bytes(self.take(4 if wire_type == FIXED32 else 8), "little")
            elif wire_type == BYTES:
                value = self.take(self.read_varint())
            else:
                raise self.error(f"has wire type {wire_type}, expected 0, 1, 2 or 5")
            if number in wire_types:
                if (wanted := wire_types[number]) != wire_type:
                    raise self.error(f"has wire type {wire_type} in {number}, expected {wanted}")
                values[number].append(value)
        return values


def masked_crc(data: bytes) -> int:
    """CRC32C as stored: rotated by 15 bits, plus a constant, modulo 2**32."""
    need = "checking a TensorFlow checkpoint needs the package google-crc32c"
    refusal = UserError(f'{need}: pip install "vatt[convert]"')
    crc: int = load_extra("google_crc32c", refusal).value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
