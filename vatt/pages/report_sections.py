"""The sections of the report as HTML: numbers here, clips in `vatt.pages.report_clips`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from vatt.config.spaces import DIRECTIONS
from vatt.pages.pictures import data_uri
from vatt.pages.report_clips import (
    Example,
    render_attention,
    render_heat_maps,
    render_queries,
    render_spaces,
    render_wall,
)
from vatt.pages.report_data import AttributeConfusion, ReportData

CARDS = {  # heading, arrow, hue
    "text_to_video": ("A sentence finds its clip", "text → video", "text"),
    "video_to_text": ("A clip finds its sentence", "video → text", "text"),
    "audio_to_video": ("A sound finds its clip", "audio → video", "audio"),
    "video_to_audio": ("A clip finds its sound", "video → audio", "audio"),
}

LINEAR_COLUMNS = {  # headings of the sources of features of vatt.demo.linear
    "pretrained": "pre-trained",
    "random": "random weights",
    "raw": "raw input",
}


def render_sections(data: ReportData, examples: Mapping[str, Sequence[Example]]) -> str:
    """The body of the page: header, navigation, sections."""
    by_text, by_sound = examples.get("text_to_video", ()), examples.get("audio_to_video", ())
    sections = [
        ("result", "Result", _result(data)),
        ("clips", "The candidates", render_wall(data)),
        ("by-sentence", "Search by sentence", render_queries(data, by_text, "text_to_video")),
        ("by-sound", "Search by sound", render_queries(data, by_sound, "audio_to_video")),
        ("training", "Training", _training(data)),
        ("similarity", "Similarities", render_heat_maps(data)),
        ("spaces", "Common spaces", render_spaces(data)),
        ("attention", "Attention", render_attention(data.attention)),
        ("confusions", "Confusions", _confusions(data)),
        ("linear", "Linear classifiers", _linear(data.metrics.get("linear_evaluation", {}))),
        ("run", "This run", _run(data)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, _ in shown)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="{name}-heading">'
        f'<h2 id="{name}-heading">{heading}</h2>{body}</section>'
        for name, heading, body in shown
    )
    navigation = f'<nav aria-label="Sections"><div>{links}</div></nav>'
    return f"{_header(data)}{navigation}<main>{bodies}</main>"


def _header(data: ReportData) -> str:
    metrics = data.metrics
    facts = {"Candidates": metrics.get("num_candidates"), "Seed": metrics.get("seed")}
    if seconds := metrics.get("seconds"):
        facts["Total time"] = duration(seconds.get("total", sum(seconds.values())))
    return (
        f"<header><div><p class=kicker>Retrieval report</p><h1>{escape(data.title)}</h1>"
        f"<p class=headline>{_headline(metrics)}</p></div>{_facts(facts)}</header>"
    )


def _headline(metrics: Mapping[str, Any]) -> str:
    result, number = metrics.get("text_to_video"), metrics.get("num_candidates")
    if not result or not number:
        return ""
    return (
        f"Given a sentence, the model puts the right clip of {number} first in "
        f"<b>{percent(result['R@1'], 0)}</b> of cases, and among its first five in "
        f"<b>{percent(result['R@5'], 0)}</b>. Guessing would get {_short(100 / number)}."
    )


def _facts(facts: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<dl class=facts>{cells}</dl>" if cells else ""


def _result(data: ReportData) -> str:
    cards = "".join(_card(data, name) for name in DIRECTIONS if name in data.metrics)
    note = (
        "R@k: percent of queries whose answer is among the k best candidates. "
        "Median rank: 1 is perfect."
    )
    panels = _panel(data, "text_to_video") + _panel(data, "audio_to_video")
    return f"<div class=cards>{cards}</div><p class=note>{note}</p><div class=pair>{panels}</div>"


def _card(data: ReportData, direction: str) -> str:
    result = data.metrics[direction]
    heading, arrow, hue = CARDS[direction]
    marks = {"chance": _chance(data), "ceiling": result.get("ceiling")}
    marks = {name: value for name, value in marks.items() if value is not None}
    ticks = "".join(
        f'<i class="tick {name}" style="left:{value:.2f}%"></i>' for name, value in marks.items()
    )
    bars = "".join(
        f'<i class="bar b{k}" style="width:{result[f"R@{k}"]:.2f}%"></i>' for k in (10, 5, 1)
    )
    notes = " · ".join(f"{name} {_short(value)}" for name, value in marks.items())
    return (
        f'<article class="card {hue}"><p class=arrow>{arrow}</p><h3>{heading}</h3>'
        f"<p class=big>{result['R@1']:.1f}<small> % R@1</small></p>"
        f"<div class=bullet aria-hidden=true>{bars}{ticks}</div><p class=marks>{notes}</p>"
        f"<dl><div><dt>R@5</dt><dd>{percent(result['R@5'])}</dd></div>"
        f"<div><dt>R@10</dt><dd>{percent(result['R@10'])}</dd></div>"
        f"<div><dt>Median rank</dt><dd>{result['MedR']:g}</dd></div></dl></article>"
    )


def _panel(data: ReportData, direction: str) -> str:
    """R@1 of a direction beside what it must be compared with."""
    result = data.metrics.get(direction)
    if not result:
        return ""
    _, arrow, hue = CARDS[direction]
    rows, note = [], ""
    if (chance := _chance(data)) is not None:
        rows.append(("Guessing", chance, ""))
    if direction in data.control:
        rows.append(("Trained on shuffled captions", data.control[direction]["R@1"], ""))
    oracles = data.metrics.get("oracles", {}) if direction == "text_to_video" else {}
    rows += [(f"Oracle of {n.replace('+', ' and ')}", value, "") for n, value in oracles.items()]
    rows.append(("This model", result["R@1"], hue))
    if oracles:
        note = (
            "An oracle knows two attributes without fault and guesses among the clips that share "
            "them: a model above all of them has learned all the attributes."
        )
    if "ceiling" in result:
        known, share = (
            " and ".join(data.audible),
            percent(100 * result["R@1"] / result["ceiling"], 0),
        )
        rows.append((f"Ceiling: {known}", result["ceiling"], ""))
        note = (
            f"Sound can tell {known}, nothing else; knowing these without fault gives the ceiling. "
            f"The model reaches {share} of it."
        )
    return _bars(f"How good is that? {arrow.capitalize()}, R@1", rows, note)


def _bars(heading: str, rows: Iterable[tuple[str, float, str]], note: str) -> str:
    lines = "".join(
        f'<tr class="{hue}"><th scope=row>{escape(name)}</th>'
        f'<td><i style="width:{value:.2f}%"></i></td>'
        f"<td class=number>{percent(value)}</td></tr>"
        for name, value, hue in rows
    )
    note = f"<p class=note>{escape(note)}</p>" if note else ""
    table = f"<table class=bars><tbody>{lines}</tbody></table>"
    return f"<div class=panel><h3>{heading}</h3>{table}{note}</div>"


def _training(data: ReportData) -> str:
    charts = "<div class=charts id=charts></div>" if data.history else ""
    return charts + _stages(data.metrics.get("seconds", {}))


def _stages(seconds: Mapping[str, float]) -> str:
    parts = [(name, value) for name, value in seconds.items() if name != "total" and value > 0]
    if not parts:
        return ""
    segments = legend = ""
    for i, (name, value) in enumerate(parts):
        text = f"{escape(name)}: {duration(value)}"
        segments += f'<i class="s{i % 6}" style="flex:{value:.4g}" title="{text}"></i>'
        legend += f'<li><i class="s{i % 6}"></i>{escape(name)} <b>{duration(value)}</b></li>'
    total = duration(sum(value for _, value in parts))
    return (
        f"<div class=panel><h3>Where the {total} went</h3>"
        f"<div class=stages aria-hidden=true>{segments}</div><ul class=legend>{legend}</ul></div>"
    )


def _confusions(data: ReportData) -> str:
    if not data.confusions:
        return ""
    rows, matrices = "", ""
    for direction, confusions in data.confusions.items():
        heading, arrow, hue = CARDS[direction]
        cells = (f"<td class=number>{percent(c.accuracy)}</td>" for c in confusions.values())
        rows += f"<tr><th scope=row>{arrow}</th>{''.join(cells)}</tr>"
        if direction in ("text_to_video", "audio_to_video"):
            parts = (_matrix(name, confusion, hue) for name, confusion in confusions.items())
            matrices += f"<h3>{heading}</h3><div class=matrices>{''.join(parts)}</div>"
    table = _plain_table(next(iter(data.confusions.values())), rows)
    return (
        "<p class=lead>How often the best candidate has each attribute right, and what it is taken "
        f"for where it has not.</p>{table}{matrices}"
    )


def _plain_table(headings: Iterable[str], rows: str) -> str:
    head = "".join(f"<th scope=col>{escape(heading)}</th>" for heading in headings)
    return (
        "<div class=scroll><table class=plain>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _matrix(name: str, confusion: AttributeConfusion, hue: str) -> str:
    counts = confusion.counts.double()
    shares = (100 * counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).tolist()
    head = "".join(f"<th scope=col><span>{escape(v)}</span></th>" for v in confusion.values)
    rows = ""
    for asked, line in zip(confusion.values, shares, strict=True):
        pairs = zip(confusion.values, line, strict=True)
        cells = (_matrix_cell(asked, answered, share) for answered, share in pairs)
        rows += f"<tr><th scope=row>{escape(asked)}</th>{''.join(cells)}</tr>"
    caption = f"{escape(name)}: rows asked, columns found, %"
    return (
        f'<div class="panel scroll"><table class="matrix {hue}"><caption>{caption}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _matrix_cell(asked: str, answered: str, share: float) -> str:
    kind = "strong" if share >= 50 else "none" if share < 0.5 else ""
    title = f"{escape(asked)} answered by {escape(answered)}: {percent(share)}"
    return f'<td class="{kind}" style="--share:{share:.1f}" title="{title}">{share:.0f}</td>'


def _linear(linear: Mapping[str, Any]) -> str:
    if not linear.get("rows"):
        return ""
    lead = (
        f"A linear classifier learns an attribute from the features of {linear['num_train']:,} "
        f"training videos and names it in {linear['num_test']:,} videos of combinations that were "
        "never seen in training, though each of their values was: percent right. By as much as the "
        "pre-trained network is ahead of its own random weights, training has taught it; by as "
        "much as it is ahead of the raw input, it has made the attribute easier to read."
    )
    note = (
        "Raw input: every frame as 8 × 8 pixels, or a log-mel spectrogram of the sound. The "
        "sound of a clip is one of 48, a timbre for each shape and a rhythm or melody for each "
        "motion."
    )
    headings = ("attribute", *LINEAR_COLUMNS.values(), "chance")
    table = _plain_table(headings, "".join(map(_linear_row, linear["rows"])))
    return f"<p class=lead>{lead}</p>{table}<p class=note>{note}</p>"


def _linear_row(row: Mapping[str, Any]) -> str:
    best = max(row[source] for source in LINEAR_COLUMNS)
    cells = "".join(
        f'<td class="number{" best" if row[source] == best else ""}">{percent(row[source])}</td>'
        for source in LINEAR_COLUMNS
    )
    return (
        f"<tr><th scope=row>{escape(row['modality'])}</th>"
        f"<td>{escape(row['attribute'])}</td>{cells}"
        f"<td class=number>{percent(row['chance'])}</td></tr>"
    )


def _run(data: ReportData) -> str:
    address = data_uri(json.dumps(data.metrics, default=str).encode(), "application/json")
    link = f'<p><a download="metrics.json" href="{address}">Save metrics.json</a></p>'
    config = _listing("Configuration", data.config) if data.config else ""
    return _facts(data.versions) + _listing("Metrics", data.metrics) + config + link


def _listing(heading: str, values: Mapping[str, Any]) -> str:
    text = json.dumps(values, indent=2, default=str)
    return f"<details><summary>{heading}</summary><pre>{escape(text)}</pre></details>"


def _chance(data: ReportData) -> float | None:
    number = data.metrics.get("num_candidates")
    return 100 / number if number else None


def percent(value: float, digits: int = 1) -> str:
    """`71.3 %`, which does not break over a line."""
    return f"{value:.{digits}f}\u00a0%"


def _short(value: float) -> str:
    return f"{value:.3g}\u00a0%"


def duration(seconds: float) -> str:
    """Time in words: "8.0 s", "5 min 12 s", "1 h 4 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}\u00a0s"
    if minutes < 60:
        return f"{minutes}\u00a0min {rest}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"
