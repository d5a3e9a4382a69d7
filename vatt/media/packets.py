"""Packets that a clip needs: seeking, reading without decoding, and choice of packets to decode."""

import math
from dataclasses import dataclass, field

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.stream import VideoStream

from vatt.media.avi_order import MAX_HELD_PICTURES, has_storage_order, is_border
from vatt.media.opening import ffmpeg_errors
from vatt.media.source import Damage
from vatt.media.streams import (
    BEFORE_START_SECONDS,
    MATROSKA,
    TIME_TOLERANCE_SECONDS,
    MediaPacket,
    MediaStream,
    check_ends,
    guesses_times,
    packets_of,
    seek,
    sound_roll_seconds,
    tick_seconds,
)

PRE_ROLL_SECONDS = 0.12  # before pictures
POST_ROLL_SECONDS = 0.05  # the resampler looks ahead
# Streams are interleaved: one that says nothing for so long while the other goes on has ended.
INTERLEAVE_SECONDS = 10.0
# MPEG program streams stamp only some pictures: after a seek the times are right from the second
# group of pictures on.
PROGRAM_STREAM_ROLL_SECONDS = 2.0
# Streams without whole key frames (intra refresh) are complete after about one such period.
CAREFUL_ROLL_SECONDS = 5.0
# Beyond that it is the file's start that decoding needs; a clip far from it would take too long.
LONGEST_ROLL_SECONDS = 120.0
HARMLESS_FAULT = "keyframes not correctly marked"  # reported of sound that a seek lands amid
JUMP_PACKETS = 3  # to leave out fewer before a key frame does not pay for restarting the decoder


@dataclass(frozen=True)
class Span:
    """Times of a clip in seconds, on the file's own clock.

    Args:
        first_seconds: Start of picture and sound.
        video_last_seconds: Time of the last frame.
        audio_end_seconds: End of the sound.
    """

    first_seconds: float
    video_last_seconds: float
    audio_end_seconds: float


@dataclass
class Packets:
    """Packets of one clip, in decoding order.

    Args:
        video: Packets from a key frame at or before the start of the clip.
        audio: Packets from the pre-roll on.
        video_ended: Whether the video stream ended within the clip.
        exhausted: Whether the file was read to its end.
        last_sound: Last sound packet that was read, in the clip or not.
        from_start: Whether reading began at the start of the file.
        stored: Whether the times of the video follow the order of storage.
    """

    video: list[MediaPacket] = field(default_factory=list)
    audio: list[MediaPacket] = field(default_factory=list)
    video_ended: bool = True
    exhausted: bool = False
    last_sound: MediaPacket | None = None
    from_start: bool = True
    stored: bool = False


def read_packets(
    container: InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    span: Span,
    *,
    careful_seconds: float = 0.0,
    moved: bool = False,
) -> Packets:
    """Reads the packets of a clip, from a key frame that the decoder can start at.

    The first attempt may land after the key frame that is needed, because a seek goes by decoding
    time, and leading pictures cannot be decoded from their key frame. The next attempt then seeks
    further back.

    Args:
        container: Open file.
        video: Video stream. None: no video is read.
        audio: Audio stream. None: no audio is read.
        span: Times of the clip.
        careful_seconds: Seconds to read before the clip. Above 0, packets before the last key
            frame are kept, too.
        moved: Whether packets were read before.

    Raises:
        Damage: the file is cut off before the clip ends, or is damaged between packets.
    """
    stream = video or audio
    assert stream is not None  # callers refuse files that have neither
    beginning = (stream.start_time or 0) * tick_seconds(stream)
    back = PRE_ROLL_SECONDS if audio is None else sound_roll_seconds(audio)
    if container.format.name == "mpeg":
        back = max(back, PROGRAM_STREAM_ROLL_SECONDS)
    careful = careful_seconds > 0
    back = max(back, careful_seconds)
    moved = moved or careful
    while True:
        target = span.first_seconds - back
        from_start = target <= beginning or guesses_times(container, audio or stream)
        if moved or not from_start:
            reached = seek(
                container, stream, target - (BEFORE_START_SECONDS if from_start else 0.0)
            )
            if not reached:  # AVI refuses a time before its first picture, RealMedia most times
                seek(container, stream, beginning)
            from_start = from_start or not reached
            moved = True
        with ffmpeg_errors() as faults:
            packets = _collect(container, video, audio, span, careful=careful)
        # In a damaged Matroska file, FFmpeg continues with the next part that it can read. VP9 is
        # then decoded from wrong reference pictures, and only the log says so.
        for _, part, text in faults:
            if part == container.format.name == MATROSKA and HARMLESS_FAULT not in text:
                raise Damage(f"is damaged ({text.strip()}): copy or encode the file again")
        packets.from_start = from_start
        if packets.exhausted:
            _check_complete(container, video, audio, packets, span)
        if from_start or _start_in_time(packets, video, audio, span.first_seconds):
            return packets
        back *= 5  # 0.12 s, 0.6 s, 3 s, 15 s, …


def first_packet(container: InputContainer, video: VideoStream) -> MediaPacket | None:
    """The first packet of a file's video: it may tell of the encoder what no later one does."""
    if not seek(container, video, -BEFORE_START_SECONDS):
        return None
    return next(packets_of(container, [video]), None)


def _start_in_time(
    packets: Packets, video: VideoStream | None, audio: AudioStream | None, first_seconds: float
) -> bool:
    """Whether both streams were met at a packet at or before the clip that decoding can begin at.

    Most sound can be entered at every packet; where it cannot (xHE-AAC, TAK) the key ones are told.
    """
    if audio is not None and packets.audio and not packets.audio[0].is_keyframe:
        return False
    if video is None:
        return True
    if not packets.video:
        return False
    first = packets.video[0]
    limit = (first_seconds + TIME_TOLERANCE_SECONDS) / tick_seconds(video)
    starts = is_border(first) if packets.stored else first.is_keyframe
    return starts and first.pts is not None and first.pts <= limit


def _collect(
    container: InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    span: Span,
    *,
    careful: bool,
) -> Packets:
    """Reads from the current position until both streams have what the clip needs."""
    packets = Packets(stored=video is not None and has_storage_order(container, video))
    video_index = -1 if video is None else video.index
    video_tick = 0.0 if video is None else tick_seconds(video)
    audio_tick = 0.0 if audio is None else tick_seconds(audio)
    video_done, audio_done = video is None, audio is None
    key_limit = span.first_seconds + TIME_TOLERANCE_SECONDS
    video_limit = span.video_last_seconds + TIME_TOLERANCE_SECONDS
    if packets.stored:
        video_limit += MAX_HELD_PICTURES * video_tick  # a tick of AVI is a picture
    audio_first = span.first_seconds - (sound_roll_seconds(audio) if audio is not None else 0.0)
    audio_limit = span.audio_end_seconds + POST_ROLL_SECONDS
    for packet in packets_of(container, [one for one in (video, audio) if one is not None]):
        pts = packet.pts
        if packet.stream_index == video_index:
            # dts rise and dts ≤ pts: after a late one all that follows is shown after the clip. The
            # pts of a packet without dts (Matroska, after a seek) says nothing about the next one.
            seconds = -math.inf if packet.dts is None else packet.dts * video_tick
            if seconds > video_limit and packets.video:
                video_done, packets.video_ended = True, False
                audio_done = audio_done or seconds > audio_limit + INTERLEAVE_SECONDS
            else:
                in_time = pts is not None and pts * video_tick <= key_limit
                # with care no key frame is trusted to be whole
                is_start = packet.is_keyframe and not careful
                if in_time and (is_border(packet) if packets.stored else is_start):
                    packets.video.clear()
                packets.video.append(packet)
        else:
            packets.last_sound = packet
            seconds = (pts if pts is not None else packet.dts or 0) * audio_tick
            if seconds >= audio_limit:
                audio_done = True
                video_done = video_done or seconds > video_limit + INTERLEAVE_SECONDS
            else:
                if seconds <= audio_first and packet.is_keyframe:
                    packets.audio.clear()
                packets.audio.append(packet)
        if video_done and audio_done:
            break
    else:
        packets.exhausted = True
        if packets.video and packets.video[-1].is_corrupt:
            packets.video.pop()  # a recording may break off amid a picture
    return packets


def _check_complete(
    container: InputContainer,
    video: VideoStream | None,
    audio: AudioStream | None,
    packets: Packets,
    span: Span,
) -> None:
    """Refuses a clip that is shorter than the file's header says, because the file was cut off."""
    ends: list[tuple[MediaStream, float, float]] = []
    if video is not None and packets.video_ended:
        end = _end_seconds(video, packets.video, span.first_seconds)
        ends.append((video, end, span.video_last_seconds))
    if audio is not None:
        last = [packets.last_sound] if packets.last_sound is not None else []
        end = _end_seconds(audio, packets.audio + last, span.first_seconds)
        ends.append((audio, end, span.audio_end_seconds))
    check_ends(container, ends)


def _end_seconds(stream: MediaStream, packets: list[MediaPacket], otherwise: float) -> float:
    """End of packets; one that does not say how long it is has the length of the one before it."""
    ends = sorted(
        (packet.pts, packet.duration or 0) for packet in packets if packet.pts is not None
    )
    if not ends:
        return otherwise
    last, duration = ends[-1]
    before = [pts for pts, _ in ends if pts < last]
    length = duration or (last - before[-1] if before else math.inf)
    return (last + length) * tick_seconds(stream)


def without_leading(packets: Packets) -> list[MediaPacket]:
    """Video packets without those shown before the first key frame, which need earlier packets."""
    video = packets.video
    if packets.from_start or not video or video[0].pts is None:
        return video
    first = video[0].pts
    return [packet for packet in video if packet.pts is None or packet.pts >= first]


def decoding_runs(video: list[MediaPacket], needed: set[int]) -> list[list[MediaPacket]]:
    """Packets to decode, in runs that each start at a key frame.

    Packets that no needed frame depends on are left out.

    Args:
        video: Packets in decoding order.
        needed: Timestamps of the needed frames.
    """
    groups: list[list[MediaPacket]] = []
    for packet in video:
        if packet.is_keyframe or not groups:
            groups.append([])
        groups[-1].append(packet)
    lengths: list[int] = []
    whole = False  # whether the next group needs this one to its end
    for group in reversed(groups):
        length = max((n for n, packet in enumerate(group, 1) if packet.pts in needed), default=0)
        keep_tail = bool(lengths) and lengths[-1] > 0 and len(group) - length < JUMP_PACKETS
        lengths.append(len(group) if whole or keep_tail else length)
        whole = any(packet.pts in needed for packet in _leading(group))
    runs: list[list[MediaPacket]] = []
    continues = False
    for group, length in zip(groups, reversed(lengths), strict=True):
        if length and continues:
            runs[-1].extend(group[:length])
        elif length:
            leading = {id(packet) for packet in _leading(group)} if runs else set()
            runs.append([packet for packet in group[:length] if id(packet) not in leading])
        continues = length == len(group)
    return runs


def _leading(group: list[MediaPacket]) -> list[MediaPacket]:
    """Packets shown before the key frame that they follow, which may need earlier packets."""
    key = group[0].pts
    if key is None:
        return []
    return [packet for packet in group[1:] if packet.pts is not None and packet.pts < key]
