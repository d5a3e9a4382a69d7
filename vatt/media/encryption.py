"""Signs of encrypted media, which FFmpeg takes for damaged, or decodes to noise."""

import re
from typing import Any, BinaryIO

# ISO 14496-12: a protected track has a box `sinf` that begins with `frma`. Audible's has `adrm`.
_PROTECTED = re.compile(rb"sinf....frma|aavd.*adrm", re.DOTALL)
_PROTECTED_TAGS = frozenset({"drms", "drmi", "aavd"})  # that FFmpeg decodes as if they were clear
_HEAD_BYTES, _TAIL_BYTES = 1 << 20, 1 << 22  # where an mp4 file has its header
_SYNC = 0x47  # first byte of a packet of a transport stream (ISO 13818-1)
_PACKET_BYTES = (188, 192, 204)
_NUM_SYNCS = 8


def is_encrypted(packet: Any) -> bool:
    """Whether a packet, or its stream, says that it is encrypted."""
    stream = packet.stream
    if packet.has_sidedata("encryption_info") or "enc_key_id" in stream.metadata:  # CENC; WebM
        return True
    if stream.codec_context is None or not stream.container.format.name.startswith("mov,"):
        return False
    try:
        return stream.codec_context.codec_tag in _PROTECTED_TAGS
    except UnicodeDecodeError:  # PyAV takes a tag for ASCII
        return False


def has_protection(file: BinaryIO) -> bool:
    """Whether the bytes of a file that cannot be read tell that it is encrypted.

    Args:
        file: Seekable binary file; its position changes.
    """
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    if _is_scrambled(head):
        return True
    file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
    return any(_PROTECTED.search(part) is not None for part in (head, file.read(_TAIL_BYTES)))


def _is_scrambled(content: bytes) -> bool:
    """Whether most packets of a transport stream are marked as scrambled."""
    for size in _PACKET_BYTES:
        for first in range(size):
            if all(byte == _SYNC for byte in content[first::size][:_NUM_SYNCS]):
                flags = content[first + 3 :: size]  # 2 bits: scrambling; 2: whether it has content
                return sum(flag & 0xD0 > 0x50 for flag in flags) > len(flags) / 2
    return False
