"""Pictures and sound → one H.264/AAC mp4 file, by PyAV."""

import io
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from av.container import OutputContainer

from vatt.system.files import write_atomically

# Sampling rates that AAC can carry, in Hz (ISO/IEC 14496-3, samplingFrequencyIndex).
# fmt: off
AAC_SAMPLE_RATES = (
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000,
    24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
)
# fmt: on

# With macroblock trees x264's SIMD code makes other bytes of the same frames now and then (seen in
# 9 of 40 clips encoded four times each); the second keeps the kind of processor out of the bytes.
REPRODUCIBLE_X264 = "mbtree=0:cpu-independent=1"

AAC_BITS_PER_SAMPLE = 2  # 32 kbit/s at 16 kHz, 88 kbit/s at 44.1 kHz: transparent for one channel


def write_mp4(
    path: str | os.PathLike[str],
    frames: npt.ArrayLike,
    frame_rate: float | Fraction,
    *,
    waveform: npt.ArrayLike | None = None,
    sample_rate: int | None = None,
    key_frame_distance: int = 12,
    quality: int = 23,
) -> None:
    """Writes frames and sound as an mp4 file; the file is complete or absent.

    The same input gives the same bytes: one encoder thread, no dates, no version of the muxer. The
    file is built in memory, so use this for short clips only.

    Args:
        path: File to write; its folder must exist.
        frames: RGB frames uint8 `[T, H, W, 3]`, array or CPU tensor; H and W must be even for
            4:2:0 chroma.
        frame_rate: Frames per second.
        waveform: Mono sound, float `[S]` in [-1, 1]; it starts with frame 0. None: no sound.
        sample_rate: Rate of the waveform in Hz; AAC must support it.
        key_frame_distance: Maximum distance between key frames, in frames. A reader decodes up to
            this many frames to reach any frame.
        quality: Constant rate factor of x264: 0 is lossless, 23 is x264's default, 51 the worst.

    Raises:
        ValueError: an array or rate is not as described above.
        OSError: the file cannot be written; the error names the path.
    """
    frames = _check_frames(np.asarray(frames))
    sound = None if waveform is None else _check_waveform(np.asarray(waveform), sample_rate)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        # 1001: the 29.97 of NTSC is 30000/1001
        rate, (height, width) = Fraction(frame_rate).limit_denominator(1001), frames.shape[1:3]
        video = add_h264(container, rate, width, height, quality, REPRODUCIBLE_X264)
        video.gop_size = key_frame_distance
        # Sound first: few packets, which the muxer holds back until the pictures are there.
        if sound is not None:
            audio = add_aac(container, int(sample_rate or 0), "mono")
            samples = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts = audio.rate, 0
            container.mux([*audio.encode(samples), *audio.encode(None)])
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    write_atomically(Path(path), buffer.getvalue())


def _check_frames(frames: np.ndarray) -> np.ndarray:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise ValueError(f"frames must be uint8 [T, H, W, 3], got {frames.dtype} {frames.shape}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even for H.264 in 4:2:0, got {height}×{width}")
    return frames


def _check_waveform(waveform: np.ndarray, sample_rate: int | None) -> np.ndarray:
    if waveform.ndim != 1 or not np.issubdtype(waveform.dtype, np.floating) or not waveform.size:
        raise ValueError(f"waveform must be float [S], got {waveform.dtype} {waveform.shape}")
    if sample_rate not in AAC_SAMPLE_RATES:
        raise ValueError(f"sample_rate must be one of {AAC_SAMPLE_RATES}, got {sample_rate}")
    return np.clip(waveform, -1, 1).astype(np.float32)


def add_h264(
    container: OutputContainer,
    rate: Fraction,
    width: int,
    height: int,
    quality: int,
    x264_params: str,
) -> av.VideoStream:
    """Adds a stream of H.264 in 4:2:0."""
    options = {
        "preset": "veryfast",  # 1.5 × the time of ultrafast, 0.4 × its bytes, and B-frames
        "crf": str(quality),
        "forced-idr": "1",  # each key frame that is asked for can be started at
        "x264-params": x264_params,
    }
    stream = container.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height = width, height
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1  # more threads make other bytes
    return stream


def add_aac(container: OutputContainer, sample_rate: int, layout: str) -> av.AudioStream:
    """Adds a stream of AAC."""
    # fast: 12 ms for 2.8 s at 44.1 kHz, where the default coder, twoloop, takes 41 ms.
    options = {"aac_coder": "fast"}
    stream = container.add_stream("aac", rate=sample_rate, layout=layout, options=options)
    stream.bit_rate = AAC_BITS_PER_SAMPLE * sample_rate * len(stream.layout.channels)
    return stream
