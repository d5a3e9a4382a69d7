"""The parts of the report that show clips: queries with their results, heat maps, attention."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from vatt.pages.pictures import data_uri, encode_jpeg, overlay_heat
from vatt.pages.report_data import AttentionExample, ReportClip, ReportData

NUM_RESULTS = 5  # clips shown for a query
NUM_EXAMPLES = 4  # right queries, and as many wrong ones, for a direction
MAX_WALL = 200  # clips shown together
MAX_FRAMES = 16  # frames shown of a clip with its attention
SPACES = {"va": "Video-audio space", "vt": "Video-text space", "joint": "Joint space"}


@dataclass(frozen=True)
class Example:
    """A query and its results.

    Args:
        query: Number of the clip whose text or sound is the query; it is the right answer.
        results: Number and similarity of the clips shown, best first.
        place: Rank of the right clip, from 1.
    """

    query: int
    results: tuple[tuple[int, float], ...]
    place: int


def choose_examples(similarity: np.ndarray, num_each: int = NUM_EXAMPLES) -> list[Example]:
    """Chooses queries that find their clip at once, then queries that do not.

    Both are spread over the set, wrong ones from the nearly right to the worst. The results are the
    best candidates, and the right one if it is not among them.

    Args:
        similarity: float `[n, n]`; the right candidate of row i is column i; rows of NaN are no
            queries.
        num_each: Number of right queries, and of wrong ones, at most.
    """
    scores = np.nan_to_num(similarity.astype(np.float64), nan=-np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")
    places = (order == np.arange(len(order))[:, None]).argmax(axis=1)
    asked = np.isfinite(similarity).any(axis=1)
    right = np.flatnonzero(asked & (places == 0))
    wrong = np.flatnonzero(asked & (places > 0))
    wrong = wrong[np.argsort(places[wrong], kind="stable")]
    examples = []
    for query in (*_spread(right, num_each), *_spread(wrong, num_each)):
        shown = order[query, :NUM_RESULTS].tolist()
        if query not in shown:
            shown.append(query)
        results = tuple((clip, float(scores[query, clip])) for clip in shown)
        examples.append(Example(query=query, results=results, place=int(places[query]) + 1))
    return examples


def _spread(items: np.ndarray, count: int) -> list[int]:
    if len(items) == 0:
        return []
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return items[chosen].tolist()


def render_wall(data: ReportData) -> str:
    """All candidates, small."""
    if not data.clips:
        return ""
    tiles = "".join(
        f"<li>{_player(number, data.clips[number], data.clips[number].title)}</li>"
        for number in _spread(np.arange(len(data.clips)), MAX_WALL)
    )
    lead = "Point at a clip to see it move; press it to hear it too."
    return f"<p class=lead>{escape(data.about)} {lead}</p><ol class=wall tabindex=-1>{tiles}</ol>"


def _player(number: int, clip: ReportClip, description: str) -> str:
    return (
        f'<button type=button class=play data-clip={number} title="{escape(clip.title)}" '
        f'aria-label="Play {escape(description)}"><img alt="" data-poster={number}></button>'
    )


def render_queries(data: ReportData, examples: Sequence[Example], direction: str) -> str:
    """Queries of one direction, right and wrong ones, with their results."""
    if not examples:
        return ""
    lead = "Captions of some candidates, and the five clips that the model finds closest to each."
    if direction == "audio_to_video":
        lead = "Listen first, then look: the five clips that the model finds for a sound alone."
        if data.audible and data.clips[0].attributes:
            lead += (
                f" Clips marked ≈ share {' and '.join(data.audible)} with the right one, so that "
                "they sound like it: no model could tell them apart."
            )
    groups = (
        ("Found at once", [e for e in examples if e.place == 1]),
        ("Gone wrong", [e for e in examples if e.place > 1]),
    )
    bodies = "".join(
        f"<h3>{heading}</h3><div class=queries>"
        + "".join(_query(data, example, direction) for example in group)
        + "</div>"
        for heading, group in groups
        if group
    )
    return f"<p class=lead>{lead}</p>{bodies}"


def _query(data: ReportData, example: Example, direction: str) -> str:
    clip = data.clips[example.query]
    asked = f"<blockquote>{escape(clip.caption)}</blockquote>"
    if direction == "audio_to_video":
        asked = (
            f"<button type=button class=listen data-sound={example.query} "
            f'aria-label="Play the sound of: {escape(clip.title)}">'
            '<svg aria-hidden=true><use href="#i-play"/></svg><span class=spectrogram></span>'
            "</button>"
        )
    place = "right clip first"
    if example.place > 1:
        place = f"right clip at place {example.place} of {len(data.clips)}"
    tiles = "".join(
        _tile(data, example, direction, number, score) for number, score in example.results
    )
    return (
        f"<article class=query><div class=asked>{asked}<p>{place}</p></div>"
        f"<ol class=tiles>{tiles}</ol></article>"
    )


def _tile(data: ReportData, example: Example, direction: str, number: int, score: float) -> str:
    clip, wanted = data.clips[number], data.clips[example.query]
    verdict, label = "wrong", "✗ wrong"
    if number == example.query:
        verdict, label = "right", "✓ right"
    elif direction == "audio_to_video" and _sound_alike(data, clip, wanted):
        verdict, label = "alike", "≈ alike"
    chips = "\u00a0· ".join(
        escape(value) if value == right else f"<s>{escape(value)}</s>"
        for value, right in zip(clip.attributes, wanted.attributes, strict=True)
    )
    is_late = number == example.query and example.place > NUM_RESULTS
    late = f"<em>place {example.place}</em>" if is_late else ""
    player = _player(number, clip, f"{clip.title}: {label[2:]}, similarity {score:.2f}")
    return (
        f'<li class="{verdict}">{late}{player}<p class=verdict>{label}</p>'
        f"<p class=chips>{chips or escape(clip.title)}</p><p class=score>{score:.2f}</p></li>"
    )


def _sound_alike(data: ReportData, clip: ReportClip, wanted: ReportClip) -> bool:
    heard = [i for i, name in enumerate(data.attributes) if name in data.audible]
    if not heard or not clip.attributes or not wanted.attributes:
        return False
    return all(clip.attributes[i] == wanted.attributes[i] for i in heard)


def render_heat_maps(data: ReportData) -> str:
    """Places of the similarity matrices, which the script paints."""
    if not data.similarity:
        return ""
    titles = {"text_to_video": "Sentences × clips", "audio_to_video": "Sounds × clips"}
    maps = "".join(
        f"<figure class=panel><figcaption><h3>{titles[name]}</h3></figcaption>"
        f'<div class=heat data-map="{name}"><canvas role=img aria-label="Similarity of '
        f'{titles[name].lower()}: the right answers are on the diagonal"></canvas></div>'
        "<div class=scale><span></span><i></i><span></span></div></figure>"
        for name in data.similarity
    )
    lead = (
        "Each row is a query, each column a clip; the right answers are on the diagonal. Sorted by "
        "an attribute, what the model has understood of it shows as blocks along the diagonal."
    )
    choice = _choice("sort", "Sort by", data)
    return f"<p class=lead>{lead}</p>{choice}<div class=pair>{maps}</div>"


def _choice(name: str, label: str, data: ReportData) -> str:
    """A choice of one attribute; empty if the clips have none."""
    if not data.clips[0].attributes:
        return ""
    options = "".join(
        f'<label><input type=radio name="{name}" value={i}{" checked" if i == 0 else ""}>'
        f"<span>{escape(value)}</span></label>"
        for i, value in enumerate(data.attributes)
    )
    return f"<fieldset class=choice><legend>{label}</legend>{options}</fieldset>"


def render_spaces(data: ReportData) -> str:
    """Places of the projections, which the script paints."""
    if not data.spaces:
        return ""
    figures = "".join(
        f"<figure class=panel><figcaption><h3>{escape(SPACES.get(name, name))}</h3></figcaption>"
        f'<div class=scatter data-space={i} role=img aria-label="{escape(name)}: '
        f'two principal components of the embeddings of {" and ".join(modalities)}"></div>'
        "<p class=note></p></figure>"
        for i, (name, modalities) in enumerate(data.spaces.items())
    )
    boxes = (
        "<label class=check><input type=checkbox id=join> join what belongs to one clip</label>"
        "<label class=check><input type=checkbox id=centre checked> "
        "remove each modality's mean</label>"
    )
    lead = (
        "Two principal components of the embeddings. If training has worked, the marks of one clip "
        "lie together, and clips that share an attribute form groups. Point at a mark to see its "
        "clip."
    )
    return (
        f"<p class=lead>{lead}</p>"
        f"<div class=controls>{_choice('hue', 'Colour by', data)}{boxes}</div>"
        f"<div class=keys id=keys></div><div class=pair>{figures}</div>"
    )


def render_attention(examples: Sequence[AttentionExample]) -> str:
    """Frames overlaid with the AGG token's attention."""
    if not examples:
        return ""
    lead = (
        "How much the AGG token, whose output is the clip's feature, attends to each video token "
        "in the last layer, mean over heads: the redder, the more."
    )
    slider = (
        "<label class=check>Overlay <input type=range id=overlay min=0 max=100 value=75></label>"
    )
    strips = "".join(_attention_strip(example) for example in examples)
    return f"<p class=lead>{lead}</p><div class=controls>{slider}</div>{strips}"


def _attention_strip(example: AttentionExample) -> str:
    heat = overlay_heat(example.attention)
    num_frames = len(example.frames)
    frames = "".join(
        f'<li><img alt="Frame {t + 1} of {escape(example.title)}" '
        f'src="{data_uri(encode_jpeg(example.frames[t]), "image/jpeg")}">'
        f'<img alt="" class=over src="{heat[t * len(heat) // num_frames]}"></li>'
        for t in range(0, num_frames, math.ceil(num_frames / MAX_FRAMES))
    )
    share = example.attention.max() / max(float(example.attention.mean()), 1e-12)
    return (
        f"<div class=panel><h3>{escape(example.title)}</h3><ol class=strip>{frames}</ol>"
        f"<p class=note>The strongest token gets {share:.1f} times an even share.</p></div>"
    )
