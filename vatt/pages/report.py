"""Report of a run: one HTML file with charts and playable clips, which needs no network.

`write_report` makes the page of a `ReportData`. `report.html` is the template, `style.css` the
look, `report.js` the behaviour; `report_examples` chooses queries, and `pictures` paints pictures
and sound.
"""

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from vatt.pages.report_data import SIMILARITIES, AttentionExample, ReportClip, ReportData
from vatt.pages.report_examples import (
    NUM_EXAMPLES,
    NUM_OTHERS,
    NUM_RESULTS,
    Example,
    choose_examples,
    directed,
    spread,
)
from vatt.pages.templates import data_uri, write_html

CARDS = {  # heading, arrow, hue
    "text_to_video": ("A sentence finds its clip", "text → video", "text"),
    "video_to_text": ("A clip finds its sentence", "video → text", "text"),
    "audio_to_video": ("A sound finds its clip", "audio → video", "audio"),
    "video_to_audio": ("A clip finds its sound", "video → audio", "audio"),
    "text_to_audio": ("A sentence finds its sound", "text → audio", "video"),
    "audio_to_text": ("A sound finds its sentence", "audio → text", "video"),
}
SEARCHES = {"text": "Search by sentence", "audio": "Search by sound", "video": "Search by picture"}
MAX_WALL = 200  # clips shown together, in the strip of candidates and in a heat map
MAX_FRAMES = 16  # frames shown of a clip with its attention
MEDIA_BUDGET_BYTES = 8_000_000  # of clips; base64 makes 4 bytes of 3: the page stays below 15 MB
LEAST_TOP = 5  # times chance: an axis that ends lower makes a trend of noise
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
    infos = [None if clip.media is None else probe(clip.media) for clip in data.clips]
    examples = {name: of for name in CARDS if (of := _examples(data.similarity, name))}
    charts = _charts(data.history)
    seconds = data.metrics.get("seconds", {})
    seconds = {name: value for name, value in seconds.items() if name != "total" and value > 0}
    linear = data.metrics.get("linear_evaluation", {})
    metrics = json.dumps(data.metrics, indent=2, default=str)
    measured = [name for name in CARDS if name in data.metrics]
    sections = (
        ("result", "Result", measured),
        ("clips", "The candidates", data.clips),
        *(
            (f"by-{asked}", heading, any(name.startswith(asked) for name in examples))
            for asked, heading in SEARCHES.items()
        ),
        ("training", "Training", charts or seconds),
        ("similarity", "Similarities", data.similarity),
        ("spaces", "Common spaces", data.spaces),
        ("attention", "Attention", data.attention),
        ("confusions", "Confusions", data.confusions),
        ("linear", "Linear classifiers", linear.get("rows")),
        ("run", "This run", True),
    )
    of_all = data.metrics.get("num_candidates")
    sizes = {name: data.metrics[name].get("num_candidates", of_all) for name in measured}
    wall = spread(np.arange(len(data.clips)), MAX_WALL)
    write_html(
        Path(path),
        "report.html",
        title=data.title,
        data=data,
        metrics=data.metrics,
        cards={name: CARDS[name] for name in measured},
        arrows={name: arrow for name, (_, arrow, _) in CARDS.items()},
        sizes=sizes,
        chances={name: 100 / size for name, size in sizes.items() if size},
        searches=SEARCHES,
        sections={name: heading for name, heading, content in sections if content},
        examples=examples,
        num_results=NUM_RESULTS,
        wall=wall,
        seconds=seconds,
        linear=linear,
        attention_frames=_attention_frames,
        listings={"Metrics": metrics, **data.listings},
        metrics_uri=data_uri(metrics.encode(), "application/json"),
        payload={
            "attributes": data.attributes,
            "clips": _clips(data.clips, infos, examples),
            "charts": charts,
            "maps": {name: _heat_map(values, wall) for name, values in data.similarity.items()},
            "spaces": [_space(modalities) for modalities in data.spaces.values()],
        },
    )


def _examples(similarity: Mapping[str, np.ndarray], direction: str) -> list[Example]:
    """Example queries of a direction; empty: there are no queries."""
    values = directed(similarity, direction)
    number = NUM_EXAMPLES if direction.endswith("video") else NUM_OTHERS
    return [] if values is None else choose_examples(values, number)


def _attention_frames(example: AttentionExample) -> Iterator[tuple[int, str, str]]:
    """Numbers of frames from 1, their pictures and the attention over them."""
    heat = overlay_heat(example.attention)
    num_frames = len(example.frames)
    for t in range(0, num_frames, math.ceil(num_frames / MAX_FRAMES)):
        frame = data_uri(encode_jpeg(example.frames[t]), "image/jpeg")
        yield t + 1, frame, heat[t * len(heat) // num_frames]


def _clips(
    clips: Sequence[ReportClip],
    infos: Sequence[MediaInfo | None],
    examples: Mapping[str, Sequence[Example]],
) -> list[dict[str, Any]]:
    """Each clip once; the examples' media first, then as many others as the budget lets in."""
    of_examples = [e for group in examples.values() for e in group]
    needed = [n for e in of_examples for n in (e.query, *(clip for clip, _ in e.results))]
    numbers = list(dict.fromkeys([*needed, *range(len(clips))]))
    sizes = np.cumsum([len(clips[number].media or b"") for number in numbers])
    playable = set(numbers[: np.searchsorted(sizes, MEDIA_BUDGET_BYTES, side="right")])
    return [
        _clip(clip, info, number in playable)
        for number, (clip, info) in enumerate(zip(clips, infos, strict=True))
    ]


def _clip(clip: ReportClip, info: MediaInfo | None, is_playable: bool) -> dict[str, Any]:
    poster = spectrogram = media = None
    if info is not None and clip.media is not None:
        poster = read_poster(clip.media, info) if info.has_video else None
        spectrogram = read_spectrogram(clip.media, info) if info.has_audio else None
        media = base64.b64encode(clip.media).decode("ascii") if is_playable else None
    return {
        "title": clip.title,
        "caption": clip.caption,
        "attributes": clip.attributes,
        "poster": poster,
        "spectrogram": spectrogram,
        "media": media,
        "type": "video/mp4" if poster else "audio/wav",
    }


def _charts(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The curves in the log; a chart without any is left out."""
    pairs = {
        "video_text": ("video–text", "text", False),
        "video_audio": ("video–audio", "audio", False),
        "audio_text": ("audio–text", "video", False),
    }
    lines = {
        name: (arrow, hue, name not in SIMILARITIES) for name, (_, arrow, hue) in CARDS.items()
    }
    # fmt: off
    charts = (
        ("Loss of each pair", "contrastive loss on the training batches: how badly what belongs "
         "together is told from the rest; lower is better", "train/loss_{}", pairs, "number"),
        ("Found first on the validation set", "R@1: percent of queries whose match is the best of "
         "all candidates", "val/{}/R@1", lines, "percent"),
        ("Accuracy inside the batch", "share of training clips whose match is the most similar of "
         "their batch", "train/accuracy_{}", pairs, "share"),
        ("Median rank on the validation set", "the middle place of the matches; 1 is perfect",
         "val/{}/MedR", lines, "number"),
        ("Learning rate", "size of the optimiser's steps", "train/learning_rate",
         {"": ("learning rate", "ink", False)}, "number"),
    )
    # fmt: on
    size = _validation_size(history)
    chances = {"val/{}/R@1": 100 / size, "val/{}/MedR": (size + 1) / 2} if size else {}
    shown = []
    for title, note, key, curves, unit in charts:
        series: list[dict[str, Any]] = [
            {"name": name, "hue": hue, "dashed": dashed, "points": points}
            for curve, (name, hue, dashed) in curves.items()
            if (points := _curve(history, key.format(curve)))
        ]
        if not series:
            continue
        least_top = 0.0
        if (chance := chances.get(key)) is not None:
            least_top = LEAST_TOP * chance if unit == "percent" else chance
            steps = [step for one in series for step, _ in one["points"]]
            line = [(min(steps), chance), (max(steps), chance)]
            series.append({"name": "chance", "hue": "muted", "dashed": True, "points": line})
        chart = {"title": title, "note": note, "unit": unit}
        shown.append({**chart, "series": series, "least_top": least_top})
    return shown


def _validation_size(history: Sequence[Mapping[str, Any]]) -> float | None:
    """Largest number of candidates of a logged search; None: not logged."""
    sizes = [
        float(value)
        for row in history
        for name, value in row.items()
        if name.startswith("val/") and name.endswith("/num_candidates") and value not in (None, "")
    ]
    return max((size for size in sizes if size >= 1), default=None)


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


def _heat_map(values: np.ndarray, clips: Sequence[int]) -> dict[str, Any]:
    """Values of some clips, null where missing, and the values where colours begin and end."""
    values = values[np.ix_(clips, clips)]
    is_known = np.isfinite(values)
    known = values[is_known] if is_known.any() else np.zeros(1)
    rounded = values.astype(np.float64).round(4).astype(object)
    rounded[~is_known] = None
    return {
        "clips": list(clips),
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
