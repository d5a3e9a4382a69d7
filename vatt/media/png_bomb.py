"""Check for PNG files with huge compressed metadata, which FFmpeg decompresses on opening."""

import struct
import zlib
from typing import Any

# A colour profile has at most some MB. Zeros pack to a thousandth: 1 MB of file becomes 1 GB.
MAX_METADATA_BYTES = 1 << 24  # of all chunks together, unpacked
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\x8aMNG\r\n\x1a\n")  # those that FFmpeg's decoder takes
_PACKED = (b"iCCP", b"zTXt")  # a name, a zero, the method, zlib's stream; FFmpeg skips iTXt
_PIECE_BYTES = 1 << 16


def has_metadata_bomb(file: Any) -> bool:
    """Whether a file is a PNG whose metadata decompress to more than `MAX_METADATA_BYTES`.

    Args:
        file: Seekable binary file at its beginning; its position changes.
    """
    if file.read(8) not in _SIGNATURES:
        return False
    room = MAX_METADATA_BYTES
    while room >= 0 and len(head := file.read(8)) == 8:
        if head in _SIGNATURES:  # FFmpeg reads one picture after another
            continue
        length, kind = struct.unpack(">I4s", head)
        if kind not in _PACKED:
            file.seek(length + 4, 1)  # the content, and its check sum
            continue
        if length > room:
            return True
        content = file.read(length)
        file.seek(4, 1)
        room -= _unpacked_bytes(content.partition(b"\0")[2][1:], room)
    return room < 0


def _unpacked_bytes(packed: bytes, limit: int) -> int:
    """Size of a decompressed zlib stream, up to about the limit; damage ends it, as in FFmpeg."""
    unpack, size = zlib.decompressobj(), 0
    while packed and not unpack.eof and size <= limit:
        try:
            size += len(unpack.decompress(packed, _PIECE_BYTES))
        except zlib.error:
            break
        packed = unpack.unconsumed_tail
    return size
