"""Clips as rows of a batch: choice of time and captions, reading and collating."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vatt.batch import Batch
from vatt.config.geometry import AudioConfig, TextConfig, VideoConfig
from vatt.errors import MediaError
from vatt.media.clip import probe
from vatt.media.source import FileRange
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.view import CENTER, View, read_view
from vatt.shards.record import Record, Segment


@dataclass(frozen=True, kw_only=True)
class ClipSample:
    """One row of a batch.

    Args:
        key: Name of the record.
        sample_index: Index of the record in its set.
        video: uint8 `[T, H, W, C]`; None if the file has no picture at that time.
        audio: float32 `[S]`; None if the file has no sound at that time.
        text: int64 `[K, J]`, with rows of zeros if there are fewer captions.
    """

    key: str
    sample_index: int
    video: Tensor | None
    audio: Tensor | None
    text: Tensor


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Shapes of a sample.

    Args:
        video: Geometry of the picture.
        audio: Geometry of the sound.
        text: Geometry of a caption.
        num_candidates: Captions per clip, `K`.
    """

    video: VideoConfig
    audio: AudioConfig
    text: TextConfig
    num_candidates: int

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """Shape of a video clip, `(T, H, W, C)`."""
        return self.video.num_frames, self.video.image_size, self.video.image_size, 3

    @property
    def window_seconds(self) -> float:
        """Length of a clip: that of its video or its audio, whichever is longer."""
        return max(self.video.duration_seconds, self.audio.duration_seconds)


def collate(samples: Sequence[ClipSample], geometry: Geometry) -> Batch:
    """Batch of samples; zeros and a mask replace absent modalities.

    Returns:
        video uint8 `[B, T, H, W, C]`, audio float32 `[B, S]` in about [-1, 1], text int64
        `[B, K, J]`, masks bool `[B]` for video and audio, and the keys.
    """
    size = len(samples)
    video = torch.zeros(size, *geometry.video_shape, dtype=torch.uint8)
    audio = torch.zeros(size, geometry.audio.num_samples)
    for row, sample in enumerate(samples):
        if sample.video is not None:
            video[row] = sample.video
        if sample.audio is not None:
            audio[row] = sample.audio
    return Batch(
        video=video,
        audio=audio,
        text=torch.stack([sample.text for sample in samples]),
        video_mask=torch.tensor([sample.video is not None for sample in samples]),
        audio_mask=torch.tensor([sample.audio is not None for sample in samples]),
        keys=tuple(sample.key for sample in samples),
    )


def read_sample(
    record: Record,
    geometry: Geometry,
    tokenizer: Tokenizer | None,
    *,
    sample_index: int,
    start_seconds: float,
    captions: Sequence[str],
    view: View = CENTER,
) -> ClipSample:
    """Reads the clip of a record that starts at a given time.

    Raises:
        MediaError: the clip cannot be read, or the record has no media.
    """
    with media_of(record) as media:
        clip = read_view(
            media,
            start_seconds=start_seconds,
            video=geometry.video,
            audio=geometry.audio,
            view=view,
        )
    text = torch.zeros(geometry.num_candidates, geometry.text.max_words, dtype=torch.int64)
    if captions and tokenizer is not None:
        text[: len(captions)] = tokenizer.encode(captions, geometry.text.max_words)
    return ClipSample(
        key=record.key,
        sample_index=sample_index,
        video=clip.video if clip.video_coverage > 0 else None,
        audio=clip.audio if clip.audio_coverage > 0 else None,
        text=text,
    )


def nearest_segments(
    segments: Sequence[Segment], start_seconds: float, end_seconds: float, ties: NDArray[np.uint64]
) -> list[int]:
    """All segments, sorted by their distance in time from a window.

    Distance is the gap between segment and window, then that of their centres, then `ties`.
    """
    starts = np.array([segment.start_seconds for segment in segments])
    ends = np.array([segment.end_seconds for segment in segments])
    gap = np.maximum(np.maximum(starts - end_seconds, start_seconds - ends), 0)
    centre_distance = np.abs((starts + ends) / 2 - (start_seconds + end_seconds) / 2)
    return np.lexsort((ties, centre_distance, gap)).tolist()


def place_window(
    segment: Segment | None, duration_seconds: float, window_seconds: float, share: float
) -> float:
    """Start of a window that covers a segment, or lies inside a longer one, within the file.

    Args:
        segment: Segment. None: the window may be anywhere in the file.
        duration_seconds: Length of the file.
        window_seconds: Length of the window.
        share: Position in [0, 1] between the earliest (0) and the latest (1) such start.
    """
    first, last = 0.0, duration_seconds - window_seconds
    if segment is not None:
        end_seconds = min(segment.end_seconds, duration_seconds)
        first, last = sorted((segment.start_seconds, end_seconds - window_seconds))
    start_seconds = first + share * (last - first)
    return max(0.0, min(start_seconds, duration_seconds - window_seconds))


class Durations:
    """Lengths of files in seconds, each read only once for all epochs and processes.

    Args:
        size: Number of files.
    """

    def __init__(self, size: int) -> None:
        # float64, as read: a run must not change when a file is asked again
        self._known = torch.full((size,), torch.nan, dtype=torch.float64).share_memory_()

    def seconds(self, index: int, read: Callable[[], float]) -> float:
        """Length of a file in seconds; `read` reads it at first use."""
        known = float(self._known[index])
        if math.isnan(known):
            known = read()
            self._known[index] = known
        return known


def read_duration(record: Record) -> float:
    """Length of a record's file in seconds.

    Raises:
        MediaError: the file cannot be read, or the record has no media.
    """
    with media_of(record) as media:
        return probe(media, quick=True).duration_seconds


@contextmanager
def media_of(record: Record) -> Iterator[FileRange]:
    """Media of a record; errors name the record instead of a byte range.

    Raises:
        MediaError: the record has no media, or reading it failed.
    """
    name = f"{record.shard}:{record.key}"
    if record.media is None:
        raise MediaError(name, "has no media file")
    with named_errors(name):
        yield record.media


@contextmanager
def named_errors(name: str) -> Iterator[None]:
    """Context that names the source in the media errors of a block.

    Raises:
        MediaError: reading failed.
    """
    try:
        yield
    except MediaError as error:
        raise MediaError(name, error.reason) from error
