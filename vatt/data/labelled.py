"""Labelled clips: random clips of each file for training, fixed views for evaluation."""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vatt.batch import LabelledBatch
from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig, VideoConfig
from vatt.data.clips import Durations, named_errors, place_window
from vatt.data.draws import Purpose, SampleRef, draw_uniforms, draw_view, name_seeds
from vatt.data.failures import ReadCounts, read_or_replace
from vatt.data.labelled_files import LabelledFile, LabelledFiles
from vatt.errors import MediaError
from vatt.media.clip import Clip, probe
from vatt.preprocess.evaluation_views import read_audio_views, read_video_views
from vatt.preprocess.view import read_view
from vatt.preprocess.windows import looped
from vatt.shards.record import Segment

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClassifierInput:
    """Input of a classifier: picture or sound.

    Args:
        video: Geometry of the picture; None: the classifier reads sound.
        audio: Geometry of the sound; None: the classifier reads pictures.
        num_classes: Width of the labels.
    """

    video: VideoConfig | None
    audio: AudioConfig | None
    num_classes: int

    @property
    def window_seconds(self) -> float:
        """Length of a clip in seconds."""
        geometry = self.video or self.audio
        assert geometry is not None
        return geometry.duration_seconds

    def batch(
        self, rows: Sequence[tuple[LabelledFile, Tensor | None]], num_views: int
    ) -> LabelledBatch:
        """Batch of some files.

        Args:
            rows: Files with their views `[num_views, …]`, or None if a file cannot be read.
            num_views: Views per file, `V`.

        Returns:
            Batch with uint8 video `[B · V, T, H, W, C]` or float32 audio `[B · V, S]`, its mask,
            labels and keys.
        """
        blank = self._blank(num_views)
        pixels = torch.cat([blank if views is None else views for _, views in rows])
        mask = torch.tensor([views is not None for _, views in rows]).repeat_interleave(num_views)
        labels = torch.zeros(len(rows), self.num_classes)
        for row, (file, _) in enumerate(rows):
            labels[row, list(file.labels)] = 1.0
        name = "audio" if self.video is None else "video"
        seen: dict[str, Any] = {name: pixels, f"{name}_mask": mask}
        return LabelledBatch(
            **seen,
            labels=labels.repeat_interleave(num_views, dim=0),
            keys=tuple(file.key for file, _ in rows for _ in range(num_views)),
            num_views=num_views,
        )

    def _blank(self, num_views: int) -> Tensor:
        if self.video is not None:
            size = self.video.image_size
            return torch.zeros(num_views, self.video.num_frames, size, size, 3, dtype=torch.uint8)
        assert self.audio is not None
        return torch.zeros(num_views, self.audio.num_samples)


@dataclass(eq=False, repr=False)
class LabelledClips(Dataset[tuple[LabelledFile, Tensor]]):
    """Training clips: a random window of each file, a random view of its picture.

    A file shorter than a window is looped from its start, as in evaluation.

    Args:
        files: The files.
        classifier_input: The part of each file that is read.
        seed: Seed of the draws.
        augment: Random views; colours and noise are changed later, on the device.
        max_failure_rate: Share of unreadable files above which reading stops.
    """

    files: LabelledFiles
    classifier_input: ClassifierInput
    _: KW_ONLY
    seed: int
    augment: AugmentConfig
    max_failure_rate: float

    def __post_init__(self) -> None:
        """Allocates memory that processes share."""
        self.counts = ReadCounts(self.max_failure_rate, len(self.files))
        self._durations = Durations(len(self.files))

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, ref: SampleRef) -> tuple[LabelledFile, Tensor]:
        """A clip `[1, …]` of the file of a reference, or of its replacement.

        Raises:
            TooManyFailuresError: more files are unreadable than allowed.
        """
        return read_or_replace(ref, len(self), self._read, self.counts)

    def __getitems__(self, refs: list[SampleRef]) -> LabelledBatch:
        """Batch of some references."""
        batch = self.classifier_input.batch([self[ref] for ref in refs], num_views=1)
        return dataclasses.replace(batch, seeds=name_seeds(refs, seed=self.seed))

    def _read(self, ref: SampleRef, attempt: int) -> tuple[LabelledFile, Tensor]:
        file = self.files[ref.sample_index]
        names = (self.seed, ref.set_index, ref.sample_index, ref.epoch, attempt)
        draws = draw_uniforms(*names, Purpose.LABELLED_CLIP, np.arange(7)).tolist()
        with named_errors(str(file.path)):
            duration = self._durations.seconds(
                ref.sample_index, lambda: probe(file.path, quick=True).duration_seconds
            )
            end = min(file.end_seconds, duration)
            part = Segment(file.start_seconds, end, "")
            start = file.start_seconds
            if end - start > self.classifier_input.window_seconds:
                start = place_window(part, duration, self.classifier_input.window_seconds, draws[0])
            clip = read_view(
                file.path,
                start_seconds=start,
                video=self.classifier_input.video,
                audio=self.classifier_input.audio,
                view=draw_view(self.augment, draws[1:]),
            )
            return file, self._looped(clip, end - start)[None]

    def _looped(self, clip: Clip, available_seconds: float) -> Tensor:
        """Repeats picture or sound from its start after its end."""
        window, kind, coverage = clip.video, "picture", clip.video_coverage
        if self.classifier_input.video is None:
            window, kind, coverage = clip.audio, "sound", clip.audio_coverage
        if window is None or coverage == 0:
            raise MediaError("", f"has no {kind} at {clip.start_seconds:g} s")
        share = available_seconds / self.classifier_input.window_seconds
        num_available = max(1, round(share * len(window)))
        if num_available >= len(window):
            return window
        return window[looped(num_available, len(window))]


@dataclass(eq=False, repr=False)
class LabelledViews(Dataset[tuple[LabelledFile, Tensor | None]]):
    """Evaluation: all fixed views of every file.

    A file that cannot be read gives rows whose mask is False, and a warning that names it.

    Args:
        files: The files.
        classifier_input: The part of each file that is read.
        num_windows: Windows, evenly spread in time.
        num_crops: Crops of each window's pictures, 1 or 3.
    """

    files: LabelledFiles
    classifier_input: ClassifierInput
    _: KW_ONLY
    num_windows: int
    num_crops: int

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[LabelledFile, Tensor | None]:
        """A file and its views `[V, …]`, or None if it cannot be read."""
        file = self.files[index]
        try:
            with named_errors(str(file.path)):
                return file, self._read(file)
        except MediaError as error:
            logger.warning("left out of the evaluation: %s", error)
            return file, None

    def __getitems__(self, indices: list[int]) -> LabelledBatch:
        """Batch of some files."""
        num_views = self.num_windows * (
            1 if self.classifier_input.video is None else self.num_crops
        )
        return self.classifier_input.batch([self[index] for index in indices], num_views)

    def _read(self, file: LabelledFile) -> Tensor:
        video, audio = self.classifier_input.video, self.classifier_input.audio
        windows: dict[str, Any] = {
            "num_windows": self.num_windows,
            "start_seconds": file.start_seconds,
            "end_seconds": file.end_seconds,
        }
        if video is not None:
            return read_video_views(file.path, video, num_crops=self.num_crops, **windows)
        assert audio is not None
        return read_audio_views(file.path, audio, **windows)
