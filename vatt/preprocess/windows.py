"""Media and arrays → windows of a model's length, without any randomness.

Two ways to lay windows over a file: a few that are evenly spread, whose mean stands for the file,
or a row of them that slides over all of it. Past the end of what there is the last frame repeats
and sound is zero, as in training.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.config.model import VATTConfig
from vatt.errors import UserError
from vatt.media.clip import Clip
from vatt.media.streams import TIME_TOLERANCE_SECONDS
from vatt.preprocess.arrays import Frames, Media
from vatt.preprocess.view import read_view


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Windows of one model; plain data, so that worker processes can be told of it.

    Args:
        video: Geometry of a window's picture; None reads none.
        audio: Geometry of a window's sound; None reads none.
        window_seconds: Time that a window spans.
        hop_seconds: From the start of one window to that of the next, where they slide.
    """

    video: VideoConfig | None
    audio: AudioConfig | None
    window_seconds: float
    hop_seconds: float

    def spread_starts(self, duration_seconds: float, count: int) -> list[float]:
        """Starts of windows that are evenly spread, no more than it takes to see everything."""
        needed = math.ceil(duration_seconds / self.window_seconds - TIME_TOLERANCE_SECONDS)
        shape = self.video if self.video is not None else self.audio
        assert shape is not None
        rate = shape.frame_rate if isinstance(shape, VideoConfig) else shape.sample_rate
        return evaluation_starts(
            duration_seconds, self.window_seconds, max(1, min(count, needed)), rate
        )

    def sliding_starts(self, duration_seconds: float) -> list[float]:
        """Starts `hop_seconds` apart, until a window reaches the end; at least one."""
        beyond = duration_seconds - self.window_seconds - TIME_TOLERANCE_SECONDS
        count = max(1, math.ceil(beyond / self.hop_seconds) + 1)
        starts = [place * self.hop_seconds for place in range(count)]
        return [start for start in starts if not start or start < duration_seconds]

    def read(self, media: Media, start_seconds: float) -> Clip:
        """Reads a window.

        Raises:
            MediaError: the file is unreadable, damaged in this place, or has nothing of this kind.
        """
        if isinstance(media, Frames):
            assert self.video is not None
            return media.read(start_seconds, self.video)
        return read_view(media, start_seconds=start_seconds, video=self.video, audio=self.audio)


def plan_windows(
    config: VATTConfig,
    modalities: Iterable[str],
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
) -> WindowPlan:
    """Windows for a model.

    Args:
        config: Of the model.
        modalities: `video`, `audio` or both.
        window_seconds: None: as in training. Others are rounded to whole patches.
        hop_seconds: None: one window follows the other.

    Raises:
        UserError: a time that is not positive, or a modality that the model lacks or that has no
            windows.
    """
    names = tuple(modalities)
    unknown = [name for name in names if name not in {"video", "audio"} & {*config.modalities}]
    if unknown or not names:
        raise UserError(
            f"windows are of {' and '.join(m for m in config.modalities if m != 'text')} in this "
            f"model, got {', '.join(map(repr, names)) or 'none'}"
        )
    for name, value in (("window_seconds", window_seconds), ("hop_seconds", hop_seconds)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be above 0 and finite, got {value}")
    video = config.video if "video" in names else None
    audio = config.audio if "audio" in names else None
    if window_seconds is not None:
        video = video and _lasting(video, window_seconds)
        audio = audio and _resounding(audio, window_seconds)
    seconds = max(one.duration_seconds for one in (video, audio) if one is not None)
    hop = seconds if hop_seconds is None else hop_seconds
    return WindowPlan(video=video, audio=audio, window_seconds=seconds, hop_seconds=hop)


def _lasting(video: VideoConfig, seconds: float) -> VideoConfig:
    patch = video.patch_size[0]
    return replace(video, num_frames=max(1, round(seconds * video.frame_rate / patch)) * patch)


def _resounding(audio: AudioConfig, seconds: float) -> AudioConfig:
    patch = audio.patch_size
    if audio.spectrogram is not None:
        patch = audio.spectrogram.patch_size[0] * audio.spectrogram.hop_samples
    return replace(audio, num_samples=max(1, round(seconds * audio.sample_rate / patch)) * patch)


def evaluation_windows(num_available: int, window: int, count: int) -> list[int]:
    """Where windows start that are evenly spread over a sequence, from its start to its end.

    Args:
        num_available: Frames or samples of the sequence.
        window: Frames or samples that a window spans, frames × stride.
        count: Windows; one lies in the middle.

    Returns:
        Indices of the first frames, rising; all 0 where the sequence is not longer than a window.

    Raises:
        ValueError: a number below 1.

    Source: `sample_linspace_sequence` and `sample_sequence` of DMVR, which the official code calls:
    linspace in float32, truncated.
    """
    if min(num_available, window, count) < 1:
        raise ValueError(
            "num_available, window and count must be at least 1, got "
            f"{num_available}, {window} and {count}"
        )
    slack = max(0, num_available - window)
    if count == 1:
        return [slack // 2]
    step = np.float32(slack) / np.float32(count - 1)
    starts = (np.arange(count, dtype=np.float32) * step).astype(np.int64)
    return [*np.minimum(starts[:-1], slack).tolist(), slack]


def evaluation_starts(
    duration_seconds: float, window_seconds: float, count: int, rate: float
) -> list[float]:
    """The same in seconds, on the grid of a rate.

    Args:
        duration_seconds: Of the file.
        window_seconds: That a window spans.
        count: Windows.
        rate: Frames or samples per second that are counted.

    Raises:
        UserError: a window shorter than one frame or sample, or no windows.
    """
    num_available = max(1, round(duration_seconds * rate))
    starts = evaluation_windows(num_available, round(window_seconds * rate), count)
    return [start / rate for start in starts]


def looped(start: int, num_available: int, count: int, stride: int = 1) -> list[int]:
    """Indices of a window's frames; after the sequence's last frame comes its first again."""
    return [(start + place * stride) % num_available for place in range(count)]
