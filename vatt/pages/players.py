"""Windows of media as small clips that every browser plays."""

import io
import tempfile
import wave
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from vatt.errors import MediaError
from vatt.media.clip import probe, read_frames, read_waveform
from vatt.media.source import MediaSource, source_name
from vatt.media.write_mp4 import write_mp4

SHORT_SIDE = 240  # pixels of a player, or fewer
MOST_RATE = 25.0  # frames/s
MOST_FRAMES = 250  # 10 s of these; longer windows play with fewer a second
LEAST_SECONDS = 0.1  # for a still image
MOST_SECONDS = 60.0  # of a window; the rest is cut off
SAMPLE_RATE = 32_000  # Hz


class Window(NamedTuple):
    """Picture and sound of a part of a file; None for a modality that it lacks.

    `frames` are uint8 `[T, H, W, 3]` at `frame_rate` frames per second, and `waveform` is float32
    `[S]` at `SAMPLE_RATE`.
    """

    frames: Tensor | None
    frame_rate: float
    waveform: Tensor | None

    def encode(self) -> bytes:
        """H.264 and AAC as mp4, or a mono wav file of 16-bit samples where there is no picture."""
        if self.frames is None:
            assert self.waveform is not None
            return _wav(self.waveform)
        height, width = (size // 2 * 2 for size in self.frames.shape[1:3])  # as H.264 wants them
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.mp4"
            frames = self.frames[:, :height, :width]
            rate, sound = self.frame_rate, self.waveform
            write_mp4(path, frames, rate, waveform=sound, sample_rate=SAMPLE_RATE)
            return path.read_bytes()


def read_window(
    source: MediaSource, start_seconds: float, end_seconds: float, short_side: int = SHORT_SIDE
) -> Window:
    """Reads only a window of a file, scaled down.

    Args:
        source: Media file.
        start_seconds: Start of the window.
        end_seconds: End of the window; at most `MOST_SECONDS` are read.
        short_side: Shorter side of the pictures in pixels, which are not enlarged.

    Raises:
        MediaError: the file cannot be read.
    """
    info = probe(source)
    seconds = min(end_seconds, info.duration_seconds) - start_seconds
    seconds = max(LEAST_SECONDS, min(seconds, MOST_SECONDS))
    frames = waveform = None
    if info.has_audio:
        num_samples = max(1, round(seconds * SAMPLE_RATE))
        waveform, _ = read_waveform(
            source, start_seconds=start_seconds, num_samples=num_samples, sample_rate=SAMPLE_RATE
        )
    rate = min(info.frame_rate or MOST_RATE, MOST_RATE, MOST_FRAMES / seconds)
    if info.has_video:
        frames, _ = read_frames(
            source,
            start_seconds=start_seconds,
            num_frames=max(1, round(seconds * rate)),
            frame_rate=rate,
            short_side=min(short_side, info.width or short_side, info.height or short_side),
        )
    if frames is None and waveform is None:
        raise MediaError(source_name(source), "has neither picture nor sound here")
    return Window(frames, rate, waveform)


def _wav(waveform: Tensor) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clamp(-1, 1) * 32767).round().numpy().astype("<i2").tobytes())
    return content.getvalue()
