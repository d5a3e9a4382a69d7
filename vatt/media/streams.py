"""Streams and packets as the container describes them: times, order, the file's duration."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from vatt.media.source import Damage

MediaStream = VideoStream | AudioStream
if TYPE_CHECKING:
    MediaPacket = Packet[Any]
else:
    MediaPacket = Packet  # generic in PyAV's type stubs only
MICROSECONDS = 1_000_000  # FFmpeg's unit for times of a whole file
# A frame that starts so much after the wanted time is still shown at it.
TIME_TOLERANCE_SECONDS = 1e-6
# Formats whose header tells how long each stream is, apart from the data.
MATROSKA = "matroska,webm"
INDEXED_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", MATROSKA})
# Formats whose header tells where the file ends on its own clock, not how long it is.
END_FORMATS = frozenset({MATROSKA, "ogg"})
LATE_SECONDS = 0.25  # a clock that starts later was not set to zero; codecs' delays are shorter
MISSING_SECONDS = 1.0  # a stream that ends so much before what its header says was cut off


def video_stream(container: InputContainer) -> VideoStream | None:
    """Video stream of a file; the cover picture of a sound file does not count."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        return None
    return stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """Audio stream of a file."""
    stream = container.streams.best("audio")
    return stream if isinstance(stream, AudioStream) else None


def is_still(container: InputContainer, video: VideoStream) -> bool:
    """Whether a file is a single picture without sound, whose times have no meaning."""
    name = container.format.name
    return (
        name == "image2"
        or name.endswith("_pipe")
        or (video.frames == 1 and len(container.streams) == 1)
    )


def tick_seconds(stream: MediaStream) -> float:
    """Unit of a stream's timestamps, in seconds."""
    return float(stream.time_base or 1)


def origin_seconds(container: InputContainer) -> float:
    """Start of the file on its own clock, in seconds."""
    return (container.start_time or 0) / MICROSECONDS


def header_duration_seconds(container: InputContainer) -> float | None:
    """Length of the file in seconds by its header; None if the header does not say.

    A Matroska file that starts late and was not written by FFmpeg may be longer; see
    `read_duration_seconds`.
    """
    if container.duration is None:
        return None
    duration, start = container.duration / MICROSECONDS, origin_seconds(container)
    counts_from_zero = container.format.name in END_FORMATS and 0 < start < duration
    return duration - start if counts_from_zero else duration


def read_duration_seconds(container: InputContainer, streams: Sequence[MediaStream]) -> float:
    """Length of the file in seconds; if no header says it, packets are read."""
    duration, start = header_duration_seconds(container), origin_seconds(container)
    if container.duration is None or duration is None:
        return max(0.0, max(_ends_seconds(container, streams), default=0.0) - start)
    written = container.duration / MICROSECONDS
    if container.format.name == MATROSKA and duration < written and start >= LATE_SECONDS:
        # FFmpeg counts from zero, mkvmerge and GStreamer from the first frame: then packets follow
        seek(container, streams[0], written)
        ends = _ends_seconds(container, streams)
        if any(end > written + LATE_SECONDS / 2 for end in ends):
            return written
    return duration


def _ends_seconds(container: InputContainer, streams: Sequence[MediaStream]) -> Iterator[float]:
    """End of each packet, from the current position on."""
    ticks = {stream.index: tick_seconds(stream) for stream in streams}
    for packet in packets_of(container, streams):
        if packet.pts is not None:
            yield (packet.pts + (packet.duration or 0)) * ticks[packet.stream_index]


def packets_of(container: InputContainer, streams: Sequence[MediaStream]) -> Iterator[MediaPacket]:
    """Packets of some streams, from the current position on."""
    try:
        yield from container.demux(list(streams))
    except IndexError:  # PyAV (18.1), at the end of a file amid which further streams appear
        return


def seek(container: InputContainer, stream: MediaStream, seconds: float) -> bool:
    """Seeks to a key frame before a time; False if the source can only be at its beginning."""
    try:
        container.seek(int(seconds // tick_seconds(stream)), stream=stream, backward=True)
    except av.error.FFmpegError:
        return False
    return True


def check_ends(container: InputContainer, ends: list[tuple[MediaStream, float, float]]) -> None:
    """Refuses a file that is cut off before the ends that its header states.

    Args:
        container: An open file.
        ends: For each stream, the end of its packets, and the end of the wanted part.

    Raises:
        Damage: wanted packets are missing.
    """
    if container.format.name not in INDEXED_FORMATS:
        return
    for stream, end, wanted in ends:
        promised = _promised_end_seconds(stream)
        if promised is not None and end + MISSING_SECONDS < promised and end < wanted:
            raise Damage(
                f"its {stream.type} breaks off at {end:.2f} s, though its header says "
                f"{promised:.2f} s: the file is incomplete; copy or download it again"
            )


def _promised_end_seconds(stream: MediaStream) -> float | None:
    """End of a stream by its header, on the file's clock; None if the header does not say."""
    if stream.duration:
        return ((stream.start_time or 0) + stream.duration) * tick_seconds(stream)
    tag = stream.metadata.get("DURATION", "")  # Matroska: hh:mm:ss.fraction, from zero on
    parts = tag.replace("\0", "").split(":")
    if len(parts) != 3 or not all(part.replace(".", "", 1).isdigit() for part in parts):
        return None
    return 3600 * int(float(parts[0])) + 60 * int(float(parts[1])) + float(parts[2])
