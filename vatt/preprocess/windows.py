"""Windows of media and arrays at fixed times.

Either a few windows are evenly spread over a file, whose vector is then their mean, or windows
slide over the whole file. Past the end, the last frame repeats and sound is zero, as in training.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vatt.config.geometry import AudioGeometry, AudioWindow, VideoGeometry, VideoWindow
from vatt.errors import MediaError, UserError
from vatt.media.clip import Clip
from vatt.media.streams import TIME_TOLERANCE_SECONDS
from vatt.preprocess.arrays import Dubbed, Frames, Media, name_of, read_duration
from vatt.preprocess.view import read_view


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """Plan of the windows that a model reads, as plain data that can be sent to processes.

    Args:
        video: Geometry of video in a window. None: no video is read.
        audio: Geometry of audio in a window. None: no audio is read.
        window_seconds: Length of a window.
        hop_seconds: Time from the start of one sliding window to the next.
    """

    video: VideoGeometry | None
    audio: AudioGeometry | None
    window_seconds: float
    hop_seconds: float

    def spread_starts(self, duration_seconds: float, count: int) -> list[float]:
        """Starts of evenly spread windows in seconds; no more windows than cover the file."""
        needed = math.ceil(duration_seconds / self.window_seconds - TIME_TOLERANCE_SECONDS)
        if self.video is not None:
            rate = self.video.frame_rate
        else:
            assert self.audio is not None  # plan_windows refuses a plan without both
            rate = self.audio.sample_rate
        num_available = max(1, round(duration_seconds * rate))
        window, count = round(self.window_seconds * rate), max(1, min(count, needed))
        return [start / rate for start in evaluation_windows(num_available, window, count)]

    def sliding_starts(self, duration_seconds: float) -> list[float]:
        """Starts at a distance of `hop_seconds`, until a window reaches the end; at least one."""
        beyond = duration_seconds - self.window_seconds - TIME_TOLERANCE_SECONDS
        count = max(1, math.ceil(beyond / self.hop_seconds) + 1)
        starts = [place * self.hop_seconds for place in range(count)]
        return [start for start in starts if not start or start < duration_seconds]

    def read(self, media: Media, start_seconds: float) -> Clip:
        """Reads the window that starts at `start_seconds`.

        Raises:
            MediaError: the file is unreadable, damaged at these times, or has no picture or sound.
        """
        clip = self._read(media, start_seconds)
        if isinstance(self.video, VideoWindow) and not self.video.is_padded:
            parts = (clip.video_coverage, self.video), (clip.audio_coverage, self.audio)
            left_seconds = self.window_seconds
            if any(geometry and coverage < 1 for coverage, geometry in parts):
                left_seconds = read_duration(media) - start_seconds
            if TIME_TOLERANCE_SECONDS < left_seconds < self.window_seconds:
                shorter = self._of_length(left_seconds)._read(media, start_seconds)
                return replace(clip, video=shorter.video, audio=shorter.audio)
        elif isinstance(self.audio, AudioWindow) and not self.audio.is_padded:
            return without_padding(clip)
        return clip

    def _of_length(self, seconds: float) -> "WindowPlan":
        return replace(
            self,
            video=self.video and self.video.of_length(seconds),
            audio=self.audio and self.audio.of_length(seconds),
            window_seconds=seconds,
        )

    def _read(self, media: Media, start_seconds: float) -> Clip:
        """Reads the whole window; see `read`."""
        if isinstance(media, Frames):
            assert self.video is not None
            return media.read(start_seconds, self.video)
        if isinstance(media, Dubbed):
            sound = replace(self, video=None)._read_part(media.audio, start_seconds)
            picture = replace(self, audio=None)._read_part(media.video, start_seconds)
            return replace(picture, audio=sound.audio, audio_coverage=sound.audio_coverage)
        return read_view(media, start_seconds=start_seconds, video=self.video, audio=self.audio)

    def _read_part(self, media: Media, start_seconds: float) -> Clip:
        """Reads a window of one of two files; one that starts past its end has nothing in it."""
        if 0 < read_duration(media) <= start_seconds:
            return Clip(
                video=None,
                audio=None,
                video_coverage=0.0,
                audio_coverage=0.0,
                start_seconds=start_seconds,
            )
        return self._read(media, start_seconds)

    def read_spread(self, media: Media, modalities: Sequence[str], count: int) -> Iterator[Clip]:
        """Reads evenly spread windows; leaves out those in which one of the modalities is missing.

        Raises:
            MediaError: the file cannot be read, or none of the windows has the modalities.
        """
        is_empty = True
        for start_seconds in self.spread_starts(read_duration(media), count):
            clip = self.read(media, start_seconds)
            if all(clip.coverage(modality) > 0 for modality in modalities):
                is_empty = False
                yield clip
        if is_empty and not isinstance(media, Frames):  # Frames have a picture in every window
            names = {"video": "picture", "audio": "sound"}
            what = " with ".join(names[modality] for modality in modalities)
            raise MediaError(
                name_of(media), f"has no {what} in any of its windows: raise num_windows"
            )


def without_padding(clip: Clip) -> Clip:
    """The clip without the zeros past the end of its sound; at least one sample stays."""
    if clip.audio is None or clip.audio_coverage == 1:
        return clip
    covered = round(clip.audio_coverage * len(clip.audio))  # wherever in the window they are
    sounding = clip.audio.nonzero()
    end = int(sounding[-1]) + 1 if len(sounding) else 0
    return replace(clip, audio=clip.audio[: max(1, covered, end)].clone())


class Geometry(Protocol):
    """Sizes of a model's windows: a `VATTConfig`, or an `Encoder` of any model."""

    @property
    def media_modalities(self) -> tuple[str, ...]:
        """`video`, `audio` or both."""

    @property
    def video(self) -> VideoGeometry | None:
        """Geometry of video; None if the model has none."""

    @property
    def audio(self) -> AudioGeometry | None:
        """Geometry of audio; None if the model has none."""


def plan_windows(
    geometry: Geometry,
    modalities: Iterable[str],
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
) -> WindowPlan:
    """Plan of windows for a model.

    Args:
        geometry: Sizes of the model's own windows.
        modalities: `video`, `audio` or both.
        window_seconds: Length of a window, rounded to whole patches. None: as in training.
        hop_seconds: Time from the start of one window to the next. None: the length of a window.

    Raises:
        UserError: a time is not positive, the model lacks a modality, or a modality is text.
    """
    names = tuple(modalities)
    if not geometry.media_modalities:
        raise UserError("this model has only text, and media have windows: choose another model")
    if not names or {*names} - {*geometry.media_modalities}:
        raise UserError(
            f"windows are of {' and '.join(geometry.media_modalities)} in this "
            f"model, got {', '.join(map(repr, names)) or 'none'}"
        )
    for name, value in (("window_seconds", window_seconds), ("hop_seconds", hop_seconds)):
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} must be above 0 and finite, got {value}")
    video = geometry.video if "video" in names else None
    audio = geometry.audio if "audio" in names else None
    if window_seconds is not None:
        video = video and video.of_length(window_seconds)
        audio = audio and audio.of_length(window_seconds)
    seconds = max(one.duration_seconds for one in (video, audio) if one is not None)
    hop = seconds if hop_seconds is None else hop_seconds
    return WindowPlan(video=video, audio=audio, window_seconds=seconds, hop_seconds=hop)


def evaluation_windows(num_available: int, window: int, count: int) -> list[int]:
    """Starts of windows that are evenly spread over a sequence, from its start to its end.

    Args:
        num_available: Frames or samples of the sequence.
        window: Frames or samples that a window spans, frames × stride.
        count: Number of windows; a single one is in the middle.

    Returns:
        Indices of the first frames, ascending; all 0 if the sequence is not longer than a window.

    Raises:
        ValueError: a number is below 1.

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


def looped(num_available: int, count: int, stride: int = 1) -> Tensor:
    """Indices of the frames of a window, int64 `[count]`; a sequence that is too short repeats."""
    return torch.arange(count) * stride % num_available
