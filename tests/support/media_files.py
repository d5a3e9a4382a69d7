"""Small media files of many kinds, made by FFmpeg, and the truth about what is in them."""

import itertools
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.media.pictures import display_matrix, scaled_size, upright
from vatt.media.write_mp4 import write_mp4

WIDTH, HEIGHT, FRAME_RATE = 96, 72, 25
SMALL_VIDEO = VideoConfig(num_frames=8, frame_rate=5.0, image_size=32, patch_size=(4, 8, 8))
SMALL_AUDIO = AudioConfig(sample_rate=16_000, num_samples=25_600, patch_size=256)  # 1.6 s


@dataclass(frozen=True)
class Kind:
    """How a test file is made."""

    video: str | None = "libx264"
    audio: str | None = "aac"
    video_options: tuple[tuple[str, str], ...] = ()
    file_options: tuple[tuple[str, str], ...] = ()
    gop: int | None = 12
    frame_rate: int = FRAME_RATE
    pixels: str = "yuv420p"
    pixel_aspect: Fraction | None = None
    layout: str = "stereo"
    sample_rate: int = 48_000
    start_seconds: float = 0.0
    audio_start_seconds: float = 0.0
    video_seconds: float = 3.0
    audio_seconds: float = 3.0
    audio_gap_seconds: float = 0.0  # in the middle of the sound
    uneven: bool = False  # frames of different lengths


X264_OPEN_GOP = (("x264-params", "open-gop=1:keyint=22:scenecut=0:b-adapt=0:bframes=3"),)
X264_INTRA_REFRESH = (("x264-params", "intra-refresh=1:keyint=25"),)
VP8_HIDDEN_FRAMES = (("auto-alt-ref", "1"), ("lag-in-frames", "8"), ("cpu-used", "16"))
KINDS = {
    "plain.mp4": Kind(),
    "faststart.mp4": Kind(file_options=(("movflags", "faststart"),)),
    "fragments.mp4": Kind(audio=None, file_options=(("movflags", "frag_keyframe+empty_moov"),)),
    "long_gop.mkv": Kind(gop=250),
    "open_gop.mp4": Kind(video_options=X264_OPEN_GOP, gop=None),
    "intra_refresh.mp4": Kind(video_options=X264_INTRA_REFRESH, gop=None),
    "uneven.mp4": Kind(uneven=True),
    "mono.mp4": Kind(layout="mono", sample_rate=44_100),
    "surround.mp4": Kind(layout="5.1"),
    "silent.mp4": Kind(audio=None),
    "sound.m4a": Kind(video=None, sample_rate=44_100),
    "sound.flac": Kind(video=None, audio="flac"),
    "sound.opus": Kind(video=None, audio="libopus"),
    "sound.mp3": Kind(video=None, audio="libmp3lame"),
    "late_sound.mp4": Kind(audio_start_seconds=1.0, audio_seconds=2.0),
    "gap_in_sound.mp4": Kind(audio_gap_seconds=0.5),
    "short_sound.mp4": Kind(audio_seconds=1.0),
    "long_sound.mp4": Kind(video_seconds=1.0),
    "late_start.ts": Kind(start_seconds=5.0),
    "late_start.mkv": Kind(start_seconds=5.0),
    "wide_pixels.mp4": Kind(pixel_aspect=Fraction(4, 3)),
    "hevc.mp4": Kind(video="libx265", video_options=(("x265-params", "log-level=none"),)),
    "vp8.webm": Kind(video="libvpx", audio="libopus", video_options=VP8_HIDDEN_FRAMES, gop=40),
    "vp9.webm": Kind(video="libvpx-vp9", audio="libopus", video_options=(("cpu-used", "8"),)),
    "av1.mp4": Kind(video="libsvtav1", video_options=(("preset", "12"),), gop=30),
    "mpeg4.avi": Kind(video="mpeg4", audio="libmp3lame"),
    "b_frames.avi": Kind(video="mpeg4", audio="libmp3lame", video_options=(("bf", "2"),)),
    "mpeg2.mpg": Kind(video="mpeg2video", audio="libmp3lame", video_options=(("bf", "2"),)),
    "pictures.mov": Kind(video="mjpeg", audio="pcm_s16le", pixels="yuvj420p", gop=None),
    "animation.gif": Kind(video="gif", audio=None, pixels="rgb8", gop=None),
    "animation.apng": Kind(video="apng", audio=None, pixels="rgb24", gop=None, video_seconds=1.0),
}
WITH_PICTURE = [name for name, kind in KINDS.items() if kind.video]
STILLS = {"still.png": "png", "still.jpg": "mjpeg", "still.webp": "libwebp", "still.gif": "gif"}
STILL_PIXELS = {"png": "rgb24", "mjpeg": "yuvj420p", "libwebp": "yuv420p", "gif": "rgb8"}


def picture(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A frame that no other index has: moving texture, and a square that changes colour."""
    texture = np.random.default_rng(0).integers(70, 170, (height, 400, 3)).astype(np.uint8)
    frame = texture[:, 3 * index % 200 :][:, :width].copy()
    left = 5 * index % (width - 20)
    frame[10:30, left : left + 20] = (250, 7 * index % 255, 20)
    return frame


def tone(seconds: np.ndarray) -> np.ndarray:
    """A rising tone of amplitude 0.4: its value tells the time."""
    return 0.4 * np.sin(2 * np.pi * (440 * seconds + 100 * seconds**2))


def make_file(path: Path, kind: Kind) -> None:
    """Encodes a test file."""
    with av.open(str(path), "w", options=dict(kind.file_options)) as container:
        video = audio = None
        if kind.video:
            video = container.add_stream(
                kind.video, rate=kind.frame_rate, options=dict(kind.video_options)
            )
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, kind.pixels
            if kind.gop:
                video.codec_context.gop_size = kind.gop
            if kind.pixel_aspect:
                video.codec_context.sample_aspect_ratio = kind.pixel_aspect
        if kind.audio:
            audio = container.add_stream(kind.audio, rate=kind.sample_rate)
            audio.layout = kind.layout
        if video is not None:
            for packet in itertools.chain.from_iterable(encode_pictures(video, kind)):
                container.mux(packet)
        if audio is not None:
            for packet in itertools.chain.from_iterable(encode_tone(audio, kind)):
                container.mux(packet)


def encode_pictures(stream: Any, kind: Kind) -> Iterator[list[Any]]:
    time = round(kind.start_seconds * kind.frame_rate)
    for index in range(round(kind.video_seconds * kind.frame_rate)):
        frame = av.VideoFrame.from_ndarray(picture(index), format="rgb24")
        frame = frame.reformat(format=kind.pixels)
        frame.pts, frame.time_base = time, Fraction(1, kind.frame_rate)
        time += (1, 1, 4)[index % 3] if kind.uneven else 1
        yield stream.encode(frame)
    yield stream.encode(None)


def encode_tone(stream: Any, kind: Kind) -> Iterator[list[Any]]:
    context = stream.codec_context
    size = context.frame_size or 1024
    start = round((kind.start_seconds + kind.audio_start_seconds) * kind.sample_rate)
    num_channels = len(stream.layout.channels)
    resampler = av.AudioResampler(context.format, kind.layout, kind.sample_rate)
    samples = tone(np.arange(round(kind.audio_seconds * kind.sample_rate)) / kind.sample_rate)
    for first in range(0, len(samples), size):
        part = np.tile(samples[first : first + size].astype(np.float32), (num_channels, 1))
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=kind.layout)
        frame.sample_rate, frame.time_base = kind.sample_rate, Fraction(1, kind.sample_rate)
        frame.pts = start + first
        if first >= len(samples) // 2:
            frame.pts += round(kind.audio_gap_seconds * kind.sample_rate)
        for converted in resampler.resample(frame):
            yield stream.encode(converted)
    yield stream.encode(None)


def make_still(path: Path, codec: str, width: int = WIDTH, height: int = HEIGHT) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, STILL_PIXELS[codec]
        pixels = np.resize(picture(3), (height, width, 3))
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame = frame.reformat(format=STILL_PIXELS[codec])
        frame.pts = 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def with_matrix(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """An mp4 file whose first track is shown through a, b, c, d (ISO 14496-12, `tkhd`)."""
    place = content.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    return content[:place] + values.tobytes() + content[place + 36 :]


def make_folder(folder: Path) -> None:
    """Writes all files into a new folder."""
    folder.mkdir()
    for name, kind in KINDS.items():
        make_file(folder / name, kind)
    for name, codec in STILLS.items():
        make_still(folder / name, codec)
    plain = (folder / "plain.mp4").read_bytes()
    faststart = (folder / "faststart.mp4").read_bytes()
    (folder / "turned.mp4").write_bytes(with_matrix(plain, (0, 1, -1, 0)))
    (folder / "cut_off.mp4").write_bytes(faststart[: len(faststart) // 2])
    (folder / "headless.mp4").write_bytes(plain[: len(plain) // 2])
    (folder / "noise.mp4").write_bytes(random.Random(0).randbytes(20_000))
    (folder / "empty.mp4").touch()


def write_noise_clip(path: Path, num_frames: int = 20, silent: bool = False) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (num_frames, 32, 48, 3), dtype=np.uint8)
    sound = None if silent else 0.1 * rng.standard_normal(num_frames * 800).astype(np.float32)
    write_mp4(path, frames, 20.0, waveform=sound, sample_rate=None if silent else 16_000)


@dataclass
class Sequence:
    """All frames of a file, decoded in order."""

    origin_seconds: float
    seconds: np.ndarray
    frames: torch.Tensor

    def at(self, start_seconds: float, num_frames: int, frame_rate: float) -> torch.Tensor:
        """The last frame at or before each time; the first before it."""
        wanted = self.origin_seconds + start_seconds + np.arange(num_frames) / frame_rate
        places = np.searchsorted(self.seconds, wanted + 1e-6, side="right") - 1
        return self.frames[places.clip(0)]


def decode_sequentially(path: Path, short_side: int) -> Sequence:
    """The truth: every frame of a file from its start on, scaled as the reader does."""
    seconds, frames, matrix = [], [], None
    scaler = VideoReformatter()
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        origin = (container.start_time or 0) / 1e6
        for frame in container.decode(stream):
            matrix = matrix or display_matrix(frame, stream)
            size = scaled_size(frame.width, frame.height, short_side, stream.sample_aspect_ratio)
            scaled = scaler.reformat(
                frame, *size, "rgb24", interpolation=Interpolation.AREA, threads=1
            )
            seconds.append(float(frame.pts * stream.time_base))
            frames.append(scaled.to_ndarray())
    return Sequence(origin, np.array(seconds), torch.from_numpy(upright(np.stack(frames), matrix)))


def png(width: int, height: int, *more: tuple[bytes, bytes], rows: int = 100) -> bytes:
    """A picture that claims a size, and has so many bytes of rows; `more` are further chunks."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        ending = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + ending

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part)
        for part in (
            (b"IHDR", header),
            *more,
            (b"IDAT", zlib.compress(bytes(rows))),
            (b"IEND", b""),
        )
    )


def gif(width: int, height: int) -> bytes:
    """A picture that claims a size, and ends after a pixel."""
    screen = struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)  # two colours
    picture = struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"
    return b"GIF89a" + screen + b"," + picture + b";"


def jpeg(width: int, height: int) -> bytes:
    """A grey picture that claims a size, and ends after some rows."""

    def segment(kind: bytes, content: bytes) -> bytes:
        return b"\xff" + kind + struct.pack(">H", 2 + len(content)) + content

    one_code = bytes([1] + [0] * 15) + b"\0"
    return b"".join(
        [
            b"\xff\xd8" + segment(b"\xe0", b"JFIF\0\1\1\0\0\1\0\1\0\0"),
            segment(b"\xdb", b"\0" + bytes([1] * 64)),
            segment(b"\xc0", struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
            segment(b"\xc4", b"\0" + one_code) + segment(b"\xc4", b"\x10" + one_code),
            segment(b"\xda", b"\1\1\0\0\x3f\0") + bytes(100) + b"\xff\xd9",
        ]
    )
