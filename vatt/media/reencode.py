"""Re-encoding of a video as H.264/AAC mp4 from which clips can be read fast.

Smaller pictures take less time to decode. With close key frames, fewer pictures must be decoded: a
clip needs all pictures from the last key frame before its start.
"""

import contextlib
import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vatt.config.options import Reencoding
from vatt.errors import ShardError
from vatt.media.avi_order import StoredTimes
from vatt.media.decoder import StreamDecoder, decode_packet
from vatt.media.opening import open_media
from vatt.media.pictures import display_matrix, swaps_sides, upright
from vatt.media.reencode_sound import CopiedSound, EncodedSound, may_copy
from vatt.media.source import Damage
from vatt.media.streams import (
    TIME_TOLERANCE_SECONDS,
    MediaPacket,
    audio_stream,
    check_ends,
    is_still,
    origin_seconds,
    packets_of,
    tick_seconds,
    video_stream,
)
from vatt.media.write_mp4 import REPRODUCIBLE_X264, add_h264
from vatt.system.files import NO_SPACE, atomic_file
from vatt.system.workers import tell_alive

# No other key frames than those asked for. Five of six pictures that no other is packets from: a
# reader skips those that a clip does not show. Codes of whole bits in place of arithmetic ones.
# Measured on clips at 10 of 30 frames/s: the second gives 1.4 times as many a second, both give 2.0
# times, in 0.8 of the bytes; the worst picture is as good, the mean 1.3 dB below.
FAST_TO_READ = "keyint=infinite:scenecut=0:bframes=5:b-adapt=0:b-pyramid=none:cabac=0"
MAX_TICKS = 1 << 31  # a second; the field of an mp4 file has 32 bits
FASTEST_RATE = 1000  # frames/s; what claims more does not know its rate


def reencode(source: str | os.PathLike[str], target: Path, how: Reencoding) -> bool:
    """Re-encodes a video; memory does not grow with its length.

    Times count from the start of the file, as in `vatt.media.clip`, and frames keep their times.
    The result has no rotation and square pixels. Of several streams of a kind, FFmpeg chooses one.
    AAC in mp4 is copied; other sound is encoded.

    Args:
        source: File to read.
        target: mp4 file to write; it appears when it is complete.
        how: Size, key frames and quality.

    Returns:
        Whether the file was written: False for still images and files without a picture.

    Raises:
        MediaError: the file is damaged anywhere.
        ShardError: the disk is full.
    """
    with open_media(source) as container:
        video = video_stream(container)
        if video is None or is_still(container, video):
            return False
        first = _first_frame(container, video)
    with open_media(source) as container:
        video = video_stream(container)
        assert video is not None
        ticks = _ticks_per_second(video, audio_stream(container))
        with _open_target(target, ticks) as out:
            _transcode(container, video, out, first, how)
    return True


def _first_frame(container: InputContainer, video: VideoStream) -> VideoFrame:
    """The first picture, whose size, rotation and colours are needed before writing starts."""
    for packet in container.demux(video):
        for frame in decode_packet(video, packet if packet.size else None):
            return frame
    raise Damage("has no picture that can be decoded: encode the file again")


def _ticks_per_second(video: VideoStream, audio: AudioStream | None) -> int:
    """A unit for the times of both streams."""
    rates = [(video.time_base or Fraction(1)).denominator]
    rates += [audio.rate] if audio is not None and audio.rate else []
    ticks = math.lcm(*rates)
    return ticks if ticks < MAX_TICKS else rates[-1]


@contextlib.contextmanager
def _open_target(path: Path, ticks: int) -> Iterator[OutputContainer]:
    """mp4 file to write. A full disk is not a fault of the source, so it ends the whole build."""
    options = {
        "movflags": "+faststart",  # the index in front: one read finds it
        "movie_timescale": str(ticks),  # in which a late start of a stream is told
        "fflags": "+bitexact",  # no dates, no version of the muxer
    }
    try:
        with atomic_file(path) as file:
            container = av.open(f"file:{file.name}", "w", format="mp4", options=options)
            try:
                yield container
                container.close()
            except BaseException:
                with contextlib.suppress(av.error.FFmpegError):  # the first error is to be told
                    container.close()
                raise
    except OSError as error:
        if error.errno in NO_SPACE:
            raise ShardError(
                f"no space left to write {path} ({error.strerror}): free some, then go on by the "
                "same command"
            ) from error
        raise


def _transcode(
    container: InputContainer,
    video: VideoStream,
    out: OutputContainer,
    first: VideoFrame,
    how: Reencoding,
) -> None:
    """Reads, decodes, encodes and writes packet by packet."""
    origin = origin_seconds(container)
    audio = audio_stream(container)
    takers: dict[int, Any] = {video.index: _Pictures(out, video, first, origin, how)}
    if audio is not None:
        sound = CopiedSound if may_copy(container, audio) else EncodedSound
        takers[audio.index] = sound(out, audio, origin)
    streams = [stream for stream in (video, audio) if stream is not None]
    ends = dict.fromkeys(takers, origin)

    def restart() -> None:
        for taker in takers.values():
            taker.restart()

    for packet in packets_of(container, streams, on_jump=restart):
        tell_alive()
        index = packet.stream_index
        if packet.pts is not None:
            end = (packet.pts + (packet.duration or 0)) * packet.time_base
            ends[index] = max(ends[index], float(end))
        out.mux(takers[index].take(packet))
    check_ends(container, [(stream, ends[stream.index], float("inf")) for stream in streams])
    for taker in takers.values():
        out.mux(taker.take(None))


class _Pictures:
    """Decodes, scales, turns upright and encodes pictures."""

    def __init__(
        self,
        out: OutputContainer,
        video: VideoStream,
        first: VideoFrame,
        origin_seconds: float,
        how: Reencoding,
    ) -> None:
        self._video = video
        self._decoder = StreamDecoder(video)
        self.restart = self._decoder.restart
        self._scaler = VideoReformatter()
        self._matrix = display_matrix(first, video)
        self._size = reencoded_size(
            first.width, first.height, how.short_side, video.sample_aspect_ratio
        )
        self._stream = _add_video(out, video, self._convert(first), how.quality)
        self._shift = round(origin_seconds / tick_seconds(video))
        self._last_pts: int | None = None
        self._stored_times = StoredTimes() if video.container.format.name == "avi" else None
        self._key_frame_seconds = how.key_frame_seconds
        self._next_key_seconds = -float("inf")
        self._durations: dict[int, int] = {}  # of the pictures that the encoder holds back

    def take(self, packet: MediaPacket | None) -> list[Any]:
        """The packets to write for one of the source; None ends the pictures."""
        packets: list[Any] = []
        frames = self._decoder.take(packet)
        if self._stored_times is not None:
            self._stored_times.give(packet, frames)
        for frame in frames:
            packets += self._encode(frame)
        if packet is None:
            packets += self._stream.encode(None)
        for one in packets:
            one.duration = self._durations.pop(one.pts, 0)
        return packets

    def _encode(self, frame: VideoFrame) -> list[Any]:
        pts, duration = frame.pts, frame.duration
        if pts is None or (self._last_pts is not None and pts <= self._last_pts):
            return []  # two pictures at one time: nobody could see the second
        picture = self._convert(frame)
        picture.pts, picture.time_base = pts - self._shift, self._video.time_base
        if self._last_pts is not None:  # mp4 tells how far apart pictures are stored, not shown
            self._durations[self._last_pts - self._shift] = pts - self._last_pts
        self._last_pts = pts
        seconds = picture.pts * tick_seconds(self._video)
        is_key = seconds >= self._next_key_seconds - TIME_TOLERANCE_SECONDS
        picture.pict_type = PictureType.I if is_key else PictureType.NONE
        if is_key:
            self._next_key_seconds = seconds + self._key_frame_seconds
        self._durations[picture.pts] = duration
        packets: list[Any] = self._stream.encode(picture)
        return packets

    def _convert(self, frame: VideoFrame) -> VideoFrame:
        width, height = self._size
        is_rgb = frame.colorspace == 0  # AVCOL_SPC_RGB, which YUV pixels must not be called
        picture = self._scaler.reformat(
            frame,
            width,
            height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU601 if is_rgb else None,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.AREA,
            threads=1,
        )
        return self._upright(picture)

    def _upright(self, picture: VideoFrame) -> VideoFrame:
        if self._matrix is None:
            return picture
        width, height = self._size
        packed = picture.to_ndarray()  # all of Y, then of U, then of V
        luma, chroma = packed[:height], packed[height:].reshape(2, height // 2, width // 2)
        turned = [upright(plane[None, ..., None], self._matrix) for plane in (luma, *chroma)]
        width, height = (height, width) if swaps_sides(self._matrix) else (width, height)
        rows = np.concatenate([plane.reshape(-1, width) for plane in turned])
        result = VideoFrame.from_ndarray(rows, format="yuv420p")
        result.colorspace, result.color_range = picture.colorspace, picture.color_range
        return result


def _add_video(
    out: OutputContainer, video: VideoStream, sample: VideoFrame, quality: int
) -> VideoStream:
    """Adds a stream for pictures that are like `sample`, at the times of `video`."""
    rate = video.average_rate or video.guessed_rate or Fraction(25)
    stream = add_h264(
        out,
        min(rate, Fraction(FASTEST_RATE)),
        sample.width,
        sample.height,
        quality,
        f"{FAST_TO_READ}:{REPRODUCIBLE_X264}",
    )
    context: Any = stream.codec_context
    context.time_base = video.time_base
    context.color_range = sample.color_range
    context.colorspace = sample.colorspace
    context.color_primaries = sample.color_primaries
    context.color_trc = sample.color_trc
    return stream


def reencoded_size(
    width: int, height: int, short_side: int, pixel_aspect: Fraction | None = None
) -> tuple[int, int]:
    """Width and height of a re-encoded picture: even, with square pixels.

    Args:
        width: Stored width in pixels.
        height: Stored height in pixels.
        short_side: Maximum length of the shorter side in pixels, even.
        pixel_aspect: Ratio of a stored pixel's width to its height.
    """
    displayed = width * float(pixel_aspect or 1)
    factor = min(1.0, short_side / min(displayed, height))
    return _even(displayed * factor), _even(height * factor)


def _even(side: float) -> int:
    """Rounded to an even number, for 4:2:0."""
    return max(2, 2 * round(side / 2))
