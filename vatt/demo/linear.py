"""Linear evaluation on the demo corpus: linear classifiers on frozen features.

The same classifier, chosen in the same way, is trained on three kinds of input: features of the
pre-trained network, features of the same network with its initial random weights, and raw input
(pixels, or a log-mel spectrogram). It needs no scikit-learn, unlike `vatt.evaluation.linear`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.batch import Batch
from vatt.demo.corpus_scenes import ATTRIBUTES
from vatt.network.log_mel import LogMel
from vatt.network.model import VATT, present_rows

SOURCES = ("pretrained", "random", "raw")
# Modality, label, and the attributes that make the label. The sound of a clip is a timbre for each
# shape and a rhythm or melody for each motion, so that it is one of 48; colour makes none.
TASKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("video", "shape", ("shape",)),
    ("video", "colour", ("colour",)),
    ("video", "motion", ("motion",)),
    ("video", "sound", ("shape", "motion")),
    ("audio", "shape", ("shape",)),
    ("audio", "motion", ("motion",)),
    ("audio", "sound", ("shape", "motion")),
)
PIXELS = 8  # raw frames are averaged to 8 × 8: no size from 4 to 32 gave better results
REGULARISATIONS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # from strong to weak
PATIENCE = 2  # weaker strengths tried beyond the best one
MAX_ITERATIONS = 100  # per strength
HELD_OUT = 5  # every fifth combination of the training videos chooses the regularisation

Combination = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """Features of the clips that have a modality.

    Args:
        values: float32 `[n, D]`, one row per clip.
        combinations: Values of `ATTRIBUTES` of each clip.
    """

    values: Tensor
    combinations: tuple[Combination, ...]

    def labels(self, attributes: Sequence[str]) -> list[Combination]:
        """Values of some attributes of each clip."""
        places = [ATTRIBUTES.index(name) for name in attributes]
        return [tuple(combination[i] for i in places) for combination in self.combinations]


def evaluate_linearly(
    model: VATT,
    train: tuple[Iterable[Batch], Sequence[Combination]],
    test: tuple[Iterable[Batch], Sequence[Combination]],
    *,
    seed: int,
) -> dict[str, Any]:
    """Accuracies of linear classifiers on frozen features.

    Args:
        model: Pre-trained network in evaluation mode.
        train: Batches of training clips, and the values of `ATTRIBUTES` of each clip.
        test: The same for test clips.
        seed: Seed of the pre-training, which gives the same initial random weights.

    Returns:
        `num_train`, `num_test` and `rows`. Each row has the `modality` and `attribute` of a task,
        `chance` and the accuracy of each of `SOURCES` in percent, and the chosen `regularisation`
        of each. Tasks without training or test clips are left out.
    """
    networks = {"pretrained": model, "random": untrained(model, seed)}
    train_rows, test_rows = read_rows(networks, *train), read_rows(networks, *test)
    rows = []
    for modality, name, attributes in TASKS:
        if (modality, "raw") not in train_rows or (modality, "raw") not in test_rows:
            continue
        row: dict[str, Any] = {"modality": modality, "attribute": name, "regularisation": {}}
        for source in SOURCES:
            key = modality, source
            num_classes, accuracy, strength = _measure(train_rows[key], test_rows[key], attributes)
            row |= {"chance": 100 / num_classes, source: accuracy}
            row["regularisation"][source] = strength
        rows.append(row)
    return {"num_train": len(train[1]), "num_test": len(test[1]), "rows": rows}


def untrained(model: VATT, seed: int) -> VATT:
    """Network with the random weights from which training with this seed starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VATT(model.config).eval()


@torch.no_grad()
def read_rows(
    networks: Mapping[str, VATT], batches: Iterable[Batch], combinations: Sequence[Combination]
) -> dict[tuple[str, str], LabelledRows]:
    """Features of each network and raw inputs, by modality and source; each batch is read once."""
    sample_rate = next(iter(networks.values())).config.audio.sample_rate
    values: dict[tuple[str, str], list[Tensor]] = {}
    shown: dict[str, list[Combination]] = {"video": [], "audio": []}
    start = 0
    for batch in batches:
        for modality in ("video", "audio"):
            raw = present_rows(batch, modality)
            if raw is None:
                continue
            is_present = getattr(batch.facts, modality)
            shown[modality] += [combinations[start + i] for i, has in enumerate(is_present) if has]
            rows = {"raw": raw_values(raw, sample_rate=sample_rate)}
            for name, network in networks.items():
                rows[name] = network.encode(modality, raw)
            for name, parts in rows.items():
                values.setdefault((modality, name), []).append(parts)
        start += len(batch)
    return {
        key: LabelledRows(values=torch.cat(parts), combinations=tuple(shown[key[0]]))
        for key, parts in values.items()
    }


def raw_values(clips: Tensor, *, sample_rate: int) -> Tensor:
    """Raw input of a classifier, one row per clip.

    Args:
        clips: Pictures, uint8 `[B, T, H, W, C]`, or sound, float `[B, S]`.
        sample_rate: Sample rate of the sound in Hz.

    Returns:
        float32 `[B, T · C · 8 · 8]`, frames averaged to 8 × 8 pixels, or `[B, M · F]`, a log-mel
        spectrogram of 80 bins.
    """
    if clips.ndim == 2:
        highest = min(7600.0, sample_rate / 2)
        return LogMel(sample_rate=sample_rate, max_hertz=highest)(clips).flatten(1)
    frames = clips.movedim(-1, 2).flatten(0, 1).float()
    return F.adaptive_avg_pool2d(frames, PIXELS).reshape(len(clips), -1)


def _measure(
    train: LabelledRows, test: LabelledRows, attributes: Sequence[str]
) -> tuple[int, float, float]:
    """Number of classes, accuracy in percent, and the chosen regularisation.

    It is chosen on combinations that the classifier has not seen, like those of the test.
    """
    train_labels, test_labels = train.labels(attributes), test.labels(attributes)
    classes = sorted({*train_labels, *test_labels})
    labels, truth = (
        torch.tensor([classes.index(x) for x in y]) for y in (train_labels, test_labels)
    )
    numbers = {c: i for i, c in enumerate(dict.fromkeys(train.combinations))}
    held_out = torch.tensor([numbers[c] % HELD_OUT == HELD_OUT - 1 for c in train.combinations])
    mean, deviation = train.values.mean(dim=0), train.values.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    rows, test_rows = (x - mean for x in (train.values, test.values))
    rows, test_rows = rows / deviation, test_rows / deviation
    strength, start = REGULARISATIONS[0], None
    if held_out.any():
        fitted, left_out = (rows[~held_out], labels[~held_out]), (rows[held_out], labels[held_out])
        strength, start = choose_regularisation(fitted, left_out, len(classes))
    weights = fit_logistic(rows, labels, len(classes), strength, start=start)
    return len(classes), _accuracy(weights, test_rows, truth), strength


def choose_regularisation(
    train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], num_classes: int
) -> tuple[float, Tensor | None]:
    """Regularisation strength with the best accuracy on held-out rows, and its fitted weights.

    The search goes from strong to weak; each fit starts from the weights of the previous one. Of
    equally good strengths, the strongest is chosen. The search ends after `PATIENCE` strengths
    without improvement.
    """
    best, chosen = -1.0, 0
    weights: Tensor | None = None
    best_weights: Tensor | None = None
    for number, strength in enumerate(REGULARISATIONS):
        weights = fit_logistic(*train, num_classes, strength, start=weights)
        accuracy = _accuracy(weights, *held_out)
        if accuracy > best:
            best, chosen, best_weights = accuracy, number, weights
        elif number - chosen >= PATIENCE:
            break
    return REGULARISATIONS[chosen], best_weights


def fit_logistic(
    rows_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    strength: float,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Multinomial logistic regression by L-BFGS.

    It minimises the mean cross entropy plus strength / 2 times the sum of squares of the weights,
    without biases. scikit-learn gives the same weights with `C` = 1 / (N · strength).

    Args:
        rows_ND: float `[N, D]`, standardised.
        labels_N: int64 `[N]`, in [0, `num_classes`).
        num_classes: `C`.
        strength: Strength of the regularisation.
        start: Initial weights. None: zero.

    Returns:
        float `[C, D + 1]`: weights, and biases as the last column.
    """
    zeros = rows_ND.new_zeros(num_classes, rows_ND.shape[1] + 1)
    weights = (zeros if start is None else start.clone()).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=MAX_ITERATIONS, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.cross_entropy(_logits(weights, rows_ND), labels_N)
        total = total + strength / 2 * weights[:, :-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


def _logits(weights: Tensor, rows_ND: Tensor) -> Tensor:
    return torch.addmm(weights[:, -1], rows_ND, weights[:, :-1].T)


def _accuracy(weights: Tensor, rows_ND: Tensor, labels_N: Tensor) -> float:
    """Top-1 accuracy in percent."""
    answers = _logits(weights, rows_ND).argmax(dim=1)
    return 100.0 * float((answers == labels_N).double().mean())
