"""Sound and pictures of a file as FFmpeg's decode from its first packet gives them: the truth."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from vatt.media.opening import ANY_TEXT


def tune(num_samples: int, rate: int, seed: int = 0) -> np.ndarray:
    """Loud and quiet tones with noise, float32 in about [-0.6, 0.6]."""
    random = np.random.default_rng(seed)
    seconds = np.arange(num_samples) / rate
    pitch = 220 * 2 ** (np.floor(seconds * 3) % 5 / 5)
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / rate) * (0.1 + 0.4 * (np.floor(seconds * 2) % 2))
    return (tone + random.normal(0, 0.02, num_samples)).astype(np.float32)


def decoded(path: Path) -> tuple[np.ndarray, int, float]:
    """All sound of a file as one channel, its rate, and when it begins after the file's start."""
    with av.open(str(path), **ANY_TEXT) as container:
        stream = container.streams.audio[0]
        pieces, begin, rate = [], None, 0
        mix = None
        for frame in frames_of(container, stream):
            if begin is None:
                begin = (frame.time or 0.0) - (container.start_time or 0) / 1e6
            rate = frame.sample_rate
            mix = mix or av.AudioResampler("fltp", "mono", rate, options={"rematrix_maxval": "1"})
            pieces += [part.to_ndarray()[0] for part in mix.resample(frame)]
    return np.concatenate(pieces), rate, begin or 0.0


def frames_of(container: Any, stream: Any) -> Iterator[Any]:
    """What decodes; like the program ffmpeg, it passes over what does not."""
    with contextlib.suppress(av.error.FFmpegError):
        for packet in container.demux(stream):
            with contextlib.suppress(av.error.FFmpegError):
                yield from stream.codec_context.decode(packet)


def pictures(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time and small picture of each frame, in sequence; one without a time follows another."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        start = (container.start_time or 0) / 1e6
        times, shown = [], []
        for frame in frames_of(container, stream):
            times.append(None if frame.time is None else float(frame.time) - start)
            small = frame.reformat(32, 24, "rgb24", interpolation="AREA")
            shown.append(small.to_ndarray())
        step = 1 / float(stream.average_rate or 25)
        for place, time in enumerate(times):
            times[place] = time if time is not None else times[place - 1] + step if place else 0.0
    # AVI numbers H.264 in the order of storage, and decoders give pictures in that of display
    return list(zip(sorted(times), shown, strict=True))
