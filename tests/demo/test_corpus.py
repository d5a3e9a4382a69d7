import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vatt.demo.corpus import (
    COMBINATIONS,
    combination_of,
    split_combinations,
    write_clip,
    write_corpus,
)
from vatt.demo.corpus_captions import (
    COLOUR_WORDS,
    MOTION_WORDS,
    NUM_CAPTIONS,
    SHAPE_WORDS,
    narrate_carelessly,
)
from vatt.demo.corpus_scenes import (
    COLOURS,
    EXTENT,
    MOTIONS,
    SHAPES,
    Scene,
    draw_scene,
    render_scene,
    trajectory,
)
from vatt.demo.corpus_sounds import synthesize_sound
from vatt.demo.retrieval import two_attribute_oracles
from vatt.errors import UserError
from vatt.media.clip import probe, read_waveform

WORDS = (SHAPE_WORDS, COLOUR_WORDS, MOTION_WORDS)


def scenes(motion: str, count: int) -> list[Scene]:
    """Scenes of one motion, shapes and colours in turn."""
    shapes, colours = itertools.cycle(SHAPES), itertools.cycle(COLOURS)
    return [
        draw_scene(next(shapes), next(colours), motion, np.random.default_rng(number))
        for number in range(count)
    ]


def captions_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def contents_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def said(text: str) -> tuple[str | None, ...]:
    """Shape, colour and motion that a caption names; None where it names none."""
    return tuple(
        next((value for value, words in names.items() if any(w in text for w in words)), None)
        for names in WORDS
    )


# ------------------------------------------------------------------------------------------- split
def test_the_split_holds_out_100_combinations_and_trains_on_all_others() -> None:
    split = split_combinations()
    assert len(set(split["validation"])) == 100
    assert set(split["train"]) == set(COMBINATIONS) - set(split["validation"])


def test_two_attributes_are_not_enough_to_find_a_held_out_combination() -> None:
    oracles = two_attribute_oracles(split_combinations()["validation"])
    assert set(oracles) == {"shape+colour", "shape+motion", "colour+motion"}
    assert max(oracles.values()) <= 45


def test_every_pair_that_is_held_out_is_seen_in_training() -> None:
    split = split_combinations()
    for i, j in itertools.combinations(range(3), 2):
        held_out = {(c[i], c[j]) for c in split["validation"]}
        assert held_out <= {(c[i], c[j]) for c in split["train"]}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_value_occurs_about_equally_often_in_both_halves(split: str) -> None:
    combinations = split_combinations()[split]
    for i, values in enumerate((SHAPES, COLOURS, MOTIONS)):
        counts = Counter(c[i] for c in combinations)
        assert len(counts) == len(values)
        assert max(counts.values()) - min(counts.values()) <= 6


def test_files_go_through_all_combinations_before_any_comes_again() -> None:
    for split, combinations in split_combinations().items():
        size = len(combinations)
        for cycle in range(2):
            cycle_files = range(cycle * size, (cycle + 1) * size)
            assert {combination_of(7, split, index) for index in cycle_files} == set(combinations)


# ---------------------------------------------------------------------------------------- captions
@pytest.mark.slow
def test_careless_narration_has_the_stated_share_of_faults_and_partial_captions() -> None:
    others = split_combinations()["train"]
    rng = np.random.default_rng(0)
    stories = [narrate_carelessly(scene, others, rng) for scene in scenes("up", 500)]
    kinds = Counter(fault["kind"] for _, faults in stories for fault in faults)
    assert 0.24 < np.mean([bool(faults) for _, faults in stories]) < 0.36
    assert {len(faults) for _, faults in stories} == {0, 1, 2}
    assert min(kinds[kind] for kind in ("early", "late", "other")) > 40
    partial = [None in said(s["text"]) for segments, _ in stories for s in segments]
    assert 0.13 < np.mean(partial) < 0.25


def test_wrong_captions_are_the_marked_ones_and_never_tell_of_a_held_out_combination() -> None:
    others = split_combinations()["train"]
    rng = np.random.default_rng(1)
    for scene in scenes("turn", 200):
        scene = dataclasses.replace(scene, company=None)
        shown = (scene.shape, scene.colour, scene.motion)
        segments, faults = narrate_carelessly(scene, others, rng)
        marked = {fault["segment"]: fault["kind"] for fault in faults}
        for number, segment in enumerate(segments):
            heard = said(segment["text"])
            if number in marked:
                assert heard != shown
                assert heard in others
                place = {"late": number == 0, "early": number == NUM_CAPTIONS - 1}
                assert place.get(marked[number], True)
            else:
                assert all(a in (None, b) for a, b in zip(heard, shown, strict=True))


@pytest.mark.slow
def test_training_captions_fit_the_words_that_a_text_model_reads() -> None:
    others, rng = split_combinations()["train"], np.random.default_rng(2)
    texts = [
        segment["text"]
        for motion in MOTIONS
        for scene in scenes(motion, 100)
        for segment in narrate_carelessly(scene, others, rng)[0]
    ]
    assert max(len(text.split()) for text in texts) <= 16
    assert 100 <= len({word for text in texts for word in text.split()}) <= 200
    assert not [text for text in texts if " a orange" in text or " a azure" in text]


def test_validation_captions_are_whole_right_and_all_worded_differently(tiny_corpus: Path) -> None:
    for line in captions_of(tiny_corpus / "validation"):
        texts = [segment["text"] for segment in line["segments"]]
        assert len(set(texts)) == NUM_CAPTIONS
        assert {said(text) for text in texts} == {(line["shape"], line["colour"], line["motion"])}
        assert line["faults"] == []


def test_captions_lie_within_their_file_in_order(tiny_corpus: Path) -> None:
    for line in captions_of(tiny_corpus / "train"):
        duration = probe(tiny_corpus / "train" / line["file"]).duration_seconds
        starts = [segment["start_seconds"] for segment in line["segments"]]
        assert starts == sorted(starts)
        for segment in line["segments"]:
            assert 0 <= segment["start_seconds"] < segment["end_seconds"] <= duration + 1e-3


# ---------------------------------------------------------------------------------------- pictures
@pytest.mark.parametrize("motion", MOTIONS)
def test_at_most_a_fifth_of_the_object_leaves_the_central_square(motion: str) -> None:
    for scene in scenes(motion, 60):
        x, y, radius, _ = trajectory(scene)
        outside = np.maximum(np.abs(x), np.abs(y)) + EXTENT * radius - 0.5
        assert (outside / (2 * EXTENT * radius)).max() <= 0.2


@pytest.mark.parametrize("motion", ["left", "right", "up", "down", "grow", "shrink"])
def test_any_window_of_a_file_shows_where_it_goes(motion: str) -> None:
    row = {"left": 0, "right": 0, "up": 1, "down": 1, "grow": 2, "shrink": 2}[motion]
    sign = -1 if motion in ("left", "up", "shrink") else 1
    for scene in scenes(motion, 30):
        course = trajectory(scene)[row] * sign
        window = round(1.6 * scene.frame_rate)
        for start in range(scene.num_frames - window):
            steps = np.diff(course[start : start + window])
            assert (steps > 0).mean() > 0.95  # all but at most one jump back


def test_an_object_bounces_at_least_once_in_any_window_and_touches_the_ground_at_a_frame() -> None:
    for scene in scenes("bounce", 40):
        height = trajectory(scene)[1]
        impacts = np.flatnonzero(np.isclose(height, height.max()))
        assert impacts[0] == scene.first_impact
        assert set(np.diff(impacts)) == {scene.bounce_frames}
        assert scene.bounce_frames <= 1.0 * scene.frame_rate < 1.6 * scene.frame_rate


def test_pictures_show_the_object_where_the_trajectory_says() -> None:
    for shape in SHAPES:
        scene = draw_scene(shape, "yellow", "left", np.random.default_rng(5))
        scene = dataclasses.replace(scene, company=None)
        frames = render_scene(scene, np.random.default_rng(6)).astype(int)
        assert frames.shape == (scene.num_frames, scene.height, scene.width, 3)
        yellow = (frames[..., 0] > 170) & (frames[..., 2] < 110)
        columns = np.arange(scene.width)
        centres = (yellow.sum(1) * columns).sum(1) / yellow.sum((1, 2))
        expected = scene.width / 2 + min(scene.width, scene.height) * trajectory(scene)[0]
        assert np.corrcoef(centres, expected)[0, 1] > 0.99


# ------------------------------------------------------------------------------------------ sounds
def band_energies(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Energy in decibels of thirds of an octave from 200 Hz, the loudest at 0."""
    power = np.abs(np.fft.rfft(waveform)) ** 2
    frequencies = np.fft.rfftfreq(len(waveform), 1 / sample_rate)
    edges = 200 * 2 ** (np.arange(15) / 3)
    energies = [
        power[(a <= frequencies) & (frequencies < b)].sum() for a, b in itertools.pairwise(edges)
    ]
    decibels = 10 * np.log10(energies)
    return decibels - decibels.max()


@pytest.mark.slow
def test_shapes_are_told_apart_by_the_bands_of_their_sound_whatever_the_motion() -> None:
    heard: dict[str, list[np.ndarray]] = {shape: [] for shape in SHAPES}
    for number, (shape, motion) in enumerate(itertools.product(SHAPES, MOTIONS)):
        for variant in range(2):
            rng = np.random.default_rng((number, variant))
            scene = draw_scene(shape, "red", motion, rng)
            heard[shape].append(band_energies(synthesize_sound(scene, rng), scene.sample_rate))
    centroids = np.stack([np.mean(heard[shape][::2], axis=0) for shape in SHAPES])
    right = [
        np.argmin(((bands - centroids) ** 2).sum(1)) == label
        for label, shape in enumerate(SHAPES)
        for bands in heard[shape][1::2]
    ]
    assert np.mean(right) >= 0.95


def loudness(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Root mean square of windows of 10 ms."""
    step = sample_rate // 100
    return np.sqrt((waveform[: len(waveform) // step * step].reshape(-1, step) ** 2).mean(1))


@pytest.mark.parametrize(("motion", "sign"), [("grow", 1), ("shrink", -1)])
def test_a_growing_object_gets_louder_and_a_shrinking_one_fainter(motion: str, sign: int) -> None:
    for scene in scenes(motion, 12):
        sound = synthesize_sound(scene, np.random.default_rng(3))
        middle = round(scene.duration_seconds / 2 * scene.sample_rate)
        half = round(0.8 * scene.sample_rate)
        course = loudness(sound[middle - half : middle + half], scene.sample_rate)
        fifths = course.reshape(5, -1).mean(1)
        assert (np.diff(fifths) * sign > 0).all()


@pytest.mark.slow
def test_impacts_are_heard_in_the_file_at_the_frame_where_they_are_seen(tmp_path: Path) -> None:
    bounces = [i for i in range(80) if combination_of(0, "train", i)[2] == "bounce"]
    (tmp_path / "train").mkdir()
    checked = 0
    for index in bounces:
        line = write_clip(tmp_path, 0, ("train", index))
        if (
            not line["sound"] or line["shape"] == "fence"
        ):  # the crackle of a fence has no clean edge
            continue
        rng = np.random.default_rng((0, 0, index, 0))
        scene = draw_scene(*combination_of(0, "train", index), rng)
        first = (scene.first_impact or scene.bounce_frames) / scene.frame_rate
        sound, coverage = read_waveform(
            tmp_path / "train" / line["file"],
            start_seconds=0.0,
            num_samples=32_000,
            sample_rate=16_000,
        )
        assert coverage == 1
        before, after = (
            np.sqrt(np.mean(sound.numpy()[round(t * 16_000) :][:480] ** 2))  # 30 ms
            for t in (first - 0.035, first + 0.005)
        )
        assert after > 5 * before
        checked += 1
    assert checked >= 3


# ------------------------------------------------------------------------------------------- files
@pytest.mark.slow
def test_files_differ_in_length_size_rates_and_in_what_they_lack(tiny_corpus: Path) -> None:
    lines = captions_of(tiny_corpus / "train") + captions_of(tiny_corpus / "validation")
    splits = ["train"] * 24 + ["validation"] * 100
    infos = [
        probe(tiny_corpus / split / line["file"]) for split, line in zip(splits, lines, strict=True)
    ]
    assert {info.frame_rate for info in infos} == {24, 25, 30}
    sample_rates = {info.sample_rate for info in infos if info.has_audio}
    assert sample_rates == {16_000, 22_050, 32_000, 44_100}
    assert len({(info.width, info.height) for info in infos}) == 12
    durations = [info.duration_seconds for info in infos]
    assert min(durations) > 1.9
    assert max(durations) < 3.6
    assert [info.has_audio for info in infos] == [line["sound"] for line in lines]
    train, validation = lines[:24], lines[24:]
    assert 0 < sum(not line["sound"] for line in train) < 12
    assert 0 < sum(not line["segments"] for line in train) < 12
    assert all(line["sound"] and line["segments"] for line in validation)


def test_training_never_shows_a_held_out_combination(tiny_corpus: Path) -> None:
    shown = {
        split: {(c["shape"], c["colour"], c["motion"]) for c in captions_of(tiny_corpus / split)}
        for split in ("train", "validation")
    }
    assert shown["validation"] == set(split_combinations()["validation"])
    assert shown["train"] <= set(split_combinations()["train"])


def test_the_description_says_what_is_there(tiny_corpus: Path) -> None:
    description = json.loads((tiny_corpus / "corpus.json").read_text())
    assert (description["seed"], description["num_train"]) == (0, 24)
    assert description["num_validation"] == description["counts"]["validation"]["files"] == 100
    assert description["oracles"] == two_attribute_oracles(split_combinations()["validation"])
    assert len(description["combinations"]["validation"]) == 100
    lines = captions_of(tiny_corpus / "train")
    assert description["counts"]["train"]["without_sound"] == sum(not c["sound"] for c in lines)


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(
    tmp_path: Path,
) -> None:
    for name, num_workers, seed in (("a", 0, 3), ("b", 2, 3), ("c", 0, 4)):
        write_corpus(
            tmp_path / name,
            num_train=5,
            num_validation_renderings=0,
            seed=seed,
            num_workers=num_workers,
            show_progress=False,
        )
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")
    a, c = contents_of(tmp_path / "a"), contents_of(tmp_path / "c")
    assert not {name for name in a if name.endswith(".mp4") and a[name] == c[name]}


def small_corpus(out: Path, **changes: int) -> bool:
    """Writes two files; returns whether they were there already."""
    options = {"num_train": 2, "num_validation_renderings": 0, "num_workers": 0, **changes}
    return not write_corpus(out, show_progress=False, **options)


def test_a_finished_corpus_is_used_again_a_damaged_one_replaced_and_another_left_alone(
    tmp_path: Path,
) -> None:
    out = tmp_path / "corpus"
    assert [small_corpus(out), small_corpus(out)] == [False, True]
    whole = contents_of(out)
    (out / "train" / "000001.mp4").unlink()
    assert [small_corpus(out), small_corpus(out)] == [False, True]
    for changes, words in (({"num_train": 1}, "num_train 2, not 1"), ({"seed": 1}, "seed 0, not")):
        with pytest.raises(UserError, match=rf"holds a corpus with {words}.* give another folder"):
            small_corpus(out, **changes)
    assert contents_of(out) == whole


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match=r"not a demo corpus: give another folder"):
        small_corpus(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="not a demo corpus"):
        small_corpus(tmp_path / "thesis.txt")


@pytest.mark.parametrize("name", ["num_train", "num_validation_renderings", "seed", "num_workers"])
def test_negative_numbers_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"{name} must be at least 0, got -1"):
        small_corpus(tmp_path / "corpus", **{name: -1})


PROGRAM = """
import resource, sys
from vatt.demo.corpus import write_corpus
if __name__ == "__main__":
    limit = int(sys.argv[3])
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    write_corpus(sys.argv[1], num_train=400, num_workers=int(sys.argv[2]), show_progress=False)
"""


def program(folder: Path, num_workers: int, limit: int = 0) -> list[str]:
    (folder / "program.py").write_text(PROGRAM)
    return [
        sys.executable,
        str(folder / "program.py"),
        str(folder / "x" / "corpus"),
        str(num_workers),
        str(limit),
    ]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_ends_it_naming_a_file_and_leaves_nothing(
    tmp_path: Path, num_workers: int
) -> None:
    # A limit on the size of files stands in for a full disk: the same call fails half-way.
    command = program(tmp_path, num_workers, limit=5_000)
    finished = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert finished.returncode == 1
    last_line = finished.stderr.strip().splitlines()[-1]
    assert last_line.startswith("OSError")
    assert ".mp4" in last_line
    assert list((tmp_path / "x").iterdir()) == []


def start_and_wait_for_files(tmp_path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        program(tmp_path, 2), env=ENVIRONMENT, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("x/.*/train/*.mp4"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.slow
def test_ctrl_c_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    process = start_and_wait_for_files(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert errors.strip().endswith(b"KeyboardInterrupt")
    assert list((tmp_path / "x").iterdir()) == []
    deadline = time.monotonic() + 10
    while group_is_alive(process.pid):  # Python's own helper goes last
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_for_the_user(tmp_path: Path) -> None:
    process = start_and_wait_for_files(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(int(workers[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert b"crashed its process (SIGKILL): was it killed for lack of memory?" in errors
    assert list((tmp_path / "x").iterdir()) == []


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = start_and_wait_for_files(tmp_path)
    process.kill()
    process.communicate(timeout=30)  # the workers hold the pipe: it ends when they have ended
    assert len(list((tmp_path / "x").iterdir())) == 1
    small_corpus(tmp_path / "x" / "corpus")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["corpus"]
