"""Metrics of classifiers: top-k accuracy, average precision, area under the ROC curve, d′.

Results equal those of scikit-learn on the same scores, including ties. Shapes: `N` clips, `C`
classes.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vatt.errors import UserError
from vatt.evaluation.retrieval import retrieval_ranks

Scores = NDArray[np.float64]
Truths = NDArray[np.bool_]


def class_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of each clip's class among all classes, 0 = best.

    Among classes with the same score, the last one ranks best, as in scikit-learn.

    Args:
        scores: float `[N, C]`.
        target: int64 `[N]`, in [0, C).

    Returns:
        int64 `[N]`.

    Raises:
        ValueError: shapes do not fit, there are no clips, or a score is NaN.
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            f"scores must be [N, C] and target [N], got {list(scores.shape)}, {list(target.shape)}"
        )
    _check_scores(scores)
    wanted = scores.gather(1, target[:, None])
    later = torch.arange(scores.shape[1], device=scores.device) > target[:, None]
    return ((scores > wanted) | ((scores == wanted) & later)).sum(dim=1)


def top_k_percentages(ranks: Tensor, num_classes: int) -> dict[int, float]:
    """Percentage of clips whose class ranks first, and among the first five of more classes.

    Args:
        ranks: Rank of each clip's class, 0 = best, `[N]`.
        num_classes: `C`.

    Returns:
        `{1: percent, 5: percent}`.
    """
    ks = (1, 5) if num_classes > 5 else (1,)
    return {k: 100.0 * float((ranks <= k - 1).double().mean()) for k in ks}


def accuracies(scores_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """`top-1` and, with more than five classes, `top-5`, in percent; a tie at the limit is a miss.

    Args:
        scores_NC: float `[N, C]`, higher is better.
        labels_N: int64 `[N]`, in [0, C).
    """
    ranks = retrieval_ranks(scores_NC, labels_N)
    return {f"top-{k}": x for k, x in top_k_percentages(ranks, scores_NC.shape[1]).items()}


def fold_rows(name: str, folds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Rows of a table: the accuracies in each fold, and their means over the folds."""
    rows = {f"{name}, fold {number}": fold for number, fold in enumerate(folds, start=1)}
    means = {column: sum(fold[column] for fold in folds) / len(folds) for column in folds[0]}
    return {**rows, f"{name}, mean of folds": means}


def average_precision(scores: Scores, truths: Truths) -> float:
    """Average precision of one class: area under the step curve of precision over recall.

    Args:
        scores: Score of each clip, `[N]`.
        truths: Whether each clip has the class, `[N]`.

    Returns:
        Value in [0, 1]; NaN if no clip has the class.
    """
    hits, seen = _counts_by_threshold(scores, truths)
    if hits[-1] == 0:
        return math.nan
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(gained * hits / seen))


def roc_auc(scores: Scores, truths: Truths) -> float:
    """Probability that a clip with the class scores higher than one without; a tie counts half.

    Args:
        scores: Score of each clip, `[N]`.
        truths: Whether each clip has the class, `[N]`.

    Returns:
        Value in [0, 1]; NaN if all clips have the class, or none.
    """
    hits, seen = _counts_by_threshold(scores, truths)
    misses = seen - hits
    if hits[-1] == 0 or misses[-1] == 0:
        return math.nan
    rates = [np.concatenate([[0], counts / counts[-1]]) for counts in (misses, hits)]
    return float(np.trapezoid(rates[1], rates[0]))


def d_prime(auc: float) -> float:
    """√2 times the standard normal quantile of an AUC; ±infinity at 1 and 0."""
    if math.isnan(auc) or not 0 < auc < 1:
        return auc if math.isnan(auc) else math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def single_label_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1` and, with more than five classes, `top5`, in percent.

    Args:
        scores: float `[N, C]`.
        labels: float or bool `[N, C]`, one class per clip.

    Raises:
        ValueError: shapes do not fit, a clip does not have exactly one class, or there are no
            clips.
    """
    _check_labels(scores, labels)
    if not bool((labels.sum(dim=1) == 1).all()):
        raise UserError("each clip must have one class: set classifier.multi_label for others")
    ranks = class_ranks(scores, labels.argmax(dim=1))
    return {f"top{k}": x for k, x in top_k_percentages(ranks, scores.shape[1]).items()}


def multi_label_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`mAP` and `AUC` in percent, and `d_prime`, as means over classes.

    Classes that no clip or every clip has are left out of the means. `num_classes` is the number of
    the other classes; if there are none, there are no means.

    d′ is the mean of the d′ of all classes, as in published results (AudioSet: AUC 0.971 with d′
    2.895; the d′ of the mean AUC would be 2.68). It is infinite if all clips of a class score
    higher than all others.

    Args:
        scores: float `[N, C]`.
        labels: float or bool `[N, C]`.

    Raises:
        ValueError: shapes do not fit, or there are no clips.
    """
    _check_labels(scores, labels)
    values = scores.double().cpu().numpy()
    truths = labels.bool().cpu().numpy()
    counts = truths.sum(axis=0)
    known = np.flatnonzero((counts > 0) & (counts < len(truths)))
    if not len(known):
        return {"num_classes": 0.0}
    precisions = [average_precision(values[:, c], truths[:, c]) for c in known]
    areas = [roc_auc(values[:, c], truths[:, c]) for c in known]
    return {
        "mAP": 100.0 * float(np.mean(precisions)),
        "AUC": 100.0 * float(np.mean(areas)),
        "d_prime": sum(d_prime(area) for area in areas) / len(areas),
        "num_classes": float(len(known)),
    }


def _counts_by_threshold(scores: Scores, truths: Truths) -> tuple[Scores, Scores]:
    """Hits and clips at or above each different score, from the highest down."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], np.cumsum(truths[order], dtype=np.float64)
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    return hits[last], last + 1.0


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be [N, C], got {list(scores.shape)} and {list(labels.shape)}"
        )
    _check_scores(scores)


def _check_scores(scores: Tensor) -> None:
    if not len(scores):
        raise UserError("no clip to take metrics over")
    if bool(scores.isnan().any()):
        raise UserError("scores are NaN: the model has diverged")
