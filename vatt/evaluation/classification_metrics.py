"""Metrics of classifiers: top-k accuracy, average precision, area under the ROC curve, d′.

Results equal those of scikit-learn on the same scores, including ties. torchmetrics 1.9 gives
others: it divides counts in float32, applies a sigmoid to scores outside [0, 1], which makes ties
(mAP 2.7 instead of 11.6 for logits of ±30), and breaks ties of top-k as `torch.topk` does (top-1
21.9 instead of 21.7 for integer scores). Shapes: `N` clips, `C` classes.
"""

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vatt.errors import UserError
from vatt.evaluation.retrieval import retrieval_ranks
from vatt.sets.classification import TEST
from vatt.sets.items import Item


def accuracies(scores_NC: Tensor, labels_N: Tensor) -> dict[str, float]:
    """`top-1` and, with more than five classes, `top-5`, in percent; a tie at the limit is a miss.

    Args:
        scores_NC: float `[N, C]`, higher is better.
        labels_N: int64 `[N]`, in [0, C).
    """
    return _top_k("top-", retrieval_ranks(scores_NC, labels_N), scores_NC.shape[1])


def accuracies_by_fold(
    name: str, items: Sequence[Item], classes: Sequence[str], score: Callable[[int, Tensor], Tensor]
) -> dict[str, dict[str, float]]:
    """Rows of a table: accuracies in each fold, and their means over the folds.

    Args:
        name: Name of the classifier.
        items: Clips with labels and splits.
        classes: All labels.
        score: Function that returns the scores `[n, C]` of the test clips of a fold; it gets the
            index of the fold and the indices of these clips among the items, int64 `[n]`.

    Raises:
        UserError: a fold has no test clips.
    """
    labels = torch.tensor([classes.index(item.label) for item in items])
    folds = []
    for fold in range(len(items[0].splits)):
        test = split_places(items, fold, TEST)
        folds.append(accuracies(score(fold, test), labels[test]))
    rows = {f"{name}, fold {number}": fold for number, fold in enumerate(folds, start=1)}
    means = {column: sum(fold[column] for fold in folds) / len(folds) for column in folds[0]}
    return {**rows, f"{name}, mean of folds": means}


def split_places(items: Sequence[Item], fold: int, split: str) -> Tensor:
    """Indices of the clips in a split of a fold, int64 `[n]`.

    Raises:
        UserError: there are no such clips.
    """
    places = [place for place, item in enumerate(items) if item.splits[fold] == split]
    if not places:
        raise UserError(f"fold {fold + 1} has no {split} clip that can be read: give at least one")
    return torch.tensor(places)


def d_prime(auc: float) -> float:
    """√2 times the standard normal quantile of an AUC; ±infinity at 1 and 0."""
    if not 0 < auc < 1:
        return math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def single_label_metrics(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """`top1` and, with more than five classes, `top5`, in percent.

    Among classes with the same score, the last one ranks best, as in scikit-learn.

    Args:
        scores: float `[N, C]`.
        labels: float or bool `[N, C]`, one class per clip.

    Raises:
        ValueError: shapes do not fit, a clip does not have exactly one class, or there are no
            clips.
    """
    _check(scores, labels)
    if not bool((labels.sum(dim=1) == 1).all()):
        raise UserError("each clip must have one class: set classifier.multi_label for others")
    target = labels.argmax(dim=1, keepdim=True)
    wanted, is_later = scores.gather(1, target), torch.arange(scores.shape[1]) > target
    ranks = ((scores > wanted) | ((scores == wanted) & is_later)).sum(dim=1)
    return _top_k("top", ranks, scores.shape[1])


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
    _check(scores, labels)
    values, truths = scores.double().cpu().numpy(), labels.bool().cpu().numpy()
    counts = truths.sum(axis=0)
    known = np.flatnonzero((counts > 0) & (counts < len(truths)))
    if not len(known):
        return {"num_classes": 0.0}
    areas = np.array([precision_and_roc_area(values[:, c], truths[:, c]) for c in known])
    return {
        "mAP": 100.0 * float(np.mean(areas[:, 0])),
        "AUC": 100.0 * float(np.mean(areas[:, 1])),
        "d_prime": sum(map(d_prime, areas[:, 1].tolist())) / len(areas),
        "num_classes": float(len(known)),
    }


def precision_and_roc_area(
    scores: NDArray[np.float64], truths: NDArray[np.bool_]
) -> tuple[float, float]:
    """Average precision of one class, and the area under its ROC curve, both in [0, 1].

    The first is the area under the step curve of precision over recall. The second is the
    probability that a clip with the class scores higher than one without; a tie counts half.

    Args:
        scores: Score of each clip, `[N]`.
        truths: Whether each clip has the class, `[N]`; must have both values.
    """
    _, thresholds = np.unique(-scores, return_inverse=True)  # from the highest score down
    hits = np.cumsum(np.bincount(thresholds, truths))
    seen = np.cumsum(np.bincount(thresholds))
    precision = np.sum(np.diff(hits, prepend=0) / hits[-1] * hits / seen)
    recalls, false_alarms = (np.insert(n / n[-1], 0, 0) for n in (hits, seen - hits))
    return float(precision), float(np.trapezoid(recalls, false_alarms))


def _top_k(name: str, ranks: Tensor, num_classes: int) -> dict[str, float]:
    """Percent of clips whose class is the best or, of more than five, among the five best."""
    ks = (1, 5) if num_classes > 5 else (1,)
    return {f"{name}{k}": 100.0 * float((ranks <= k - 1).double().mean()) for k in ks}


def _check(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must be [N, C], got {list(scores.shape)} and {list(labels.shape)}"
        )
    if not len(scores):
        raise UserError("no clip to take metrics over")
    if bool(scores.isnan().any()):
        raise UserError("scores are NaN: the model has diverged")
