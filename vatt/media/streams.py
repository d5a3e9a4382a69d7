"""Streams and packets as the container describes them: times, order, the file's duration."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import av.error
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.stream import VideoStream

from vatt.media.encryption import is_encrypted
from vatt.media.opening import ENCRYPTED
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
# Formats without a header for the whole file: FFmpeg divides the size by the first bit rate. An
# MP3 may have a header; it, too, is wrong where files were joined or cut.
GUESSING_FORMATS = frozenset(
    (
        *("aac", "ac3", "ac4", "adx", "amr", "amrnb", "amrwb", "aptx", "aptx_hd", "codec2raw"),
        *("h261", "h263", "h264", "hevc", "m4v", "mpegvideo", "obu", "vc1", "dirac", "mjpeg"),
        *("dfpwm", "dts", "dtshd", "eac3", "g722", "g723_1", "g728", "g729", "gsm", "loas", "mlp"),
        *("mp3", "sbc", "truehd"),
    )
)
BYTE_FORMATS = frozenset({"wav", "w64", "aiff", "au"})  # in which FFmpeg seeks to a byte
WITHOUT_TIMES = (
    "has no times, as raw streams have none: put it into a container, for example with "
    "ffmpeg -i FILE NEW.mp4"
)
UNKNOWN = "unknown"  # the codec of a stream without decoder
# A seek goes by decoding time, which may lie so much before the file's start.
BEFORE_START_SECONDS = 3600.0
# Codecs that need little of what came before to give their sound: AAC about 0.1 s. Others look back
# further: MP3 up to 511 bytes, which are 0.7 s at 8 kb/s; Opus and speech codecs predict from what
# they decoded (RFC 7845 asks for at least 80 ms; tonal sound takes longer).
SHORT_ROLL_CODECS = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp2", "vorbis"})
SHORT_ROLL_SECONDS, LONG_ROLL_SECONDS, ENDLESS_ROLL_SECONDS = 0.12, 1.0, 1e6
ENDLESS_CODECS = frozenset({"adpcm_yamaha"})  # whose packets all build on the first
OPUS_RATE = 48_000
LATE_SECONDS = 0.25  # a clock that starts later was not set to zero; codecs' delays are shorter
MISSING_SECONDS = 1.0  # a stream that ends so much before what its header says was cut off
# Formats that can be joined end to end, or recorded amid a broadcast; their clock then starts over,
# or leaps. By `LEAP_SECONDS` FFmpeg's program, too, tells a leap from a pause.
JOINED_FORMATS = frozenset({"mpegts", "mpeg", "ogg", "flv", "live_flv", "flac"})
BACK_SECONDS, LEAP_SECONDS = 0.5, 10.0
ROUNDED_BYTES = 16  # FFmpeg rounds a length to 1 µs


def video_stream(container: InputContainer) -> VideoStream | None:
    """Video stream of a file; the cover picture of a sound file does not count."""
    stream = _best(container, "video", container.streams.video)
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        return None
    return stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """Audio stream of a file."""
    stream = _best(container, "audio", container.streams.audio)
    return stream if isinstance(stream, AudioStream) else None


def _best(
    container: InputContainer, kind: Literal["video", "audio"], streams: Sequence[MediaStream]
) -> Stream | None:
    """FFmpeg's choice if it has a decoder for it; else the first stream that it has one for.

    A phone's spatial sound (APAC), for example, stands beside the same sound as AAC.
    """
    best = container.streams.best(kind)
    readable = [stream for stream in streams if codec_name(stream) != UNKNOWN]
    return best if best in readable or not readable else readable[0]


def is_still(container: InputContainer, video: VideoStream) -> bool:
    """Whether a file is a single picture without sound, whose times have no meaning.

    An mp4 header that tells of one picture may be that of the first fragment: packets are counted.
    """
    name = container.format.name
    if name == "image2" or name.endswith("_pipe"):
        return True
    if video.frames != 1 or len(container.streams) != 1:
        return False
    if not name.startswith("mov,"):
        return True
    num_packets = sum(1 for _ in itertools.islice(packets_of(container, [video]), 2))
    seek(container, video, origin_seconds(container) - BEFORE_START_SECONDS)
    return num_packets == 1


def tick_seconds(stream: MediaStream) -> float:
    """Unit of a stream's timestamps, in seconds."""
    return float(stream.time_base or 1)


def origin_seconds(container: Any) -> float:
    """Start of the file on its own clock, in seconds."""
    return (container.start_time or 0) / MICROSECONDS


def header_duration_seconds(container: InputContainer) -> float | None:
    """Length of the file in seconds by its header; None if the header does not say.

    A Matroska file that starts late and was not written by FFmpeg may be longer; see
    `read_duration_seconds`.
    """
    if container.duration is None or container.format.name in GUESSING_FORMATS:
        return None
    duration, start = container.duration / MICROSECONDS, origin_seconds(container)
    counts_from_zero = container.format.name in END_FORMATS and 0 < start < duration
    return duration - start if counts_from_zero else duration


def mp3_promise_seconds(
    container: InputContainer, audio: AudioStream | None, first_byte: int
) -> float | None:
    """Length of an MP3 in seconds by its header (Xing, Info); None if it has none.

    Without one, FFmpeg makes up a length from the bytes that there are.

    Args:
        container: Open file.
        audio: Its sound.
        first_byte: Position of the first packet.
    """
    if container.format.name != "mp3" or audio is None or container.duration is None:
        return None
    seconds = container.duration / MICROSECONDS
    num_bytes = seconds * (audio.bit_rate or 0) / 8
    return seconds if abs(num_bytes - (container.size - first_byte)) > ROUNDED_BYTES else None


def read_duration_seconds(
    container: InputContainer, streams: Sequence[MediaStream], *, counts: bool = False
) -> float:
    """Length of the file in seconds; if no header says it, or `counts`, packets are read."""
    duration, start = header_duration_seconds(container), origin_seconds(container)
    if container.duration is None or duration is None or counts:
        end = max(_ends_seconds(container, streams), default=None)
        if end is None:
            raise Damage(WITHOUT_TIMES)
        return max(0.0, end - start)
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


def packets_of(
    container: InputContainer,
    streams: Sequence[MediaStream],
    *,
    on_jump: Callable[[], None] | None = None,
) -> Iterator[MediaPacket]:
    """Packets of some streams, from the current position on.

    A format without an index ends where FFmpeg finds no further frame, and calls that an error.

    Args:
        container: Open file.
        streams: Streams of the packets.
        on_jump: Function to call where the file's clock starts over; times then go on, as in
            FFmpeg's program. None: such a file is refused.

    Raises:
        Damage: a stream is encrypted, or the clock starts over.
    """
    packets = _readable(packet for packet in container.demux(list(streams)) if packet.size)
    is_joined = container.format.name in JOINED_FORMATS
    try:
        yield from _steady(packets, on_jump) if is_joined else packets
    except av.error.InvalidDataError:
        if container.format.name not in GUESSING_FORMATS:
            raise
    except IndexError:
        return  # PyAV (18.1) at the end of a file amid which further streams appear


def _readable(packets: Iterable[MediaPacket]) -> Iterator[MediaPacket]:
    """Packets of streams whose first one is not encrypted."""
    seen: set[int] = set()
    for packet in packets:
        if packet.stream_index not in seen:
            seen.add(packet.stream_index)
            if is_encrypted(packet):
                raise Damage(f"its {packet.stream.type} {ENCRYPTED}")
        yield packet


def _steady(
    packets: Iterable[MediaPacket], on_jump: Callable[[], None] | None
) -> Iterator[MediaPacket]:
    """Packets whose clock does not jump; decoding times tell, because they only rise.

    Around a place where files were joined, packets of one stream may come later than others.
    """
    next_seconds: dict[int, float] = {}  # by stream, on the new clock
    shifts: dict[int, float] = {}  # by stream, from the file's clock to the new one
    last_shift, reached_seconds = 0.0, math.inf
    for packet in packets:
        index, tick = packet.stream_index, float(packet.time_base)
        if packet.dts is not None:
            read_seconds = packet.dts * tick
            seconds = read_seconds + shifts.setdefault(index, last_shift)
            expected = next_seconds.get(index, seconds)
            if not expected - BACK_SECONDS <= seconds <= reached_seconds + LEAP_SECONDS:
                if on_jump is None:
                    raise _jump(packet, expected)
                on_jump()
                if abs(read_seconds + last_shift - expected) > BACK_SECONDS:  # the first to jump
                    last_shift = expected - read_seconds
                shifts[index] = last_shift
                seconds = read_seconds + last_shift
            next_seconds[index] = seconds + (packet.duration or 0) * tick
            reached_seconds = max(next_seconds.values())
        if shift := round(shifts.get(index, 0.0) / tick):
            packet.dts = None if packet.dts is None else packet.dts + shift
            packet.pts = None if packet.pts is None else packet.pts + shift
        yield packet


def _jump(packet: MediaPacket, after_seconds: float) -> Damage:
    after = after_seconds - origin_seconds(packet.stream.container)
    return Damage(
        f"its clock starts over or leaps after {after:.2f} s, as in files that were joined: use "
        "its parts, or write it anew, for example with ffmpeg -i FILE NEW.mp4"
    )


def guesses_times(container: InputContainer, stream: MediaStream) -> bool:
    """Whether times after a seek are wrong, and files are read from their start, undecoded.

    They come from a rounded bit rate (ADPCM in WAV, for example), from the end of a page (FLAC in
    Ogg), or from a delay of pictures that is guessed anew (H.264 in ASF).
    """
    name = codec_name(stream) or ""
    if container.format.name == "asf":
        return any(codec_name(one) in {"h264", "hevc"} for one in container.streams.video)
    if container.format.name == "ogg":
        return name == "flac"
    return container.format.name in BYTE_FORMATS and not name.startswith("pcm_")


def codec_name(stream: MediaStream | None) -> str | None:
    """FFmpeg's name of the format; `unknown` where this build has no decoder for it."""
    if stream is None:
        return None
    decoder = stream.codec_context
    return decoder.codec.canonical_name if decoder is not None else UNKNOWN


def seek(container: InputContainer, stream: MediaStream, seconds: float) -> bool:
    """Seeks to a key frame before a time; False if the source can only be at its beginning."""
    # FFmpeg refuses some seeks by the video of a short Matroska file, and does them by its sound
    others = container.streams.audio if container.format.name == MATROSKA else ()
    for one in (stream, *others):
        try:
            container.seek(int(seconds // tick_seconds(one)), stream=one, backward=True)
        except av.error.FFmpegError:
            continue
        return True
    return False


def sound_roll_seconds(audio: AudioStream) -> float:
    """Lead of decoding before a clip's sound, in seconds, in which the decoder settles."""
    name = codec_name(audio) or ""
    if name.startswith("pcm_") or name in SHORT_ROLL_CODECS:
        return SHORT_ROLL_SECONDS
    if name in ENDLESS_CODECS:
        return ENDLESS_ROLL_SECONDS
    # FFmpeg drops the pre-skip (OpusHead, bytes 10 and 11) wherever a decoder begins
    head = audio.codec_context.extradata if name == "opus" else None
    pre_skip = int.from_bytes(head[10:12], "little") if head else 0
    return LONG_ROLL_SECONDS + pre_skip / OPUS_RATE


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
            start = origin_seconds(container)
            raise Damage(
                f"its {stream.type} breaks off at {end - start:.2f} s, though its header says "
                f"{promised - start:.2f} s: the file is incomplete; copy or download it again"
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
