"""The report of a run: one HTML file that needs no network, with charts and clips that play.

`ReportData` is all that it takes, as plain arrays and paths; `write_report` makes the page. The
page's frame is `report.html`, its look `report.css`, its behaviour `report_charts.js` and
`report.js`; what needs no script is written by `report_sections` and `report_clips`,
pictures and sound by `pictures`.
"""

import base64
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from vatt.media.clip import MediaInfo, probe
from vatt.pages.pictures import project_to_plane, read_poster, read_spectrogram
from vatt.pages.report_clips import Example, examples_of
from vatt.pages.report_data import ReportClip, ReportData
from vatt.pages.report_sections import CARDS, render_sections
from vatt.system.files import write_atomically

MEDIA_BUDGET_BYTES = 9_000_000  # of clips; base64 makes 4 bytes of 3: the page stays below 15 MB
MAX_POINTS = 400  # of a curve: more than the pixels of a chart's half width shows no more
MISSING_LEVEL = 65535  # of a similarity that is not a number


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
    return (resources.files("vatt.pages") / name).read_text(encoding="utf-8")


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
