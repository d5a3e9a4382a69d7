"""Times of AVI pictures, which are numbered in the order of storage, not of display.

For most codecs FFmpeg sorts the times; for H.264 and HEVC it cannot. The decoder gives pictures in
display order, so each gets the smallest time that is left. This is correct from a picture on that
no other picture is moved across: an IDR picture, or the first one of the file.
"""

import heapq
import re
from typing import Any

from av.container import InputContainer
from av.video.stream import VideoStream

# A decoder holds back at most so many pictures to put them in order (H.264, A.3.1: 16 frames).
MAX_HELD_PICTURES = 16
_IDR = re.compile(rb"\x00\x00\x01[\x25\x45\x65]")  # a NAL unit of type 5


def has_storage_order(container: InputContainer, video: VideoStream) -> bool:
    """Whether packet times follow the order of storage, although pictures are shown in another."""
    decoder = video.codec_context
    return (
        container.format.name == "avi"
        and decoder is not None
        and decoder.codec.canonical_name in ("h264", "hevc")
        and decoder.has_b_frames
    )


def is_border(packet: Any) -> bool:
    """Whether a packet separates earlier from later pictures, in storage and in display order."""
    return packet.is_keyframe and _IDR.search(bytes(packet)) is not None


class StoredTimes:
    """Assigns the times of packets, in order, to the pictures that a decoder makes from them."""

    def __init__(self) -> None:
        self._times: list[int] = []

    def give(self, packet: Any, frames: list[Any]) -> None:
        """Sets the times of the frames decoded from a packet; None is the end."""
        if packet is not None and packet.pts is not None:
            heapq.heappush(self._times, packet.pts)
        for frame in frames:
            if self._times:
                frame.pts = heapq.heappop(self._times)
