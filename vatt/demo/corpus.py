"""Demo corpus: short narrated scenes as real H.264/AAC files with captions, made from a seed.

A scene has a main object with a shape, a colour and a motion. Training videos have the faults of
real narrated videos: captions that are early, late, incomplete or about something else, files
without sound, and files without text. Validation videos have none of these faults. Their
combinations of attributes never occur in training, neither in pictures nor in captions, but every
pair of their attributes does. A file depends only on (seed, split, index), not on the process.
"""

import functools
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vatt.demo.corpus_captions import narrate, narrate_carelessly
from vatt.demo.corpus_scenes import (
    ATTRIBUTES,
    COLOURS,
    MOTIONS,
    SHAPES,
    Combination,
    draw_scene,
    render_scene,
)
from vatt.demo.corpus_sounds import synthesize_sound
from vatt.errors import UserError
from vatt.media.write_mp4 import write_mp4
from vatt.system.files import atomic_folder, read_json
from vatt.system.machine import num_cores
from vatt.system.workers import Lost, results_in_order

VERSION = 3  # of the corpus: raise it when the same seed makes other files
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")
Job = tuple[Split, int]  # split and number of a file
VALUES = (tuple(SHAPES), tuple(COLOURS), MOTIONS)  # of each attribute
COMBINATIONS: tuple[Combination, ...] = tuple(itertools.product(*VALUES))

NUM_HELD_OUT = 100
MAX_ORACLE_PAIRS = 42  # distinct pairs among the 100: an oracle of two attributes gets R@1 42 %
SILENT_RATE = 0.15
TEXTLESS_RATE = 0.15


@functools.cache
def split_combinations() -> dict[Split, tuple[Combination, ...]]:
    """Combinations of each split; the same for every seed.

    A local search swaps held-out combinations until three conditions hold. They have few distinct
    pairs of attributes, so that two attributes are not enough to find a clip. Every value occurs
    about equally often. Every held-out pair occurs in training with another third attribute. The
    search takes some hundredths of a second.
    """
    chance = random.Random(0)
    combinations = list(COMBINATIONS)
    chance.shuffle(combinations)
    held_out, train = combinations[:NUM_HELD_OUT], combinations[NUM_HELD_OUT:]
    cost = _split_cost(held_out)
    while cost > 0:
        i, j = chance.randrange(len(held_out)), chance.randrange(len(train))
        held_out[i], train[j] = train[j], held_out[i]
        new_cost = _split_cost(held_out)
        if new_cost <= cost or chance.random() < 0.002:  # sometimes uphill: descent gets stuck
            cost = new_cost
        else:
            held_out[i], train[j] = train[j], held_out[i]
    return {"train": tuple(sorted(train)), "validation": tuple(sorted(held_out))}


def _split_cost(held_out: Sequence[Combination]) -> int:
    """Distance from the conditions of `split_combinations`; 0 if they hold."""
    cost = 0
    for i, j in itertools.combinations(range(3), 2):
        pairs = Counter((combination[i], combination[j]) for combination in held_out)
        thirds = len(VALUES[3 - i - j])  # combinations that share a pair
        cost += 3 * max(0, len(pairs) - MAX_ORACLE_PAIRS)
        cost += sum(max(0, count - (thirds - 1)) for count in pairs.values())
    for i, values in enumerate(VALUES):
        counts = Counter(combination[i] for combination in held_out)
        even = len(held_out) // len(values)
        cost += sum(max(0, abs(counts[value] - even) - 2) for value in values)
    return cost


def combination_of(seed: int, split: Split, index: int) -> Combination:
    """Combination of a file: each of the split once, then each again in another order."""
    combinations = split_combinations()[split]
    cycle, place = divmod(index, len(combinations))
    chance = np.random.default_rng((seed, SPLITS.index(split), cycle))
    return combinations[chance.permutation(len(combinations))[place]]


def write_clip(folder: Path, seed: int, job: Job) -> dict[str, Any]:
    """Writes a file into the folder of its split; returns its line of `captions.jsonl`."""
    split, index = job
    combination = combination_of(seed, split, index)
    rng = np.random.default_rng((seed, SPLITS.index(split), index, 0))
    scene = draw_scene(*combination, rng)
    faults: list[dict[str, Any]] = []
    silent = textless = False
    if split == "train":
        silent, textless = rng.random() < SILENT_RATE, rng.random() < TEXTLESS_RATE
        segments, faults = narrate_carelessly(scene, split_combinations()["train"], rng)
    else:
        segments = narrate(scene, rng)
    frames, sound = render_scene(scene, rng), synthesize_sound(scene, rng)
    name = f"{index:06d}.mp4"
    write_mp4(
        folder / split / name,
        frames,
        scene.frame_rate,
        waveform=None if silent else sound,
        sample_rate=None if silent else scene.sample_rate,
    )
    return {
        "file": name,
        "segments": [] if textless else segments,
        **dict(zip(ATTRIBUTES, combination, strict=True)),
        "company": scene.company and {"shape": scene.company[0], "colour": scene.company[1]},
        "faults": [] if textless else faults,
        "sound": not silent,
    }


def write_corpus(
    out: str | os.PathLike[str],
    *,
    num_train: int = 6000,
    num_validation_renderings: int = 3,
    seed: int = 0,
    num_workers: int | None = None,
    show_progress: bool = True,
) -> bool:
    """Writes `train/` and `validation/` (mp4 files, `captions.jsonl`) and `corpus.json`.

    An existing corpus with the same parameters is kept, or completed if files are missing; one with
    other parameters is refused.

    Args:
        out: Folder of the corpus, which appears under this name when it is complete.
        num_train: Number of files of the training split.
        num_validation_renderings: Number of files of each of the 100 held-out combinations.
        seed: Seed; the same seed gives the same bytes.
        num_workers: Number of processes; 0: only this process. None: one per core.
        show_progress: Whether to draw a progress bar.

    Returns:
        False if the corpus already existed.

    Raises:
        UserError: a number is out of range, `out` has other contents, or a process was killed.
        OSError: a file cannot be written, for example because the disk is full; the error names it.
    """
    from vatt.system.progress import progress_bar  # loads tqdm; the workers do without

    numbers = {"num_train": num_train, "num_validation_renderings": num_validation_renderings}
    for name, number in {**numbers, "seed": seed, "num_workers": num_workers or 0}.items():
        if number < 0:
            raise UserError(f"{name} must be at least 0, got {number}")
    out = Path(out).absolute()
    sizes = {"train": num_train, "validation": num_validation_renderings * NUM_HELD_OUT}
    parameters = {"version": VERSION, "seed": seed, **{f"num_{s}": sizes[s] for s in SPLITS}}
    if _is_finished(out, parameters):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out, replace=True) as partial:
        for split in SPLITS:
            (partial / split).mkdir()
        jobs: list[Job] = [(split, index) for split in SPLITS for index in range(sizes[split])]
        write = functools.partial(write_clip, partial, seed)
        bar = progress_bar(None, "corpus", len(jobs), unit="clip", show=show_progress)
        num_workers = num_cores() if num_workers is None else num_workers
        lines = {}
        with bar, results_in_order(write, jobs, num_workers=num_workers) as results:
            for job, line in zip(jobs, results, strict=True):
                if isinstance(line, Lost):
                    raise UserError(
                        f"clip {job[1]} of {job[0]} {line.reason}: was it killed for lack of "
                        "memory? Fewer num_workers need less"
                    )
                lines[job] = line
                bar.update()
        _write_descriptions(partial, lines, parameters)
    return True


def _is_finished(out: Path, parameters: dict[str, Any]) -> bool:
    """Whether `out` holds the wanted corpus; refuses a folder that must not be replaced."""
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if not names and not out.is_file():
        return False
    if "corpus.json" not in names or not names <= {"corpus.json", *SPLITS}:
        raise UserError(f"{out} exists and is not a demo corpus: give another folder, or remove it")
    description = read_json(out / "corpus.json")
    for name, value in parameters.items():
        if description.get(name) != value:
            raise UserError(
                f"{out} holds a corpus with {name} {description.get(name)}, not {value}: give "
                "another folder, or delete it"
            )
    return all(
        sum(1 for _ in (out / split).glob("*.mp4")) == parameters[f"num_{split}"]
        for split in SPLITS
    )


def _write_descriptions(
    folder: Path, lines: dict[Job, dict[str, Any]], parameters: dict[str, Any]
) -> None:
    """Writes `captions.jsonl` of both splits and `corpus.json`."""
    from vatt.demo.retrieval import two_attribute_oracles  # loads torch; the workers do without

    combinations, counts = split_combinations(), {}
    for split in SPLITS:
        of_split = [lines[job] for job in sorted(lines) if job[0] == split]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in of_split)
        (folder / split / "captions.jsonl").write_text(text, encoding="utf-8")
        counts[split] = _count(of_split)
    description = {
        **parameters,
        "counts": counts,
        "oracles": two_attribute_oracles(combinations["validation"]),
        "combinations": {split: [" ".join(c) for c in combinations[split]] for split in SPLITS},
    }
    text = json.dumps(description, indent=1) + "\n"
    (folder / "corpus.json").write_text(text, encoding="utf-8")


def _count(lines: list[dict[str, Any]]) -> dict[str, int]:
    return {
        "files": len(lines),
        "captions": sum(len(line["segments"]) for line in lines),
        "without_sound": sum(not line["sound"] for line in lines),
        "without_text": sum(not line["segments"] for line in lines),
        "with_faults": sum(bool(line["faults"]) for line in lines),
        "with_company": sum(line["company"] is not None for line in lines),
    }
