"""Data of a report, as plain arrays and paths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

SIMILARITIES = ("text_to_video", "audio_to_video", "text_to_audio")  # rows are queries


@dataclass(frozen=True)
class AttributeConfusion:
    """Confusion matrix of an attribute.

    Args:
        values: Values of the attribute, sorted.
        counts: int64 `[values, values]`: rows are wanted values, columns those of the best
            candidate.
    """

    values: tuple[str, ...]
    counts: Tensor

    @property
    def accuracy(self) -> float:
        """Percentage of queries whose best candidate has the right value."""
        return 100.0 * float(self.counts.diagonal().sum()) / max(int(self.counts.sum()), 1)

    @property
    def shares(self) -> list[list[float]]:
        """Counts as percentages of each row."""
        counts = self.counts.double()
        return (100 * counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).tolist()


@dataclass(frozen=True, kw_only=True)
class ReportClip:
    """Clip that the report shows and plays.

    Args:
        title: Short name, such as "red ring, growing".
        caption: Caption that is this clip's query in `ReportData.similarity["text_to_video"]`, or
            empty.
        media: Small mp4 file (H.264, AAC), or a wav file of a clip without picture, because the
            page contains it. None: it cannot be played.
        attributes: Values of `ReportData.attributes`, or empty.
    """

    title: str
    caption: str
    media: bytes | None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttentionExample:
    """Attention of the AGG token in a clip.

    Args:
        title: Short name.
        frames: uint8 `[T, H, W, 3]`, as the model gets them.
        attention: float `[T', H', W']`, weight of each video token; T' divides T.
    """

    title: str
    frames: np.ndarray
    attention: np.ndarray

    @property
    def peak(self) -> float:
        """Largest weight, relative to equal weights."""
        return float(self.attention.max()) / max(float(self.attention.mean()), 1e-12)


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Content of a report; empty parts are left out of the page.

    Args:
        title: Heading.
        metrics: Content of `metrics.json`: for each direction `R@1`, `R@5`, `R@10` (percent),
            `MedR`, `num_queries`, `num_candidates` and perhaps `ceiling`; `oracles`, percent by
            name; `seconds` by stage; `num_candidates`, where directions have none; and
            `linear_evaluation`, as `vatt.demo.linear` gives it.
        verdict: Sentence that says whether the model has learned more than chance.
        verdicts: Words on single directions, and R@1's 95 % interval in percent.
        notes: Sentences about parts that are left out.
        about: One or two sentences about the clips: their content, the combinations held out of
            training, and how the metrics are averaged.
        history: Rows of the csv log in order, such as those of `csv.DictReader`: `step` and logged
            metrics. Empty and absent cells are skipped.
        clips: Clips of one gallery, one per candidate.
        similarity: float `[n, n]` by one of `SIMILARITIES`: row i is the text or sound of clip i,
            column j is the picture or sound of clip j. NaN where a clip lacks the modality.
        spaces: Embeddings of the clips, float `[n, D]`, by common space (`va`, `vt` or any name)
            and modality ("video", "audio", "text"); rows of NaN or zeros if a clip lacks the
            modality.
        attention: Clips with the attention of the AGG token.
        confusions: Attributes of the best candidates, by direction and attribute.
        control: Metrics by direction of a model trained with shuffled captions.
        attributes: Names of the attributes.
        audible: Names of the attributes that can be heard.
        summary: The few facts at the top of the page.
        facts: Facts of the run by name, in groups with headings.
        listings: Long texts by heading, such as the configuration.
    """

    title: str
    metrics: Mapping[str, Any]
    verdict: str = ""
    verdicts: Mapping[str, tuple[str, tuple[float, float]]] = field(default_factory=dict)
    notes: Sequence[str] = ()
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
    summary: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    listings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses matrices, embeddings and attributes that do not belong to the clips."""
        num_clips = len(self.clips)
        for direction, values in self.similarity.items():
            if direction not in SIMILARITIES:
                raise ValueError(f"similarity is of {SIMILARITIES}, got {direction!r}")
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
        """Whether two clips have the same audible attributes."""
        pairs = zip(
            self.attributes, self.clips[one].attributes, self.clips[other].attributes, strict=False
        )
        heard = [a == b for name, a, b in pairs if name in self.audible]
        return bool(heard) and all(heard)
