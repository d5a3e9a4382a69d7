"""Clips of picture and sound from one start, and the contents of media files.

Times count from the file's start. Past the end, the last frame repeats and sound is zero; the
coverages say which share of the clip the file covers.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import av.error
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from vatt.config.geometry import AudioGeometry, VideoGeometry
from vatt.errors import UserError
from vatt.media.decoder import check_known_size, prepare_decoder, undecodable
from vatt.media.opening import open_media
from vatt.media.packets import (
    CAREFUL_ROLL_SECONDS,
    LONGEST_ROLL_SECONDS,
    Packets,
    Span,
    first_packet,
    read_packets,
)
from vatt.media.pictures import (
    PictureSize,
    SizeRule,
    decode_frames,
    display_matrix,
    own_size,
    swaps_sides,
)
from vatt.media.sound import decode_waveform
from vatt.media.source import Damage, MediaSource
from vatt.media.streams import (
    INDEXED_FORMATS,
    JOINED_FORMATS,
    UNKNOWN,
    MediaStream,
    audio_stream,
    codec_name,
    header_duration_seconds,
    is_still,
    origin_seconds,
    packets_of,
    read_duration_seconds,
    video_stream,
)


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """Contents of a media file.

    Args:
        duration_seconds: Length of the file; 0 for a still image.
        width: Width of the picture as displayed, in pixels.
        height: Height of the picture as displayed, in pixels.
        frame_rate: Mean frames per second.
        sample_rate: Hz.
        num_channels: Number of channels: 1 for mono, 2 for stereo, 6 for 5.1.
        video_codec: FFmpeg's name of the codec, such as `h264`.
        audio_codec: FFmpeg's name of the codec, such as `aac`.
    """

    duration_seconds: float
    width: int | None = None
    height: int | None = None
    frame_rate: float | None = None
    sample_rate: int | None = None
    num_channels: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None

    @property
    def has_video(self) -> bool:
        """Whether there is a picture."""
        return self.video_codec is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self.audio_codec is not None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Picture and sound from one start.

    Args:
        video: uint8 `[T, H, W, C]`; None if not requested or not in the file.
        audio: float32 `[S]`, mono, in about [-1, 1]; None if not requested or not in the file.
        video_coverage: Share of the frames, in [0, 1], that the file covers.
        audio_coverage: Share of the samples, in [0, 1], that come from the file; the rest is zero.
        start_seconds: From the file's start.
    """

    video: Tensor | None
    audio: Tensor | None
    video_coverage: float
    audio_coverage: float
    start_seconds: float

    def __post_init__(self) -> None:
        """Refuses arrays of another kind, and coverages that are no shares."""
        video, audio = self.video, self.audio
        if video is not None and (video.dtype != torch.uint8 or video.ndim != 4):
            raise ValueError(f"video must be uint8 [T, H, W, C], got {video.dtype} {video.shape}")
        if audio is not None and (audio.dtype != torch.float32 or audio.ndim != 1):
            raise ValueError(f"audio must be float32 [S], got {audio.dtype} {audio.shape}")
        if not (0 <= self.video_coverage <= 1 and 0 <= self.audio_coverage <= 1):
            raise ValueError(f"coverages must be from 0 to 1, got {self}")

    def coverage(self, modality: str) -> float:
        """Share of `video` or `audio` that the file covers, in [0, 1]; 0 without that modality."""
        if getattr(self, modality) is None:
            return 0.0
        return self.video_coverage if modality == "video" else self.audio_coverage

    def __getstate__(self) -> dict[str, Any]:
        """Tensors as numpy arrays: torch would send shared memory between processes."""
        return {k: v.numpy() if isinstance(v, Tensor) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Tensors again, past `frozen`."""
        for name, value in state.items():
            vars(self)[name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else value


@dataclass(frozen=True)
class FrameRequest:
    """Number, rate (frames/s) and size of frames to read; size is the shorter side or a rule."""

    num_frames: int
    frame_rate: float
    size: PictureSize

    def __post_init__(self) -> None:
        """Refuses clips that cannot exist."""
        too_small = isinstance(self.size, int) and self.size < 1
        if self.num_frames < 1 or not self.frame_rate > 0 or too_small:
            raise UserError(
                f"num_frames and short_side must be at least 1 and frame_rate positive, got {self}"
            )


@dataclass(frozen=True)
class SampleRequest:
    """Length and rate of a mono waveform to read.

    Args:
        num_samples: Samples of the waveform, `S`.
        sample_rate: Hz.
    """

    num_samples: int
    sample_rate: int

    def __post_init__(self) -> None:
        """Refuses waveforms that cannot exist."""
        if self.num_samples < 1 or self.sample_rate < 1:
            raise UserError(f"num_samples and sample_rate must be at least 1, got {self}")


def probe(source: MediaSource, *, quick: bool = False) -> MediaInfo:
    """Reads the contents of a media file.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        quick: Whether to trust a header. Else files of formats that are often joined end to end
            (MPEG, Ogg, FLV) are read to their end, without decoding.

    Raises:
        MediaError: the file is unreadable or encrypted, has neither picture nor sound, or its clock
            starts over, so that no clip of it can be found.
    """
    with open_media(source) as container:
        video, audio = video_stream(container), audio_stream(container)
        if video is None and audio is None:
            raise Damage("has no picture or sound: give a video, sound or image file")
        streams = [stream for stream in (video, audio) if stream is not None]
        if all(codec_name(stream) == UNKNOWN for stream in streams):
            raise undecodable(streams[0])
        still = video is not None and is_still(container, video)
        counts = not quick and container.format.name in JOINED_FORMATS
        width, height = None, None
        if video is not None and codec_name(video) != UNKNOWN:
            width, height = _displayed_size(container, video)
        if audio is not None and container.format.name in INDEXED_FORMATS:
            next(packets_of(container, [audio]), None)  # refuses encrypted sound
        rate = video.average_rate if video is not None else None
        return MediaInfo(
            duration_seconds=(
                0.0 if still else read_duration_seconds(container, streams, counts=counts)
            ),
            width=width,
            height=height,
            frame_rate=float(rate) if rate else None,
            sample_rate=getattr(audio, "sample_rate", None),  # an unknown codec has none
            num_channels=getattr(audio, "channels", None),
            video_codec=codec_name(video),
            audio_codec=codec_name(audio),
        )


def _displayed_size(container: InputContainer, video: VideoStream) -> tuple[int, int]:
    """Width and height as displayed; the rotation is known only from the first frame."""
    decoder = prepare_decoder(video)
    matrix, width, height = None, decoder.width, decoder.height
    for packet in itertools.chain(packets_of(container, [video]), [None]):
        try:
            frame = next(iter(decoder.decode(packet)), None)
        except av.error.FFmpegError:
            break  # damage at the start does not keep the rest of a file from being used
        if frame is not None:
            matrix, width, height = display_matrix(frame, video), frame.width, frame.height
            break
    check_known_size(width, height)
    width = round(width * float(video.sample_aspect_ratio or 1))
    return (height, width) if swaps_sides(matrix) else (width, height)


def read_clip(
    source: MediaSource,
    *,
    start_seconds: float,
    video: VideoGeometry | None,
    audio: AudioGeometry | None,
    short_side: int | None = None,
    size_rule: SizeRule | None = None,
) -> Clip:
    """Reads picture and sound from one start.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        start_seconds: From the file's start.
        video: Number of frames, frame rate and size. None: no picture is read.
        audio: Number of samples and their rate. None: no sound is read.
        short_side: Length of the frames' shorter side in pixels; the aspect is kept. None:
            `video.image_size`, or the file's own size if that is None.
        size_rule: Instead of `short_side`: maps the displayed width and height to those of the
            frames.

    Raises:
        MediaError: the file is unreadable, damaged at these times, or ends before the start.
    """
    frames = samples = None
    if video is not None:
        size = size_rule or short_side or video.image_size or own_size
        frames = FrameRequest(video.num_frames, video.frame_rate, size)
    if audio is not None:
        samples = SampleRequest(audio.num_samples, audio.sample_rate)
    return _read(source, start_seconds, frames, samples)


def read_frames(
    source: MediaSource,
    *,
    start_seconds: float,
    num_frames: int,
    frame_rate: float,
    short_side: int | None = None,
    size_rule: SizeRule | None = None,
) -> tuple[Tensor, float]:
    """Reads the frames of one clip.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        start_seconds: Start of the clip, from the start of the file.
        num_frames: Number of frames, `T`.
        frame_rate: Frames per second of the result.
        short_side: Length of the frames' shorter side in pixels; the aspect is kept.
        size_rule: Instead of `short_side`: maps the displayed width and height to those of the
            frames.

    Returns:
        Frames uint8 `[T, H, W, C]`, and the share of them, in [0, 1], that the file covers; the
        rest repeats the last frame.

    Raises:
        MediaError: the file is unreadable, damaged at these times, ends before the start, or has no
            picture.
    """
    size = short_side if size_rule is None else size_rule
    if size is None:
        raise UserError("read_frames needs a size: give short_side or size_rule")
    clip = _read(source, start_seconds, FrameRequest(num_frames, frame_rate, size), None)
    assert clip.video is not None  # _read refuses files that have nothing of what was asked for
    return clip.video, clip.video_coverage


def read_waveform(
    source: MediaSource, *, start_seconds: float, num_samples: int, sample_rate: int
) -> tuple[Tensor, float]:
    """Reads mono sound from a start.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        start_seconds: From the file's start.
        num_samples: Number of samples, `S`.
        sample_rate: Hz; the sound is resampled to this rate.

    Returns:
        float32 `[S]` in about [-1, 1], and the share of samples, in [0, 1], that come from the
        file; the rest is zero.

    Raises:
        MediaError: the file is unreadable, damaged at these times, ends before the start, or has no
            sound.
    """
    clip = _read(source, start_seconds, None, SampleRequest(num_samples, sample_rate))
    assert clip.audio is not None
    return clip.audio, clip.audio_coverage


def _read(
    source: MediaSource,
    start_seconds: float,
    frames: FrameRequest | None,
    samples: SampleRequest | None,
) -> Clip:
    if frames is None and samples is None:
        raise UserError("a clip needs video or audio: give at least one of them")
    if not 0 <= start_seconds < float("inf"):
        raise UserError(f"start_seconds must be at least 0 and finite, got {start_seconds}")
    with open_media(source) as container:
        return _read_open(container, start_seconds, frames, samples)


def _read_open(
    container: InputContainer,
    start_seconds: float,
    frames: FrameRequest | None,
    samples: SampleRequest | None,
) -> Clip:
    video = video_stream(container) if frames is not None else None
    audio = audio_stream(container) if samples is not None else None
    if video is None and audio is None:
        what = "picture" if samples is None else "sound" if frames is None else "picture or sound"
        raise Damage(f"has no {what}")
    still = video is not None and is_still(container, video)
    streams = [stream for stream in (video, audio) if stream is not None]
    moved = not still and _check_start(container, streams, start_seconds)
    first = origin_seconds(container) + (0.0 if still else start_seconds)
    wanted = [first]
    if frames is not None:
        wanted = [first + place / frames.frame_rate for place in range(frames.num_frames)]
    sound_seconds = samples.num_samples / samples.sample_rate if samples is not None else 0.0
    span = Span(first, wanted[-1], first + sound_seconds)
    packets = read_packets(container, video, audio, span, moved=moved)
    pictures = waveform = None
    video_coverage = audio_coverage = 0.0
    if audio is not None and samples is not None:
        array, audio_coverage = decode_waveform(
            audio, packets, first, samples.num_samples, samples.sample_rate
        )
        waveform = torch.from_numpy(array)
    if video is not None and frames is not None:
        array, video_coverage = _decode_pictures(
            container, video, packets, span, wanted, frames.size
        )
        pictures = torch.from_numpy(array)
        video_coverage = 1.0 if still else video_coverage
    is_empty = not still and not video_coverage and not audio_coverage
    is_alone = len(container.streams) == 1  # else another stream may go on
    guessed = header_duration_seconds(container) is None
    if is_empty and (guessed or (is_alone and packets.exhausted)):
        raise Damage(f"ends before {start_seconds:.2f} s: choose an earlier start")
    return Clip(
        video=pictures,
        audio=waveform,
        video_coverage=video_coverage,
        audio_coverage=audio_coverage,
        start_seconds=start_seconds,
    )


def _decode_pictures(
    container: InputContainer,
    video: VideoStream,
    packets: Packets,
    span: Span,
    wanted: list[float],
    size: PictureSize,
) -> tuple[np.ndarray, float]:
    """Decodes as planned or, if that fails, carefully: key frames may be incomplete or false.

    A careful attempt begins some seconds earlier, the last one where the file does.
    """
    try:
        return decode_frames(video, packets, wanted, size)
    except Damage as damage:
        fault = damage
    first = first_packet(container, video)
    for back_seconds in (CAREFUL_ROLL_SECONDS, LONGEST_ROLL_SECONDS):
        more = read_packets(container, video, None, span, careful_seconds=back_seconds)
        if not more.video:  # a source that cannot go back: the first fault is the one to tell
            break
        try:
            return decode_frames(video, more, wanted, size, careful=True, first=first)
        except Damage:
            if more.from_start:
                break
    raise fault


def _check_start(
    container: InputContainer, streams: list[MediaStream], start_seconds: float
) -> bool:
    """Refuses a start after the end; returns whether this required reading packets."""
    end_seconds = header_duration_seconds(container)
    if end_seconds is None or start_seconds < end_seconds:
        return False
    counts = container.format.name in JOINED_FORMATS
    end_seconds = read_duration_seconds(container, streams, counts=counts)
    if start_seconds >= end_seconds:
        raise Damage(
            f"ends at {end_seconds:.2f} s, before {start_seconds:.2f} s: choose an earlier start"
        )
    return True
