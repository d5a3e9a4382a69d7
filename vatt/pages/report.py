"""Report of a run: one HTML file with charts and playable clips, which needs no network.

`write_report` makes the page of a `ReportData`. `report.html` is the template, `style.css` the
look, `report.js` the behaviour; `report_examples` chooses queries, and `pictures` paints pictures
and sound.
"""

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vatt.media.clip import MediaInfo, probe
from vatt.pages.pictures import (
    encode_jpeg,
    overlay_heat,
    project_to_plane,
    read_poster,
    read_spectrogram,
)
from vatt.pages.report_data import AttentionExample, ReportClip, ReportData
from vatt.pages.report_examples import NUM_RESULTS, Example, choose_examples, spread
from vatt.pages.templates import data_uri, write_html

CARDS = {  # heading, arrow, hue
    "text_to_video": ("A sentence finds its clip", "text → video", "text"),
    "video_to_text": ("A clip finds its sentence", "video → text", "text"),
    "audio_to_video": ("A sound finds its clip", "audio → video", "audio"),
    "video_to_audio": ("A clip finds its sound", "video → audio", "audio"),
    "text_to_audio": ("A sentence finds its sound", "text → audio", "video"),
    "audio_to_text": ("A sound finds its sentence", "audio → text", "video"),
}
MAX_WALL = 200  # clips shown together
MAX_FRAMES = 16  # frames shown of a clip with its attention
MEDIA_BUDGET_BYTES = 8_000_000  # of clips; base64 makes 4 bytes of 3: the page stays below 15 MB
MAX_POINTS = 400  # of a curve: about half the width of a chart in pixels


def write_report(path: Path, data: ReportData) -> None:
    """Writes the page of a report; an interrupted call leaves no partial file.

    Args:
        path: HTML file to write.
        data: Content of the report.

    Raises:
        MediaError: a clip cannot be read.
        OSError: the file cannot be written.
    """
    infos = [probe(clip.media) for clip in data.clips]
    data = replace(data, similarity=_without_silent_queries(data.similarity, infos))
    examples = {name: choose_examples(values) for name, values in data.similarity.items()}
    charts = _charts(data.history)
    seconds = data.metrics.get("seconds", {})
    seconds = {name: value for name, value in seconds.items() if name != "total" and value > 0}
    linear = data.metrics.get("linear_evaluation", {})
    metrics = json.dumps(data.metrics, indent=2, default=str)
    listings = {"Metrics": metrics}
    if data.config:
        listings["Configuration"] = json.dumps(data.config, indent=2, default=str)
    sections = (
        ("result", "Result", True),
        ("clips", "The candidates", data.clips),
        ("by-sentence", "Search by sentence", examples.get("text_to_video")),
        ("by-sound", "Search by sound", examples.get("audio_to_video")),
        ("training", "Training", charts or seconds),
        ("similarity", "Similarities", data.similarity),
        ("spaces", "Common spaces", data.spaces),
        ("attention", "Attention", data.attention),
        ("confusions", "Confusions", data.confusions),
        ("linear", "Linear classifiers", linear.get("rows")),
        ("run", "This run", True),
    )
    write_html(
        Path(path),
        "report.html",
        title=data.title,
        data=data,
        metrics=data.metrics,
        cards=CARDS,
        chances=_chances(data.metrics),
        sections={name: heading for name, heading, content in sections if content},
        examples=examples,
        num_results=NUM_RESULTS,
        wall=spread(np.arange(len(data.clips)), MAX_WALL),
        seconds=seconds,
        linear=linear,
        attention_frames=_attention_frames,
        listings=listings,
        metrics_uri=data_uri(metrics.encode(), "application/json"),
        payload={
            "attributes": data.attributes,
            "clips": _clips(data.clips, infos, examples),
            "charts": charts,
            "maps": {name: _heat_map(values) for name, values in data.similarity.items()},
            "spaces": [_space(modalities) for modalities in data.spaces.values()],
        },
    )


def _chances(metrics: Mapping[str, Any]) -> dict[str, float]:
    """R@1 of guessing by direction, in percent, where the number of candidates is known."""
    candidates = {
        name: metrics[name].get("num_candidates", metrics.get("num_candidates"))
        for name in CARDS
        if name in metrics
    }
    return {name: 100 / count for name, count in candidates.items() if count}


def _without_silent_queries(
    similarity: Mapping[str, np.ndarray], infos: Sequence[MediaInfo]
) -> dict[str, np.ndarray]:
    if "audio_to_video" not in similarity:
        return dict(similarity)
    has_audio = np.array([info.has_audio for info in infos])
    values = np.where(has_audio[:, None], similarity["audio_to_video"].astype(np.float64), np.nan)
    return {**similarity, "audio_to_video": values}


def _attention_frames(example: AttentionExample) -> Iterator[tuple[int, str, str]]:
    """Numbers of frames from 1, their pictures and the attention over them."""
    heat = overlay_heat(example.attention)
    num_frames = len(example.frames)
    for t in range(0, num_frames, math.ceil(num_frames / MAX_FRAMES)):
        frame = data_uri(encode_jpeg(example.frames[t]), "image/jpeg")
        yield t + 1, frame, heat[t * len(heat) // num_frames]


def _clips(
    clips: Sequence[ReportClip],
    infos: Sequence[MediaInfo],
    examples: Mapping[str, Sequence[Example]],
) -> list[dict[str, Any]]:
    """Each clip once; the examples' media first, then as many others as the budget lets in."""
    needed = [clip for group in examples.values() for e in group for clip, _ in e.results]
    numbers = list(dict.fromkeys([*needed, *range(len(clips))]))
    sizes = np.cumsum([clips[number].media.stat().st_size for number in numbers])
    playable = set(numbers[: np.searchsorted(sizes, MEDIA_BUDGET_BYTES, side="right")])
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
    """The curves in the log; a chart without any is left out."""
    pairs = {
        "video_text": ("video–text", "text", False),
        "video_audio": ("video–audio", "audio", False),
        "audio_text": ("audio–text", "video", False),
    }
    lines = {
        name: (arrow, hue, name.startswith("video") or name == "audio_to_text")
        for name, (_, arrow, hue) in CARDS.items()
    }
    # fmt: off
    charts = (
        ("Loss of each pair", "NCE and MIL-NCE on the training batches",
         "train/loss_{}", pairs, "number"),
        ("R@1 on the validation set", "percent found at the first place",
         "val/{}/R@1", lines, "percent"),
        ("Accuracy inside the batch", "share of clips that beat their negatives",
         "train/accuracy_{}", pairs, "share"),
        ("Median rank on the validation set", "1 is perfect",
         "val/{}/MedR", lines, "number"),
    )
    # fmt: on
    shown = []
    for title, note, key, curves, unit in charts:
        series = [
            {"name": name, "hue": hue, "dashed": dashed, "points": points}
            for curve, (name, hue, dashed) in curves.items()
            if (points := _curve(history, key.format(curve)))
        ]
        if series:
            shown.append({"title": title, "note": note, "unit": unit, "series": series})
    return shown


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
    """Values, null where they are missing, and the values where colours begin and end."""
    is_known = np.isfinite(values)
    known = values[is_known] if is_known.any() else np.zeros(1)
    rounded = values.astype(np.float64).round(4).astype(object)
    rounded[~is_known] = None
    return {
        "values": rounded.tolist(),
        "pale": float(np.quantile(known, 0.02)),  # outliers waste no colours
        "high": float(known.max()),
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
    rows = iter(coordinates.round(4).tolist())
    places = {
        name: [next(rows) if is_known else None for is_known in known[name]] for name in points
    }
    return {"points": places, "explained": explained}
