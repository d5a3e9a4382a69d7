"""Linear evaluation on the demo corpus: linear classifiers on frozen features.

The same classifier, chosen in the same way, is trained on three kinds of input: features of the
pre-trained network, features of the same network with its initial random weights, and raw input
(pixels, or a log-mel spectrogram). Each regularisation starts from the weights of the one before.
This took 95 s for a whole demo, where scikit-learn's classifiers were not done after 340 s.
"""

from collections.abc import Iterable, Mapping, Sequence
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
# Half of a strength times the sum of squares of the weights is added to the mean cross entropy:
# of N clips, scikit-learn's C is 1 / (N · strength).
REGULARISATIONS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # from strong to weak
PATIENCE = 2  # weaker strengths tried beyond the best one
MAX_ITERATIONS = 100  # per strength
HELD_OUT = 5  # every fifth combination of the training videos chooses the regularisation

Combination = tuple[str, ...]
Samples = tuple[Tensor, Tensor]  # features float32 `[N, D]`, and classes int64 `[N]`


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
        of each. Tasks without test clips, or with training clips of one class only, are left out.
    """
    networks = {"pretrained": model, "random": untrained(model, seed)}
    (train_rows, train_shown), (test_rows, test_shown) = (
        read_rows(networks, *of_set) for of_set in (train, test)
    )
    rows = []
    for modality, name, attributes in TASKS:
        places = [ATTRIBUTES.index(attribute) for attribute in attributes]
        known, asked = (
            [tuple(combination[i] for i in places) for combination in shown[modality]]
            for shown in (train_shown, test_shown)
        )
        if not asked or len({*known}) < 2:
            continue
        classes = sorted({*known, *asked})
        labels, truth = (torch.tensor([classes.index(x) for x in of]) for of in (known, asked))
        row: dict[str, Any] = {
            "modality": modality,
            "attribute": name,
            "regularisation": {},
            "chance": 100 / len(classes),
        }
        held_out = _held_out(train_shown[modality])
        for source in SOURCES:
            values, tested = _standardised(
                train_rows[modality, source], test_rows[modality, source]
            )
            strength, start = REGULARISATIONS[0], None
            if held_out.any() and len(labels[~held_out].unique()) > 1:
                fitted, left_out = ((values[part], labels[part]) for part in (~held_out, held_out))
                strength, start = choose_regularisation(fitted, left_out, len(classes))
            weights = fit_logistic((values, labels), len(classes), strength, start=start)
            row[source] = _accuracy(weights, (tested, truth))
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
) -> tuple[dict[tuple[str, str], Tensor], dict[str, list[Combination]]]:
    """Reads features of each network and raw inputs; reads each batch once.

    Returns:
        By modality and source float32 `[n, D]`, one row per clip that has the modality; and by
        modality the combinations of these clips.
    """
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
    return {key: torch.cat(parts) for key, parts in values.items()}, shown


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


def _held_out(combinations: Sequence[Combination]) -> Tensor:
    """Whether a training clip chooses the regularisation, bool `[N]`.

    It is chosen on combinations that the classifier was not trained on, as in the test.
    """
    numbers = {c: i for i, c in enumerate(dict.fromkeys(combinations))}
    return torch.tensor([numbers[c] % HELD_OUT == HELD_OUT - 1 for c in combinations])


def _standardised(train_ND: Tensor, test_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with mean 0 and deviation 1 over the training clips."""
    mean, deviation = train_ND.mean(dim=0), train_ND.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    return (train_ND - mean) / deviation, (test_ND - mean) / deviation


def choose_regularisation(
    train: Samples, held_out: Samples, num_classes: int
) -> tuple[float, Tensor | None]:
    """Regularisation strength with the best accuracy on held-out rows, and its weights.

    The search goes from strong to weak. Of equally good strengths, the strongest is chosen. The
    search ends after `PATIENCE` strengths without improvement.
    """
    best, chosen = -1.0, 0
    weights = best_weights = None
    for number, strength in enumerate(REGULARISATIONS):
        weights = fit_logistic(train, num_classes, strength, start=weights)
        accuracy = _accuracy(weights, held_out)
        if accuracy > best:
            best, chosen, best_weights = accuracy, number, weights
        elif number - chosen >= PATIENCE:
            break
    return REGULARISATIONS[chosen], best_weights


def fit_logistic(
    train: Samples, num_classes: int, strength: float, *, start: Tensor | None = None
) -> Tensor:
    """Multinomial logistic regression by L-BFGS.

    Minimises the mean cross entropy plus strength / 2 times the sum of squares of the weights;
    biases are not regularised.

    Args:
        train: Standardised rows float `[N, D]`, and classes int64 `[N]` in [0, `num_classes`).
        num_classes: `C`.
        strength: Regularisation strength.
        start: Initial weights. None: zero.

    Returns:
        float `[C, D + 1]`: weights, and biases as the last column.
    """
    rows_ND, labels_N = train
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


def _accuracy(weights: Tensor, test: Samples) -> float:
    """Top-1 accuracy in percent."""
    answers = _logits(weights, test[0]).argmax(dim=1)
    return 100.0 * float((answers == test[1]).double().mean())
