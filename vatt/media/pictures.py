"""Decoding of only those frames that a clip needs, with scaling inside FFmpeg.

A clip is requested by times. The packets around it are read without decoding. Their timestamps
determine the frames to show, and only the packets that these frames depend on are decoded.
"""

import contextlib
import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from vatt.media.avi_order import StoredTimes
from vatt.media.decoder import MAX_SIDE_PIXELS, at_time, check_size, decode_packet, prepare_decoder
from vatt.media.packets import Packets, decoding_runs, without_leading
from vatt.media.source import Damage
from vatt.media.streams import TIME_TOLERANCE_SECONDS, WITHOUT_TIMES, MediaPacket, tick_seconds

MAX_CLIP_PIXELS = 1 << 30  # of all frames together: 517 frames of 1,920 × 1,080 take 3.2 GB
# Decoders that can be told, packet by packet, to leave out pictures that no other refers to. (dav1d
# takes this only when it is opened; for VP8 and VP9 it gains nothing.)
SKIPPING_CODECS = frozenset({"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"})
# Their decoders tell by themselves when pictures are whole again after a seek.
RECOVERING_CODECS = frozenset(
    {"h264", "hevc", "vvc", "mpeg1video", "mpeg2video", "av1", "vp8", "vp9"}
)
NAMING_CODECS = frozenset({"png", "apng"})  # those that FFmpeg gives names of side data with

Matrix = tuple[int, int, int, int]
SizeRule = Callable[[float, float], tuple[int, int]]  # width, height: displayed → wanted
PictureSize = int | SizeRule  # a number: pixels of the shorter side


def decode_frames(
    video: VideoStream,
    packets: Packets,
    wanted_seconds: list[float],
    size: PictureSize,
    *,
    careful: bool = False,
    first: MediaPacket | None = None,
) -> tuple[np.ndarray, float]:
    """Decodes the last frame at or before each wanted time, or the first frame if there is none.

    Args:
        video: The stream.
        packets: Its packets around the clip.
        wanted_seconds: Increasing times on the file's own clock, one per frame.
        size: Length of the shorter side in pixels, or a rule for width and height.
        careful: Whether to decode every picture in order: slower, but correct for streams whose key
            frames are incomplete.
        first: First packet of the file, from which a careful decoder learns the encoder.

    Returns:
        uint8 `[T, H, W, C]`, and the share of wanted times, in [0, 1], at which the stream has a
        picture.

    Raises:
        Damage: a frame is missing or damaged.
    """
    times, coverage = choose_frames(video, packets, wanted_seconds)
    prepare_decoder(video)
    collector = FrameCollector(video, size, times)
    may_lack = packets.exhausted and packets.video_ended and len(packets.video) > 1
    last = packets.video[-1] if may_lack else None
    try:
        if packets.stored:
            _decode_stored(video, packets, collector)
        elif careful:
            _decode_all(video, packets, collector, first)
        else:
            _decode_runs(video, packets, collector, set(times))
    except Damage:
        if last is None or not collector.lacks_only(last.pts):
            raise
    if last is not None and collector.lacks_only(last.pts):
        # the last packet of a file may be cut, or hold no picture: the one before it stays
        less = replace(packets, video=packets.video[:-1])
        video.codec_context.flush_buffers()
        return decode_frames(video, less, wanted_seconds, size, careful=careful, first=first)
    return collector.frames(), coverage


def _decode_stored(video: VideoStream, packets: Packets, collector: "FrameCollector") -> None:
    """Decodes every picture: which one has which time is known by counting."""
    stored_times = StoredTimes()
    for packet in [*packets.video, None]:
        frames = decode_packet(video, packet)
        stored_times.give(packet, frames)
        collector.take(frames)


def _decode_runs(
    video: VideoStream, packets: Packets, collector: "FrameCollector", needed: set[int]
) -> None:
    """Decodes what the needed pictures are made from."""
    decoder: Any = video.codec_context
    name = decoder.codec.canonical_name
    may_skip = name in SKIPPING_CODECS
    for place, run in enumerate(decoding_runs(without_leading(packets), needed)):
        if place:
            decoder.flush_buffers()
        is_first = name not in RECOVERING_CODECS and (place > 0 or not packets.from_start)
        for packet in [*run, None]:  # None: what the decoder holds back to put frames in order
            if may_skip:
                is_needed = packet is None or packet.pts in needed
                decoder.skip_frame = "DEFAULT" if is_needed else "NONREF"
            frames = decode_packet(video, packet)
            if is_first and frames and _needs_others(frames[0]):
                raise Damage(at_time("a picture is marked as whole and is not", run[0].pts, video))
            is_first = is_first and not frames
            collector.take(frames)


def _decode_all(
    video: VideoStream, packets: Packets, collector: "FrameCollector", first: MediaPacket | None
) -> None:
    """Decodes every picture, in order; those before the first whole one do not count."""
    decoder: Any = video.codec_context
    decoder.skip_frame = "DEFAULT"
    if first is not None:
        # x264 before build 151 coded 4:4:4 otherwise, and names its build in the first packet only
        decoder.flush_buffers()
        with contextlib.suppress(Damage):
            decode_packet(video, first)
    decoder.flush_buffers()
    begun = packets.from_start or decoder.codec.canonical_name in RECOVERING_CODECS
    for packet in [*packets.video, None]:
        frames = decode_packet(video, packet)
        while frames and not begun:
            begun = not _needs_others(frames[0])
            frames = frames if begun else frames[1:]
        collector.take(frames)


def _needs_others(frame: VideoFrame) -> bool:
    return not frame.key_frame and frame.pict_type in (PictureType.P, PictureType.B)


def choose_frames(
    video: VideoStream, packets: Packets, wanted_seconds: list[float]
) -> tuple[list[int], float]:
    """Timestamp of the frame for each wanted time, and the share of times with a picture."""
    tick = tick_seconds(video)
    shown = {
        packet.pts: packet.duration or 0
        for packet in without_leading(packets)
        if packet.pts is not None and not packet.is_discard
    }
    if not shown and any(packet.pts is None for packet in packets.video):
        raise Damage(WITHOUT_TIMES)
    if not shown:
        raise Damage("has no readable picture: damaged or incomplete; copy or encode it again")
    starts = sorted(shown)
    end = math.inf
    if packets.video_ended:
        end = (starts[-1] + max(shown[starts[-1]], 1)) * tick
    chosen, covered = [], 0
    for seconds in wanted_seconds:
        place = bisect_right(starts, (seconds + TIME_TOLERANCE_SECONDS) / tick) - 1
        covered += place >= 0 and seconds < end
        chosen.append(starts[max(place, 0)])
    return chosen, covered / len(wanted_seconds)


class FrameCollector:
    """Collects the frames of a clip from a decoder, scaled and upright.

    Args:
        video: The stream.
        size: Length of the shorter side in pixels, or a rule for width and height.
        times: Timestamp of each frame of the clip.
    """

    def __init__(self, video: VideoStream, size: PictureSize, times: list[int]) -> None:
        self._video = video
        self._size = size
        self._places = {pts: times.index(pts) for pts in dict.fromkeys(times)}
        self._times = times
        self._missing = set(times)
        self._scaler = VideoReformatter()
        self._array: np.ndarray | None = None
        self._matrix: Matrix | None = None

    def take(self, decoded: list[VideoFrame]) -> None:
        """Stores those of the frames that are needed."""
        for frame in decoded:
            if frame.pts in self._missing:
                self._missing.discard(frame.pts)
                self._keep(frame, self._places[frame.pts])

    def _keep(self, frame: VideoFrame, place: int) -> None:
        if self._array is None:
            check_size(frame.width, frame.height)
            self._matrix = display_matrix(frame, self._video)
            width, height = self._stored_size(frame)
            _check_clip_size(len(self._times), width, height)
            self._array = np.empty((len(self._times), height, width, 3), np.uint8)
        _, height, width, _ = self._array.shape
        scaled = self._scaler.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.AREA, threads=1
        )
        plane: Any = scaled.planes[0]
        rows = np.frombuffer(plane, np.uint8, height * plane.line_size).reshape(height, -1)
        self._array[place] = rows[:, : 3 * width].reshape(height, width, 3)

    def _stored_size(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height to scale to, before the picture is turned upright."""
        aspect = self._video.sample_aspect_ratio
        if isinstance(self._size, int):
            return scaled_size(frame.width, frame.height, self._size, aspect)
        width, height = frame.width * float(aspect or 1), float(frame.height)
        if swaps_sides(self._matrix):
            height, width = self._size(height, width)
            return width, height
        return self._size(width, height)

    def lacks_only(self, pts: int | None) -> bool:
        """Whether all needed frames but one have come."""
        return self._missing == {pts}

    def frames(self) -> np.ndarray:
        """Frames of the clip, uint8 `[T, H, W, C]`.

        Raises:
            Damage: the decoder gave no frame for a needed timestamp.
        """
        if self._missing or self._array is None:
            raise Damage(at_time("a picture is missing", min(self._missing), self._video))
        for place, pts in enumerate(self._times):
            if self._places[pts] != place:
                self._array[place] = self._array[self._places[pts]]
        return upright(self._array, self._matrix)


def _check_clip_size(num_frames: int, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE_PIXELS or num_frames * width * height > MAX_CLIP_PIXELS:
        raise Damage(
            f"would become {num_frames} pictures of {width}×{height} pixels; at most "
            f"{MAX_SIDE_PIXELS} a side and {MAX_CLIP_PIXELS} in all are read: ask for fewer or "
            "smaller ones, or cut the picture to a less narrow shape"
        )


def scaled_size(
    width: int, height: int, short_side: int, pixel_aspect: Fraction | None = None
) -> tuple[int, int]:
    """Width and height with a given short side; the long side keeps the aspect and is even."""
    displayed = width * float(pixel_aspect) if pixel_aspect else float(width)
    if displayed <= height:
        return short_side, max(short_side, 2 * round(height * short_side / displayed / 2))
    return max(short_side, 2 * round(displayed * short_side / height / 2)), short_side


def own_size(width: float, height: float) -> tuple[int, int]:
    """Width and height of a picture in its own size, as displayed with square pixels."""
    return round(width), round(height)


def display_matrix(frame: VideoFrame, video: VideoStream) -> Matrix | None:
    """Linear part a, b, c, d of the matrix from stored to displayed pixels, if there is one.

    For PNG only the angle is read: after access to `side_data`, PyAV (18.1, 19.0) and FFmpeg both
    free the name of a colour profile, and the process crashes.
    """
    data: Any = None
    is_known = video.codec_context.codec.canonical_name not in NAMING_CODECS
    try:
        data = frame.side_data.get("DISPLAYMATRIX") if is_known else None
    except ValueError:  # PyAV does not know every kind of side data; then only the angle is left
        is_known = False
    if not is_known:
        if not frame.rotation:
            return None
        angle = math.radians(frame.rotation)
        cosine, sine = round(math.cos(angle)), round(math.sin(angle))
        return (cosine, -sine, sine, cosine)
    if data is None:
        return None
    matrix = np.frombuffer(data, np.int32, 9)
    return int(matrix[0]), int(matrix[1]), int(matrix[3]), int(matrix[4])


def swaps_sides(matrix: Matrix | None) -> bool:
    """Whether display swaps width and height."""
    return matrix is not None and abs(matrix[1]) + abs(matrix[2]) > abs(matrix[0]) + abs(matrix[3])


def upright(frames: np.ndarray, matrix: Matrix | None) -> np.ndarray:
    """Rotates (by quarter turns) and mirrors frames `[T, H, W, C]` for display."""
    if matrix is None:
        return frames
    along_width, from_width, from_height, along_height = matrix
    if swaps_sides(matrix):
        frames = frames.transpose(0, 2, 1, 3)
        along_width, along_height = from_height, from_width
    if along_width < 0:
        frames = frames[:, :, ::-1]
    if along_height < 0:
        frames = frames[:, ::-1]
    return np.ascontiguousarray(frames)
