"""Linear evaluation on the demo corpus: the classifier, its inputs, and how both are paired."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import fit_arguments

from vatt.batch import Batch
from vatt.cli import main
from vatt.config.presets import preset
from vatt.demo.linear import (
    REGULARISATIONS,
    choose_regularisation,
    evaluate_linearly,
    fit_logistic,
    raw_values,
    read_rows,
    untrained,
)
from vatt.models.checkpoint import load_model
from vatt.network.model import VATT

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}
COMBINATIONS = [(s, c, m) for m in ("up", "down") for c in COLOURS for s in ("ball", "ring")]


@pytest.fixture(scope="module")
def model() -> VATT:
    torch.manual_seed(1)
    return VATT(preset("tiny")).eval()


def clips_of(model: VATT, combinations: list[tuple[str, ...]], seed: int) -> Batch:
    """Noisy pictures of the right colour; every third clip has no sound."""
    rng = np.random.default_rng(seed)
    video, audio = model.config.video, model.config.audio
    size = (len(combinations), video.num_frames, video.image_size, video.image_size, 3)
    pictures = np.array([COLOURS[c] for _, c, _ in combinations])[:, None, None, None]
    noisy = (pictures + rng.normal(0, 20, size)).clip(0, 255).astype(np.uint8)
    return Batch(
        video=torch.from_numpy(noisy),
        audio=torch.from_numpy(rng.uniform(-1, 1, (size[0], audio.num_samples))).float(),
        text=None,
        video_mask=torch.ones(size[0], dtype=torch.bool),
        audio_mask=torch.arange(size[0]) % 3 != 0,
    )


@pytest.mark.parametrize("strength", [1.0, 0.01])
def test_the_classifier_is_scikit_learns_logistic_regression(strength: float):
    from sklearn import linear_model

    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=150)
    rows = rng.standard_normal((150, 12)) + rng.standard_normal((4, 12))[labels]
    weights = fit_logistic((torch.from_numpy(rows), torch.from_numpy(labels)), 4, strength).numpy()
    theirs = linear_model.LogisticRegression(C=1 / (150 * strength), max_iter=1000, tol=1e-8)
    theirs.fit(rows, labels)
    # Ours stops once no gradient is above 1e-5. Over a curvature of `strength` = 0.01 this is 1e-3,
    # and 1.0e-3 was measured; another CPU may take its last step elsewhere.
    assert np.allclose(weights[:, :-1], theirs.coef_, atol=2e-3)
    elsewhere = torch.ones(4, 13, dtype=torch.float64)
    train = torch.from_numpy(rows), torch.from_numpy(labels)
    again = fit_logistic(train, 4, strength, start=elsewhere)
    assert np.allclose(again[:, :-1], theirs.coef_, atol=2e-3)  # wherever it begins


def test_of_equally_good_regularisations_the_strongest_is_chosen():
    labels = torch.arange(40) % 2
    rows = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    rows[:, 0] += 2.0 * labels - 1
    train, held_out = (rows[:30], labels[:30]), (rows[30:], labels[30:])
    strength, weights = choose_regularisation(train, held_out, 2)
    assert strength == REGULARISATIONS[0]
    assert torch.equal(weights, fit_logistic(train, 2, strength))


def test_what_generalises_is_chosen_over_what_fits():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (240,), generator=generator)
    rows = torch.randn(240, 60, generator=generator)
    rows[:, 0] += labels  # one weak sign among noise, and few rows to learn it from
    train, held_out = (rows[:60], labels[:60]), (rows[60:], labels[60:])
    strength, weights = choose_regularisation(train, held_out, 2)
    assert strength > REGULARISATIONS[-1]
    assert weights is not None
    loosest = fit_logistic(train, 2, REGULARISATIONS[-1])
    hits = [
        (rows[60:] @ w[:, :-1].T + w[:, -1]).argmax(dim=1) == held_out[1]
        for w in (weights, loosest)
    ]
    assert hits[0].sum() > hits[1].sum()


def test_raw_pictures_are_small_and_raw_sound_is_a_spectrogram():
    frames = torch.zeros(2, 3, 16, 16, 3, dtype=torch.uint8)
    frames[1, 2, :2, :2] = torch.tensor([10, 20, 30], dtype=torch.uint8)  # one cell of 8 × 8
    rows = raw_values(frames, sample_rate=8000)
    assert rows.shape == (2, 3 * 3 * 8 * 8)
    assert rows[1].unflatten(0, (3, 3, 8, 8))[2, :, 0, 0].tolist() == [10, 20, 30]
    assert rows[1].count_nonzero() == 3
    times = torch.arange(8000) / 8000
    tones = torch.sin(2 * torch.pi * torch.tensor([[300.0], [2000.0]]) * times)
    heard = raw_values(tones, sample_rate=8000)
    low, high = heard.unflatten(1, (-1, 80)).mean(dim=1).argmax(dim=1).tolist()
    assert low < 25 < 50 < high


def test_clips_that_lack_a_modality_leave_the_others_with_their_labels(model: VATT):
    first, second = COMBINATIONS[:5], COMBINATIONS[5:]
    batches = [clips_of(model, first, 0), clips_of(model, second, 1)]
    rows, shown = read_rows({"pretrained": model}, batches, COMBINATIONS)
    assert shown["video"] == COMBINATIONS
    kept = [*(first[i] for i in (1, 2, 4)), *(second[i] for i in (1, 2, 4, 5))]
    assert shown["audio"] == kept
    alone = model.encode_audio(batches[1].audio[[4]]).detach()
    assert torch.allclose(rows["audio", "pretrained"][[5]], alone, atol=1e-5)
    assert len(rows["audio", "raw"]) == len(kept)


@pytest.mark.slow
def test_a_colour_is_read_from_pixels_and_what_is_not_there_from_nothing(model: VATT):
    train, test = COMBINATIONS * 6, COMBINATIONS * 4
    state = torch.get_rng_state()

    def evaluate() -> dict:
        return evaluate_linearly(
            model,
            ([clips_of(model, train, 2)], train),
            ([clips_of(model, test, 3)], test),
            seed=0,
        )

    found = evaluate()
    assert (found["num_train"], found["num_test"]) == (72, 48)
    rows = {(row["modality"], row["attribute"]): row for row in found["rows"]}
    assert rows["video", "colour"]["raw"] == 100
    assert rows["video", "colour"]["chance"] == pytest.approx(100 / 3)
    assert rows["audio", "sound"]["chance"] == 25
    assert all(rows["video", "shape"][source] < 80 for source in ("pretrained", "random", "raw"))
    assert evaluate() == found
    assert torch.equal(torch.get_rng_state(), state)


def test_sound_that_no_clip_has_is_left_out(model: VATT):
    batch = clips_of(model, COMBINATIONS, 0)
    batch = replace(batch, audio_mask=torch.zeros(len(batch), dtype=torch.bool))
    found = evaluate_linearly(model, ([batch], COMBINATIONS), ([batch], COMBINATIONS), seed=0)
    assert {row["modality"] for row in found["rows"]} == {"video"}


def test_an_attribute_of_which_all_training_clips_have_one_value_is_left_out(model: VATT):
    train = [combination for combination in COMBINATIONS if combination[0] == "ball"]
    test = clips_of(model, COMBINATIONS, 1)
    found = evaluate_linearly(
        model, ([clips_of(model, train, 0)], train), ([test], COMBINATIONS), seed=0
    )
    rows = [(row["modality"], row["attribute"]) for row in found["rows"]]
    assert rows == [
        *(("video", name) for name in ("colour", "motion", "sound")),
        *(("audio", name) for name in ("motion", "sound")),
    ]


@pytest.mark.slow
def test_the_random_weights_are_those_that_training_begins_with(tiny_shards: Path, tmp_path: Path):
    still = ("--model.init_args.optimizer.learning_rate=1e-30", "--seed_everything=5")
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *still)) == 0
    trained = load_model(tmp_path / "run" / "checkpoints" / "last.ckpt")
    begun = untrained(trained, 5).state_dict()
    for name, value in trained.state_dict().items():
        if "running" not in name and "batches" not in name:  # batch statistics are not learned
            assert torch.allclose(value, begun[name], rtol=0, atol=1e-25), name
