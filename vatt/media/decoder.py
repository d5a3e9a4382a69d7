"""Decoders: preparation, size limits and the decoding of one packet."""

from typing import Any

import av.error
from av.video.stream import VideoStream

from vatt.media.opening import CONVERT, MAX_FRAME_PIXELS
from vatt.media.source import Damage
from vatt.media.streams import MediaPacket, MediaStream, tick_seconds

MAX_SIDE_PIXELS = 16_384
DECODING_ERRORS = (
    av.error.InvalidDataError,
    av.error.UnknownError,
    av.error.PatchWelcomeError,
    av.error.ArgumentError,
)


def codec_name(stream: MediaStream | None) -> str | None:
    """FFmpeg's name of the format; `unknown` if this build has no decoder for it."""
    if stream is None:
        return None
    decoder = stream.codec_context
    return decoder.codec.canonical_name if decoder is not None else "unknown"


def prepare_decoder(stream: MediaStream) -> Any:
    """Decoder of a stream, with one thread; data is loaded in parallel by processes instead.

    Raises:
        Damage: there is no decoder for the stream, or its pictures are too large.
    """
    decoder: Any = stream.codec_context
    if decoder is None:
        raise Damage(
            f"its {stream.type} is in a format that FFmpeg here does not decode: {CONVERT}"
        )
    if isinstance(stream, VideoStream):
        check_size(decoder.width, decoder.height)
    if not decoder.is_open:
        decoder.thread_type = "NONE"
        decoder.thread_count = 1
        # a picture may be larger than its container says, and is allocated before it is seen
        decoder.options = {**decoder.options, "max_pixels": str(MAX_FRAME_PIXELS)}
    return decoder


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


def decode_packet(stream: MediaStream, packet: MediaPacket | None) -> list[Any]:
    """Frames that a packet completes; None flushes the decoder.

    Raises:
        Damage: the packet or a frame of it is damaged, or there is no decoder.
    """
    decoder = prepare_decoder(stream)
    if packet is not None and packet.is_corrupt:
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
        if frame.is_corrupt:
            raise Damage(at_time(f"its {stream.type} is damaged", frame.pts, stream))
    return frames


def at_time(what: str, pts: int | None, stream: MediaStream) -> str:
    """Sentence about damage, with its time in seconds if that is known."""
    when = "" if pts is None else f" at {pts * tick_seconds(stream):.2f} s"
    return f"{what}{when}: copy or encode the file again, or leave out this part"
