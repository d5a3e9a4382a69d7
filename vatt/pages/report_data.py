"""The data of a report, as plain arrays and paths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class AttributeConfusion:
    """How often each value of an attribute was answered by each value.

    Args:
        values: The attribute's values, sorted.
        counts: int64 `[values, values]`: rows are values asked for, columns the best candidate's.
    """

    values: tuple[str, ...]
    counts: Tensor

    @property
    def accuracy(self) -> float:
        """Percent of queries whose best candidate has the attribute right."""
        return 100.0 * float(self.counts.diagonal().sum()) / max(int(self.counts.sum()), 1)

    @property
    def shares(self) -> list[list[float]]:
        """Percent of each row."""
        counts = self.counts.double()
        return (100 * counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).tolist()


@dataclass(frozen=True, kw_only=True)
class ReportClip:
    """A clip that the report shows and plays.

    Args:
        title: A short name, "red ring, growing".
        caption: The sentence of this clip's row in `ReportData.similarity["text_to_video"]`.
        media: The mp4 file (H.264, AAC); small, since it goes into the page.
        attributes: Values of `ReportData.attributes`, or nothing.
    """

    title: str
    caption: str
    media: Path
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttentionExample:
    """The AGG token's attention in a clip.

    Args:
        title: A short name.
        frames: uint8 `[T, H, W, 3]`, as the model saw them.
        attention: float `[T', H', W']`, a weight for each video token; T' divides T.
    """

    title: str
    frames: np.ndarray
    attention: np.ndarray

    @property
    def peak(self) -> float:
        """The largest weight as a multiple of an even share."""
        return float(self.attention.max()) / max(float(self.attention.mean()), 1e-12)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Content of a report. Empty parts are left out of the page.

    Args:
        title: The heading.
        metrics: The content of `metrics.json`: for each direction `R@1`, `R@5`, `R@10` (percent),
            `MedR` and perhaps `ceiling`; `oracles`, percent by name; `seconds` by stage;
            `num_candidates`; `seed`; `linear_evaluation`, as `vatt.demo.linear` gives it.
        about: A sentence or two on the clips: what they are, what was held out of training, and
            over what the metrics are averaged.
        history: Rows of the CSV log in order: `step` and any of the logged metrics. Cells that are
            empty or absent are skipped, so `csv.DictReader` gives it.
        clips: One gallery, one clip for each candidate.
        similarity: float `[n, n]` by direction, `text_to_video` or `audio_to_video`: row = the
            text or sound of clip i, column = clip j. Rows may be NaN; those of the sound of silent
            clips are ignored.
        spaces: For each common space, `va`, `vt` or any name, the embeddings of the clips by
            modality ("video", "audio", "text"), float `[n, D]`; rows of NaN or zeros for clips that
            lack the modality.
        attention: Clips with the AGG token's attention.
        confusions: Attributes of the best candidates, by direction and attribute.
        control: Metrics by direction of the same model trained with shuffled captions.
        attributes: Names of a clip's attributes.
        audible: Names of the attributes that sound can tell.
        config: The configuration of the run, nested.
        versions: Version by package or program.
    """

    title: str
    metrics: Mapping[str, Any]
    about: str = ""
    history: Sequence[Mapping[str, Any]] = ()
    clips: Sequence[ReportClip] = ()
    similarity: Mapping[str, np.ndarray] = field(default_factory=dict)
    spaces: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    attention: Sequence[AttentionExample] = ()
    confusions: Mapping[str, Mapping[str, AttributeConfusion]] = field(default_factory=dict)
    control: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    audible: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses matrices, embeddings and attributes that do not belong to the clips."""
        num_clips = len(self.clips)
        for direction, values in self.similarity.items():
            if direction not in ("text_to_video", "audio_to_video"):
                raise ValueError(
                    f"similarity is of 'text_to_video' or 'audio_to_video', got {direction!r}"
                )
            if values.shape != (num_clips, num_clips) or not num_clips:
                raise ValueError(
                    f"similarity {direction!r} of {num_clips} clips must be "
                    f"[{num_clips}, {num_clips}], got {tuple(values.shape)}"
                )
        for space, modalities in self.spaces.items():
            for modality, points in modalities.items():
                if len(points) != num_clips or not num_clips:
                    raise ValueError(
                        f"space {space!r} needs a row for each of {num_clips} clips, "
                        f"got {len(points)} of {modality}"
                    )
        lengths = {len(clip.attributes) for clip in self.clips}
        if len(lengths) > 1 or lengths - {0, len(self.attributes)}:
            raise ValueError(f"all clips need a value for each of {self.attributes}, or none")

    def sound_alike(self, one: int, other: int) -> bool:
        """Whether two clips share all attributes that sound can tell."""
        pairs = zip(
            self.attributes, self.clips[one].attributes, self.clips[other].attributes, strict=False
        )
        heard = [a == b for name, a, b in pairs if name in self.audible]
        return bool(heard) and all(heard)
