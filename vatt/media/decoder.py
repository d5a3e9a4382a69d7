"""Decoders: preparation, size limits and the decoding of one packet."""

from typing import Any

import av.error
from av.video.stream import VideoStream

from vatt.media.opening import CONVERT, MAX_FRAME_PIXELS
from vatt.media.source import Damage
from vatt.media.streams import (
    GUESSING_FORMATS,
    MediaPacket,
    MediaStream,
    origin_seconds,
    tick_seconds,
)

CUT_SECONDS = 0.5  # a transport stream holds several frames in the packet that is cut
MAX_SIDE_PIXELS = 16_384
DECODING_ERRORS = (
    av.error.InvalidDataError,
    av.error.UnknownError,
    av.error.PatchWelcomeError,
    av.error.ArgumentError,
    av.error.UndefinedError,  # numbers of its own that a decoder lets out
)


def prepare_decoder(stream: MediaStream) -> Any:
    """Decoder of a stream, with one thread; data is loaded in parallel by processes instead.

    Raises:
        Damage: there is no decoder for the stream, or its pictures are too large.
    """
    decoder: Any = stream.codec_context
    if decoder is None:
        raise undecodable(stream)
    if isinstance(stream, VideoStream):
        check_size(decoder.width, decoder.height)
    if not decoder.is_open:
        decoder.thread_type = "NONE"
        decoder.thread_count = 1
        # a picture may be larger than its container says, and is allocated before it is seen
        decoder.options = {**decoder.options, "max_pixels": str(MAX_FRAME_PIXELS)}
    return decoder


def undecodable(stream: MediaStream) -> Damage:
    """The fault of a stream that this build of FFmpeg has no decoder for."""
    return Damage(f"its {stream.type} is in a format that FFmpeg here does not decode: {CONVERT}")


def check_size(width: int, height: int) -> None:
    """Refuses pictures that are too large to decode.

    Raises:
        Damage: a side or the area is above its limit.
    """
    if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_FRAME_PIXELS:
        raise Damage(
            f"claims a picture of {width}×{height} pixels; at most {MAX_SIDE_PIXELS} a side and "
            f"{MAX_FRAME_PIXELS} in all are read: scale it down"
        )


def check_known_size(width: int, height: int) -> None:
    """Refuses pictures if FFmpeg finds no size in their header (width and height are 0)."""
    if not width or not height:
        raise Damage(
            f"its picture cannot be decoded: it is damaged, larger than {MAX_FRAME_PIXELS} pixels, "
            f"or of a kind that FFmpeg here does not know; {CONVERT}"
        )


def decode_packet(
    stream: MediaStream, packet: MediaPacket | None, *, whole: bool = True
) -> list[Any]:
    """Frames that a packet completes; None flushes the decoder.

    Args:
        stream: Stream of the packet.
        packet: A packet.
        whole: Whether the packet must be: the last one of a recording may be cut.

    Raises:
        Damage: the packet or a frame of it is damaged, or there is no decoder.
    """
    decoder = prepare_decoder(stream)
    if packet is not None and packet.is_corrupt and whole:
        raise Damage(at_time(f"its {stream.type} is incomplete", packet.pts, stream))
    try:
        frames: list[Any] = decoder.decode(packet)
    except av.error.EOFError:
        return []
    except DECODING_ERRORS as fault:
        if isinstance(stream, VideoStream):
            check_known_size(decoder.width, decoder.height)
        when = packet.pts if packet is not None else None
        raise Damage(at_time(f"its {stream.type} is damaged", when, stream)) from fault
    for frame in frames:
        if packet is None:  # PyAV knows the unit of times from a packet only
            frame.time_base = stream.time_base
        if frame.is_corrupt:
            raise Damage(at_time(f"its {stream.type} is damaged", frame.pts, stream))
    return frames


class Tags:
    """Tags amid MP3 and AAC files that were joined: FFmpeg takes them for packets of sound."""

    def __init__(self) -> None:
        self._end = 0  # byte after the last one

    def covers(self, packet: MediaPacket | None) -> bool:
        """Whether a packet that cannot be decoded is one, or part of one."""
        if packet is None or packet.stream.container.format.name not in GUESSING_FORMATS:
            return False
        first, head = packet.pos or 0, bytes(packet)[:10]
        if head.startswith(b"ID3") and len(head) == 10:  # its size in four times 7 bits
            size = sum(byte << 7 * place for place, byte in enumerate(reversed(head[6:])))
            self._end = first + len(head) + size
        return head.startswith((b"ID3", b"TAG", b"APETAGEX")) or first < self._end


class StreamDecoder:
    """Decodes a whole stream, packet by packet.

    Faults at its two ends are left out: a recording may begin and break off amid a packet.
    """

    def __init__(self, stream: MediaStream) -> None:
        self._stream = stream
        self._fault: Damage | None = None
        self._fault_seconds = 0.0
        self._has_begun = isinstance(stream, VideoStream)
        self._tags = Tags()

    def restart(self) -> None:
        """Leaves out faults at the end of what came before: recordings were joined here."""
        self._fault = None
        self._has_begun = isinstance(self._stream, VideoStream)

    def take(self, packet: MediaPacket | None) -> list[Any]:
        """The frames that a packet completes; None gives what is held back.

        Raises:
            Damage: the packet, or one before it that was not at the end.
        """
        seconds = None
        if packet is not None and packet.pts is not None:
            seconds = packet.pts * tick_seconds(self._stream)
        late = seconds is not None and seconds - self._fault_seconds > CUT_SECONDS
        if self._fault is not None and late:
            raise self._fault
        try:
            frames = decode_packet(self._stream, packet)
        except Damage as damage:
            if seconds is None:
                raise
            if self._fault is None and self._has_begun and not self._tags.covers(packet):
                self._fault, self._fault_seconds = damage, seconds
            return []
        self._has_begun = self._has_begun or bool(frames)
        return frames


def at_time(what: str, pts: int | None, stream: MediaStream) -> str:
    """Sentence about damage, with its seconds from the file's start where they are known."""
    seconds = (pts or 0) * tick_seconds(stream) - origin_seconds(stream.container)
    when = "" if pts is None else f" at {seconds:.2f} s"
    return f"{what}{when}: copy or encode the file again, or leave out this part"
