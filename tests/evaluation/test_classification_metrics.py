"""Metrics of classifiers: equal to those of scikit-learn and of loops."""

import math

import numpy as np
import pytest
import torch

from vatt.evaluation.classification_metrics import (
    d_prime,
    multi_label_metrics,
    precision_and_roc_area,
    single_label_metrics,
)


def tied_scores(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of which many are the same, and labels."""
    draw = np.random.default_rng(seed)
    return draw.integers(0, 6, (rows, classes)) / 5.0, draw.random((rows, classes)) < 0.3


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn_with_ties(seed: int) -> None:
    from sklearn import metrics

    scores, truths = tied_scores(60, 7, seed)
    for column in range(7):
        one, truth = scores[:, column], truths[:, column]
        ours = precision_and_roc_area(one, truth)
        theirs = metrics.average_precision_score(truth, one), metrics.roc_auc_score(truth, one)
        assert ours == pytest.approx(theirs, abs=1e-12)
    values = multi_label_metrics(torch.from_numpy(scores), torch.from_numpy(truths))
    mean = metrics.average_precision_score(truths, scores, average="macro")
    assert values["mAP"] == pytest.approx(100 * mean, abs=1e-9)
    area = metrics.roc_auc_score(truths, scores, average="macro")
    assert values["AUC"] == pytest.approx(100 * area, abs=1e-9)
    target = truths.argmax(axis=1)
    tops = single_label_metrics(torch.from_numpy(scores), torch.eye(7)[target])
    assert tops.keys() == {"top1", "top5"}
    for k in (1, 5):
        theirs = metrics.top_k_accuracy_score(target, scores, k=k, labels=range(7))
        assert tops[f"top{k}"] == pytest.approx(100 * theirs, abs=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_loops(seed: int) -> None:
    scores, truths = tied_scores(40, 1, seed)
    one, truth = scores[:, 0], truths[:, 0]
    wins = [float(a > b) + 0.5 * float(a == b) for a in one[truth] for b in one[~truth]]
    precision, roc = precision_and_roc_area(one, truth)
    assert roc == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    area, before = 0.0, 0.0
    for threshold in sorted(set(one.tolist()), reverse=True):
        chosen = one >= threshold
        recall = (chosen & truth).sum() / truth.sum()
        area += (recall - before) * (chosen & truth).sum() / chosen.sum()
        before = recall
    assert precision == pytest.approx(area, abs=1e-12)


def test_perfect_and_useless_scores_have_known_values() -> None:
    truth = np.array([True, False, True, False])
    assert precision_and_roc_area(np.array([4.0, 1.0, 3.0, 2.0]), truth) == (1.0, 1.0)
    assert precision_and_roc_area(np.zeros(4), truth) == (0.5, 0.5)
    assert d_prime(0.5) == pytest.approx(0.0)
    assert d_prime(0.971) == pytest.approx(2.681, abs=1e-3)
    assert (d_prime(1.0), d_prime(0.0)) == (math.inf, -math.inf)


def test_classes_that_no_clip_or_every_clip_has_are_left_out_and_counted() -> None:
    scores, truths = tied_scores(30, 4, 0)
    whole = multi_label_metrics(torch.from_numpy(scores[:, :2]), torch.from_numpy(truths[:, :2]))
    truths[:, 2], truths[:, 3] = False, True
    assert multi_label_metrics(torch.from_numpy(scores), torch.from_numpy(truths)) == whole
    assert whole["num_classes"] == 2
    areas = [precision_and_roc_area(scores[:, c], truths[:, c])[1] for c in range(2)]
    assert whole["d_prime"] == pytest.approx((d_prime(areas[0]) + d_prime(areas[1])) / 2)
    assert multi_label_metrics(torch.zeros(3, 2), torch.zeros(3, 2)) == {"num_classes": 0.0}


def test_what_has_no_metrics_is_refused() -> None:
    labels = torch.eye(3)
    assert single_label_metrics(labels, labels) == {"top1": 100.0}  # three classes: no top-5
    with pytest.raises(ValueError, match="must have one class"):
        single_label_metrics(labels, torch.ones(3, 3))
    with pytest.raises(ValueError, match="scores are NaN"):
        single_label_metrics(labels * math.nan, labels)
    with pytest.raises(ValueError, match="no clip"):
        multi_label_metrics(torch.zeros(0, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"got \[3, 3\] and \[3, 2\]"):
        multi_label_metrics(labels, torch.zeros(3, 2))
