"""Captions of the demo corpus: their content, wording and times."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vatt.demo.corpus_scenes import Combination, Scene

NUM_CAPTIONS = 5  # per file
FAULTY_VIDEO_RATE = 0.3
PARTIAL_CAPTION_RATE = 0.2
COMPANY_CAPTION_RATE = 0.3  # of the captions of a scene with company

# About 120 words in all; no caption has more than the 16 words that the text models read.
SHAPE_WORDS = {
    "ball": ("ball", "disc", "circle"),
    "ring": ("ring", "hoop", "donut"),
    "triangle": ("triangle", "wedge", "pyramid"),
    "bar": ("bar", "stick", "rod"),
    "moon": ("moon", "crescent", "sickle"),
    "fence": ("fence", "grille", "gate"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald", "grassy"),
    "blue": ("blue", "azure", "navy"),
    "yellow": ("yellow", "lemon", "golden"),
    "purple": ("purple", "violet", "plum"),
    "orange": ("orange", "tangerine", "amber"),
    "white": ("white", "pale", "snowy"),
    "black": ("black", "dark", "ebony"),
}
MOTION_WORDS = {
    "left": ("moving left", "sliding leftwards", "going to the left"),
    "right": ("moving right", "sliding rightwards", "going to the right"),
    "up": ("moving up", "rising", "climbing upwards"),
    "down": ("moving down", "sinking", "falling downwards"),
    "grow": ("growing", "getting bigger", "expanding"),
    "shrink": ("shrinking", "getting smaller", "contracting"),
    "turn": ("turning round", "spinning", "rotating"),
    "bounce": ("bouncing", "hopping", "jumping up and down"),
}
FULL_WORDINGS = (
    "a {colour} {shape} is {motion}",
    "here you can see a {colour} {shape} {motion}",
    "look at the {shape} so {colour} and {motion}",
    "{motion} is what the {colour} {shape} does",
    "this {shape} is {colour} and now {motion}",
    "there goes a {colour} {shape} {motion}",
    "the {colour} {shape} keeps {motion}",
    "watch how the {colour} {shape} is {motion}",
    "we have a {shape} in {colour} {motion}",
)
PARTIAL_WORDINGS = (
    "a {shape} is {motion}",
    "watch the {shape} {motion} now",
    "the {colour} thing is {motion}",
    "something {colour} keeps {motion}",
    "we have a {colour} {shape} here",
    "this one is a {colour} {shape}",
)
COMPANY_WORDINGS = (
    "near a small {colour} {shape}",
    "beside a tiny {colour} {shape}",
    "with a little {colour} {shape}",
)


def narrate(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Draws correct timed captions in different words, each with all three attributes.

    Returns:
        Segments with `start_seconds`, `end_seconds` and `text`, in order of time.
    """
    shown = (scene.shape, scene.colour, scene.motion)
    wordings = rng.permutation(FULL_WORDINGS)
    return [
        {"start_seconds": start, "end_seconds": end, "text": _fill(str(wording), shown, rng)}
        for (start, end), wording in zip(_segment_times(scene, rng), wordings, strict=False)
    ]


def narrate_carelessly(
    scene: Scene, others: Sequence[Combination], rng: np.random.Generator
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Draws timed captions as in real videos: some are incomplete, off topic or wrong.

    Args:
        scene: Scene that most captions describe.
        others: Combinations that wrong captions may describe.
        rng: Random generator.

    Returns:
        Segments like those of `narrate`. For each wrong segment, also its index, `segment`, and its
        `kind`: `late` (the first segment, still about an earlier scene), `early` (the last segment,
        already about a later scene) or `other` (in between, about something else).
    """
    shown = (scene.shape, scene.colour, scene.motion)
    segments, faults = narrate(scene, rng), _draw_faults(rng)
    for number, segment in enumerate(segments):
        if rng.random() < PARTIAL_CAPTION_RATE:
            segment["text"] = _fill(str(rng.choice(PARTIAL_WORDINGS)), shown, rng)
        if number in faults:
            wrong = [combination for combination in others if combination != shown]
            about = wrong[rng.integers(len(wrong))]
            segment["text"] = _fill(str(rng.choice(FULL_WORDINGS)), about, rng)
        elif scene.company is not None and rng.random() < COMPANY_CAPTION_RATE:
            company = (*scene.company, scene.motion)
            segment["text"] += " " + _fill(str(rng.choice(COMPANY_WORDINGS)), company, rng)
    return segments, [{"segment": k, "kind": kind} for k, kind in sorted(faults.items())]


def _draw_faults(rng: np.random.Generator) -> dict[int, str]:
    """Segment number → kind of fault: one or two in `FAULTY_VIDEO_RATE` of the files."""
    if rng.random() >= FAULTY_VIDEO_RATE:
        return {}
    places = {"late": 0, "early": NUM_CAPTIONS - 1, "other": int(rng.integers(1, NUM_CAPTIONS - 1))}
    kinds = rng.permutation(list(places))[: rng.integers(1, 3)]
    return {places[str(kind)]: str(kind) for kind in kinds}


def _segment_times(scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Start and end of each segment, in order, with gaps and overlaps."""
    step = scene.duration_seconds / NUM_CAPTIONS
    starts = step * (np.arange(NUM_CAPTIONS) + rng.uniform(-0.2, 0.2, NUM_CAPTIONS))
    ends = starts + step * rng.uniform(0.7, 1.3, NUM_CAPTIONS)
    times = np.clip(np.stack([starts, ends], axis=1), 0, scene.duration_seconds)
    return [(round(float(start), 3), round(float(end), 3)) for start, end in times]


def _fill(wording: str, about: Combination, rng: np.random.Generator) -> str:
    shape, colour, motion = about
    words = {
        "shape": str(rng.choice(SHAPE_WORDS[shape])),
        "colour": str(rng.choice(COLOUR_WORDS[colour])),
        "motion": str(rng.choice(MOTION_WORDS[motion])),
    }
    if words["colour"][0] in "aeiou":  # no shape begins with a vowel
        wording = wording.replace("a {colour}", "an {colour}")
    return wording.format(**words)
