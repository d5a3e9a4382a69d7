import numpy as np
import pytest
import torch

from vatt.evaluation.retrieval import embedding_ranks, retrieval_metrics, retrieval_ranks


def brute_force_rank(scores: list[float], target: int) -> float:
    wanted = scores[target]
    if np.isnan(wanted):
        return float("inf")
    others = [s for i, s in enumerate(scores) if i != target]
    return sum(s > wanted for s in others) + 0.5 * sum(s == wanted for s in others)


@pytest.mark.parametrize("num_levels", [3, 10_000])
def test_ranks_equal_a_loop_over_every_pair_also_with_ties_and_nan(num_levels: int):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(num_levels, (60, 40), generator=generator).double() / num_levels
    scores[torch.rand(60, 40, generator=generator) < 0.1] = torch.nan
    target = torch.randint(40, (60,), generator=generator)
    expected = [brute_force_rank(row, t) for row, t in zip(scores.tolist(), target, strict=True)]
    assert any(np.isinf(expected))
    assert retrieval_ranks(scores, target).tolist() == expected


def test_the_best_candidate_has_rank_zero_and_the_worst_the_last():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2]])
    assert retrieval_ranks(scores, torch.tensor([0, 1])).tolist() == [0, 2]


def test_a_model_that_scores_everything_the_same_is_no_better_than_the_middle():
    ranks = retrieval_ranks(torch.zeros(100, 100), torch.arange(100))
    metrics = retrieval_metrics(ranks)
    assert ranks.unique().tolist() == [49.5]
    assert metrics == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0, "MedR": 50.5, "MeanR": 50.5}


def test_nan_is_never_a_hit_even_among_three_candidates():
    ranks = retrieval_ranks(torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.int64))
    metrics = retrieval_metrics(ranks)
    assert [metrics["R@1"], metrics["R@5"], metrics["R@10"]] == [0, 0, 0]
    assert metrics["MedR"] == float("inf")


def test_a_tie_with_one_other_is_not_a_hit_at_one():
    ranks = retrieval_ranks(torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([0]))
    assert retrieval_metrics(ranks)["R@1"] == 0
    assert retrieval_metrics(ranks)["R@5"] == 100


def test_recalls_are_percentages_and_the_median_rank_counts_from_one():
    metrics = retrieval_metrics(torch.tensor([0.0, 0.0, 4.0, 5.0, 9.0, 10.0]))
    assert metrics["R@1"] == pytest.approx(100 * 2 / 6, abs=1e-9)
    assert metrics["R@5"] == pytest.approx(100 * 3 / 6, abs=1e-9)
    assert metrics["R@10"] == pytest.approx(100 * 5 / 6, abs=1e-9)
    assert metrics["MedR"] == 5.5
    assert metrics["MeanR"] == pytest.approx(28 / 6 + 1, abs=1e-9)


@pytest.mark.parametrize("queries_per_chunk", [1, 7, 1000])
def test_chunks_change_nothing(queries_per_chunk: int):
    generator = torch.Generator().manual_seed(1)
    queries = torch.randint(-2, 3, (50, 6), generator=generator).float()  # exact products: ties
    candidates = torch.randint(-2, 3, (30, 6), generator=generator).float()
    target = torch.randint(30, (50,), generator=generator)
    whole = retrieval_ranks(queries @ candidates.T, target)
    assert (whole % 1 == 0.5).any()
    assert embedding_ranks(queries, candidates, target, queries_per_chunk).equal(whole)


def test_no_query_has_no_metrics():
    none = embedding_ranks(torch.zeros(0, 4), torch.zeros(3, 4), torch.zeros(0, dtype=torch.int64))
    assert none.shape == (0,)
    with pytest.raises(ValueError, match="no query"):
        retrieval_metrics(none)


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0]), r"\(2, 3\), \(1,\)"),
        (torch.zeros(2), torch.tensor([0, 0]), r"must be \[Q, C\]"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(scores, target, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(scores, target)
