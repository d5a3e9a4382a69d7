"""The report of a run: one HTML file that needs no network, with charts and clips that play.

`ReportData` is all that it takes, as plain arrays and paths; `write_report` makes the page. The
page's frame is `report.html`, its look `report.css`, its behaviour `report_charts.js` and
`report.js`; what needs no script is written by `vatt.report_sections` and `vatt.report_clips`,
pictures and sound by `vatt.report_media`.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from vatt.evaluate import ATTRIBUTES, AUDIBLE_ATTRIBUTES, AttributeConfusion
from vatt.files import write_atomically
from vatt.media import MediaInfo, probe
from vatt.report_clips import Example, examples_of
from vatt.report_media import project_to_plane, read_poster, read_spectrogram
from vatt.report_sections import CARDS, render_sections

MEDIA_BUDGET_BYTES = 9_000_000  # of clips; base64 makes 4 bytes of 3: the page stays below 15 MB
MAX_POINTS = 400  # of a curve: more than the pixels of a chart's half width shows no more
MISSING_LEVEL = 65535  # of a similarity that is not a number


@dataclass(frozen=True, kw_only=True)
class ReportClip:
    """A clip that the report shows and plays.

    Args:
        title: A short name, "red ring, growing".
        caption: The sentence of this clip's row in `ReportData.similarity["text_to_video"]`.
        media: The mp4 file (H.264, AAC); small, since it goes into the page.
        attributes: Its values of `ReportData.attributes`, or nothing.
    """

    title: str
    caption: str
    media: Path
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AttentionExample:
    """Where the AGG token looks in a clip.

    Args:
        title: A short name.
        frames: uint8 `[T, H, W, 3]`, as the model saw them.
        attention: float `[T', H', W']`, a weight for each video token; T' divides T.
    """

    title: str
    frames: np.ndarray
    attention: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """All that a report shows. What is empty is left out of the page.

    Args:
        title: The heading.
        metrics: The content of `metrics.json`: for each direction `R@1`, `R@5`, `R@10` (percent),
            `MedR` and perhaps `ceiling`; `oracles`, percent by name; `seconds` by stage;
            `num_candidates`; `seed`; `linear_evaluation`, as `vatt.demo_linear` gives it.
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
        confusions: What the best candidate has right, by direction and attribute.
        control: Metrics by direction of the same model trained with shuffled captions.
        attributes: Names of a clip's attributes.
        audible: Those that sound can tell.
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
    attributes: tuple[str, ...] = ATTRIBUTES
    audible: tuple[str, ...] = AUDIBLE_ATTRIBUTES
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


def write_report(path: Path, data: ReportData) -> None:
    """Writes the page; it appears whole or not at all.

    Raises:
        MediaError: a clip that cannot be read.
        OSError: the file cannot be written.
    """
    infos = [probe(clip.media) for clip in data.clips]
    data = replace(data, similarity=_without_silent_queries(data.similarity, infos))
    examples = examples_of(data.similarity)
    payload = {
        "attributes": data.attributes,
        "clips": _clips(data.clips, infos, examples),
        "charts": _charts(data.history),
        "maps": {name: _heat_map(values) for name, values in data.similarity.items()},
        "spaces": [_space(modalities) for modalities in data.spaces.values()],
    }
    page = Template(_read_part("report.html")).substitute(
        title=escape(data.title),
        style=_read_part("report.css"),
        sections=render_sections(data, examples),
        payload=_to_json(payload),
        script=_read_part("report_charts.js") + _read_part("report.js"),
    )
    write_atomically(Path(path), page.encode("utf-8"))


def _without_silent_queries(
    similarity: Mapping[str, np.ndarray], infos: Sequence[MediaInfo]
) -> dict[str, np.ndarray]:
    silent = np.array([not info.has_audio for info in infos], dtype=bool)
    cleaned = dict(similarity)
    if "audio_to_video" in cleaned:
        values = cleaned["audio_to_video"].astype(np.float64)
        values[silent] = np.nan
        cleaned["audio_to_video"] = values
    return cleaned


def _read_part(name: str) -> str:
    return (resources.files("vatt") / name).read_text(encoding="utf-8")


def _to_json(values: Any) -> str:
    # "<" could end the script element that carries the text.
    return json.dumps(values, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _clips(
    clips: Sequence[ReportClip],
    infos: Sequence[MediaInfo],
    examples: Mapping[str, Sequence[Example]],
) -> list[dict[str, Any]]:
    """Each clip once; the examples' media first, then as many others as the budget lets in."""
    needed = [clip for group in examples.values() for e in group for clip, _ in e.results]
    playable, budget = set(), MEDIA_BUDGET_BYTES
    for number in dict.fromkeys([*needed, *range(len(clips))]):
        budget -= clips[number].media.stat().st_size
        if budget >= 0:
            playable.add(number)
    return [
        _clip(clip, info, number in playable)
        for number, (clip, info) in enumerate(zip(clips, infos, strict=True))
    ]


def _clip(clip: ReportClip, info: MediaInfo, is_playable: bool) -> dict[str, Any]:
    media = base64.b64encode(clip.media.read_bytes()).decode("ascii") if is_playable else None
    return {
        "title": clip.title,
        "caption": clip.caption,
        "attributes": clip.attributes,
        "poster": read_poster(clip.media, info) if info.has_video else None,
        "spectrogram": read_spectrogram(clip.media, info) if info.has_audio else None,
        "media": media,
    }


def _charts(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curves that the log holds; a chart without any is left out."""
    pairs = {"video_text": ("video–text", "text"), "video_audio": ("video–audio", "audio")}
    lines = {
        name: (arrow, hue, name.startswith("video")) for name, (_, arrow, hue) in CARDS.items()
    }
    losses = {f"train/loss_{pair}": (*names, False) for pair, names in pairs.items()}
    hits = {f"train/accuracy_{pair}": (*names, False) for pair, names in pairs.items()}
    recalls = {f"val/{name}/R@1": line for name, line in lines.items()}
    medians = {f"val/{name}/MedR": line for name, line in lines.items()}
    charts = (
        ("Loss of each pair", "NCE and MIL-NCE on the training batches", losses, "number"),
        ("R@1 on the validation set", "percent found at the first place", recalls, "percent"),
        ("Accuracy inside the batch", "share of clips that beat their negatives", hits, "share"),
        ("Median rank on the validation set", "1 is perfect", medians, "number"),
    )
    drawn = []
    for title, note, curves, unit in charts:
        series = [
            {"name": name, "hue": hue, "dashed": dashed, "points": points}
            for key, (name, hue, dashed) in curves.items()
            if (points := _curve(history, key))
        ]
        if series:
            drawn.append({"title": title, "note": note, "unit": unit, "series": series})
    return drawn


def _curve(history: Iterable[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Steps and values of one metric, averaged over neighbours where there are too many."""
    points = [
        (float(row["step"]), float(row[key]))
        for row in history
        if row.get(key) not in (None, "") and math.isfinite(float(row[key]))
    ]
    stride = math.ceil(len(points) / MAX_POINTS) or 1
    means = (np.mean(points[i : i + stride], axis=0) for i in range(0, len(points), stride))
    return [(round(float(step), 1), float(f"{value:.5g}")) for step, value in means]


def _heat_map(values: np.ndarray) -> dict[str, Any]:
    """Values as little-endian uint16 between the lowest and the highest."""
    known = np.isfinite(values)
    finite = values[known] if known.any() else np.zeros(1)
    low, high = float(finite.min()), float(finite.max())
    share = np.where(known, values - low, 0.0) / max(high - low, 1e-12)
    levels = np.where(known, (share * (MISSING_LEVEL - 1)).round(), MISSING_LEVEL).astype("<u2")
    return {
        "levels": base64.b64encode(levels.tobytes()).decode("ascii"),
        "low": low,
        "high": high,
        "pale": float(np.quantile(finite, 0.02)),  # where colours begin: outliers waste none
    }


def _space(modalities: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Points of all modalities in one plane: as they lie, and without each modality's mean."""
    known = {
        name: np.isfinite(points).all(axis=1) & points.any(axis=1)
        for name, points in modalities.items()
    }
    points = {name: values[known[name]] for name, values in modalities.items() if known[name].any()}
    moved = {name: values - values.mean(axis=0) for name, values in points.items()}
    return {"as_is": _plane(points, known), "centred": _plane(moved, known)}


def _plane(points: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Places by modality, null where a clip lacks it."""
    if not points:
        return {"points": {}, "explained": (0.0, 0.0)}
    coordinates, explained = project_to_plane(np.concatenate(list(points.values())))
    places: dict[str, list[list[float] | None]] = {}
    start = 0
    for name, values in points.items():
        mine = iter(coordinates[start : start + len(values)].round(4).tolist())
        places[name] = [next(mine) if has_it else None for has_it in known[name]]
        start += len(values)
    return {"points": places, "explained": explained}
