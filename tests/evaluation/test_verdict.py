"""The verdict on a model: more than chance, not more, or nothing to say."""

import numpy as np
import pytest

from vatt.evaluation.verdict import Verdict, judge, permutation_test, verdict_sentence


def scores_of(num_clips: int, skill: float, seed: int = 0) -> np.ndarray:
    """Similarities in which matches are better than others by `skill` standard deviations."""
    noise = np.random.default_rng(seed).standard_normal((num_clips, num_clips))
    return noise + skill * np.eye(num_clips)


def verdicts_of(scores: np.ndarray) -> list[Verdict]:
    n, metrics = len(scores), {}
    for direction, rows in (("text_to_video", scores), ("video_to_text", scores.T)):
        recall = 100.0 * float((rows.argmax(axis=1) == np.arange(n)).mean())
        metrics[direction] = {"R@1": recall, "num_queries": float(n), "num_candidates": float(n)}
    return judge(metrics, {"text_to_video": scores})


def test_a_model_that_finds_its_clips_has_learned_more_than_chance() -> None:
    first, second = verdicts_of(scores_of(50, skill=4))
    assert first.is_sure_by_recall
    assert second.direction == "video_to_text"
    sentence = verdict_sentence([first, second])
    assert sentence.startswith(
        "The model has learned more than chance: given a sentence, the right clip of 50 is the "
        f"first for {first.recall:.3g} % of 50 queries (95 % interval "
    )
    assert sentence.endswith("guessing would get 2 %.")


def test_a_model_that_guesses_has_not() -> None:
    verdicts = verdicts_of(scores_of(50, skill=0))
    assert [one.word for one in verdicts] == ["not above chance"] * 2
    sentence = verdict_sentence(verdicts)
    assert sentence.startswith("Nothing shows that the model has learned more than chance: given")
    assert "which luck reaches with p = 0." in sentence


def test_a_little_skill_shows_in_the_mean_rank_before_it_shows_in_the_first_place() -> None:
    verdict = verdicts_of(scores_of(40, skill=0.6, seed=3))[0]
    assert not verdict.is_sure_by_recall
    assert verdict.is_above
    assert "its mean place is" in str(verdict)


def test_with_four_queries_nothing_can_be_said_even_if_all_are_right() -> None:
    for skill in (0, 100):
        verdicts = verdicts_of(scores_of(4, skill))
        assert {one.word for one in verdicts} == {"too few queries to say"}
        assert verdict_sentence(verdicts).startswith("With 4 queries nothing can be said")
    assert permutation_test(scores_of(4, 100)) == (1.0, 1 / 24)
    assert permutation_test(np.ones((1, 1))) == (1.0, 1.0)
    assert verdict_sentence([]).startswith("Nothing could be searched")


def test_directions_without_skill_are_named_beside_one_that_has_it() -> None:
    metrics = {
        name: {"R@1": recall, "num_queries": 60.0, "num_candidates": 60.0}
        for name, recall in (("text_to_video", 1.5), ("audio_to_video", 80.0))
    }
    similarity = {"text_to_video": scores_of(60, 0), "audio_to_video": scores_of(60, 4, seed=1)}
    sentence = verdict_sentence(judge(metrics, similarity))
    assert "given a sound, the right clip of 60" in sentence
    assert sentence.endswith("; this is not shown for text → video.")


def test_a_hub_that_is_near_to_every_query_is_no_skill() -> None:
    scores = np.tile(np.random.default_rng(0).standard_normal(30), (30, 1))
    assert permutation_test(scores)[1] == 1.0


def test_the_share_of_models_without_skill_that_pass_is_that_of_the_test() -> None:
    values = [permutation_test(scores_of(12, 0, seed))[1] for seed in range(60)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.12)
    assert np.mean(np.array(values) < 0.01) <= 0.05


def test_clips_without_a_modality_ask_nothing() -> None:
    scores = scores_of(20, skill=4)
    scores[:12] = np.nan
    scores[:, 3] = np.nan
    metrics = {"text_to_video": {"R@1": 100.0, "num_queries": 8.0, "num_candidates": 19.0}}
    (verdict,) = judge(metrics, {"text_to_video": scores})
    assert (verdict.num_clips, verdict.num_queries) == (8, 8)
