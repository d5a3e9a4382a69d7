"""Media files to measure with: textured moving pictures and sound, at the bit rates of the wild."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch.nn.functional import interpolate

TEXTURE_SCALES = (4, 8, 16, 32, 64)  # pixels: detail of all sizes, as in photographs
NUM_SHAPES = 6
PAN_PIXELS = 800  # how far the camera moves, there and back


@dataclass(frozen=True, kw_only=True)
class MediaKind:
    """A kind of file."""

    name: str  # in tables
    file: str  # its suffix chooses container and codecs
    width: int = 340  # pixels
    height: int = 256
    gop: int = 12  # frames from one key frame to the next
    video_bit_rate: int = 600_000  # bits per second
    frame_rate: int = 25
    sample_rate: int = 48_000  # Hz
    audio_bit_rate: int = 96_000
    aac_coder: str = "twoloop"  # FFmpeg's default; "fast" for hours of sound


READ_KINDS = (
    MediaKind(name="340p GOP 12", file="340p_gop12.mp4"),
    MediaKind(name="340p GOP 250", file="340p_gop250.mp4", gop=250),
    MediaKind(
        name="720p", file="720p.mp4", width=1280, height=720, gop=250, video_bit_rate=2_500_000
    ),
    MediaKind(name="VP9/Opus", file="vp9.webm", gop=128),
)
SMALL_KIND = MediaKind(name="96p", file="96p.mp4", width=128, height=96, video_bit_rate=100_000)
# what a sample of a very large set is made of
TINY_KIND = MediaKind(name="32p", file="32p.mp4", width=48, height=32, video_bit_rate=8_000)
FUZZ_KINDS = tuple(replace(SMALL_KIND, file=f"96p.{end}") for end in ("mp4", "mkv", "ts", "webm"))
# B-frames, two reference frames, subpixel motion: what files in the wild are made with
X264_OPTIONS = {"preset": "fast"}
VP9_OPTIONS = {"deadline": "good", "cpu-used": "5", "row-mt": "1"}


def make_media(folder: Path, kind: MediaKind, seconds: float) -> Path:
    """A file of a kind, made once in a folder."""
    stem, suffix = kind.file.split(".")
    path = folder / f"{stem}_{seconds:g}s.{suffix}"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial_{path.name}")
        _encode(partial, kind, seconds)
        partial.rename(path)
    return path


def _encode(path: Path, kind: MediaKind, seconds: float) -> None:
    is_webm = path.suffix == ".webm"
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libvpx-vp9" if is_webm else "libx264",
            rate=kind.frame_rate,
            options=VP9_OPTIONS if is_webm else X264_OPTIONS,
        )
        video.width, video.height, video.pix_fmt = kind.width, kind.height, "yuv420p"
        video.codec_context.gop_size, video.bit_rate = kind.gop, kind.video_bit_rate
        audio: Any = container.add_stream(
            "libopus" if is_webm else "aac",
            rate=kind.sample_rate,
            options={} if is_webm else {"aac_coder": kind.aac_coder},
        )
        audio.layout, audio.bit_rate = "stereo", kind.audio_bit_rate
        pictures = _pictures(kind, round(seconds * kind.frame_rate))
        sounds = _sounds(kind, seconds, audio.format.name)
        # a tenth of a second of each in turn: they lie side by side, as in any other file
        while batch := list(islice(pictures, max(1, kind.frame_rate // 10))):
            for frame in [*batch, *islice(sounds, 1)]:
                stream = video if isinstance(frame, av.VideoFrame) else audio
                container.mux(stream.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def _pictures(kind: MediaKind, count: int) -> Iterator[av.VideoFrame]:
    """A camera that pans over a landscape of all scales, in front of which shapes move.

    All of it is drawn at twice the size and scaled down, so that things move by half pixels.
    """
    draw = np.random.default_rng(0)
    height, width = 2 * kind.height, 2 * kind.width
    landscape = _texture(draw, height + PAN_PIXELS, width + PAN_PIXELS)
    side = height // 4
    shapes = [_texture(draw, side, side) for _ in range(NUM_SHAPES)]
    speeds = draw.uniform(0.2, 1.5, (NUM_SHAPES, 2))  # radians per second
    scaler = VideoReformatter()
    for index in range(count):
        seconds = index / kind.frame_rate
        top, left = _swing(PAN_PIXELS, np.array([0.11, 0.17]) * seconds)
        picture = landscape[top : top + height, left : left + width].copy()
        for shape, speed in zip(shapes, speeds, strict=True):
            top, left = _swing(np.array([height - side, width - side]), speed * (seconds + 7))
            picture[top : top + side, left : left + side] = shape
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = scaler.reformat(frame, kind.width, kind.height, "yuv420p", interpolation="AREA")
        frame.pts, frame.time_base = index, Fraction(1, kind.frame_rate)
        yield frame


def _swing(room: Any, angles: np.ndarray) -> list[int]:
    """Places from 0 to `room` and back again, as the angles go round."""
    return (room * (0.5 - 0.5 * np.cos(angles))).astype(int).tolist()


def _texture(draw: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Coloured clouds whose contrast falls with their size, uint8 `[H, W, C]`."""
    total = torch.full((1, 3, height, width), 128.0)
    for scale in TEXTURE_SCALES:
        grid = draw.normal(0, 5 * scale**0.5, (1, 3, height // scale + 2, width // scale + 2))
        total += interpolate(torch.from_numpy(grid).float(), (height, width), mode="bilinear")
    return total[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()


def _sounds(kind: MediaKind, seconds: float, sample_format: str) -> Iterator[av.AudioFrame]:
    """A rising tone over noise, in stereo, a tenth of a second or a picture's time at a time."""
    draw = np.random.default_rng(0)
    rate = kind.sample_rate
    converter = av.AudioResampler(sample_format, "stereo", rate)
    count, size = round(seconds * rate), rate // min(10, kind.frame_rate)
    for first in range(0, count, size):
        times = np.arange(first, min(first + size, count)) / rate
        tone = 0.3 * np.sin(2 * np.pi * (220 * times + 20 * times**2))
        both = tone + draw.normal(0, 0.05, (2, len(times)))
        frame = av.AudioFrame.from_ndarray(both.astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, first
        frame.time_base = Fraction(1, rate)
        yield from converter.resample(frame)
