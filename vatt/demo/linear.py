"""Linear evaluation on the demo corpus: what a linear classifier reads from frozen features.

The same classifier, chosen in the same way, reads features of the pre-trained network, of the same
network with the random weights that its training began with, and the input itself: pixels, or a
log-mel spectrogram.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.batch import Batch
from vatt.demo.retrieval import ATTRIBUTES
from vatt.network.log_mel import LogMel
from vatt.network.model import VATT, present_rows

Source = Literal["pretrained", "random", "raw"]
SOURCES: tuple[Source, ...] = ("pretrained", "random", "raw")
# What is read from what. The sound of a clip is a timbre for each shape and a rhythm or melody for
# each motion, so that it is one of 48; colour makes none.
TASKS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("video", "shape", ("shape",)),
    ("video", "colour", ("colour",)),
    ("video", "motion", ("motion",)),
    ("video", "sound", ("shape", "motion")),
    ("audio", "shape", ("shape",)),
    ("audio", "motion", ("motion",)),
    ("audio", "sound", ("shape", "motion")),
)
PIXELS = 8  # raw frames are averaged to 8 × 8: finer ones are read no better (4 to 32 were tried)
REGULARISATIONS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # from strong to weak
PATIENCE = 2  # strengths that are tried beyond the best one
MAX_ITERATIONS = 100  # for each of them
HELD_OUT = 5  # every fifth combination of the training videos chooses the regularisation

Combination = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """What is read of some clips.

    Args:
        values: float32 `[n, D]`, a row for each clip that has the modality.
        combinations: What each of these clips shows, a value for each of `ATTRIBUTES`.
    """

    values: Tensor
    combinations: tuple[Combination, ...]

    def labels(self, attributes: Sequence[str]) -> list[Combination]:
        """The values of these attributes, for each clip."""
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
        model: The pre-trained network, in evaluation mode.
        train: Batches of the clips that the classifiers learn from, and what each clip shows.
        test: The same of those that they are tested on.
        seed: That of the pre-training, so that the random weights are those it began with.

    Returns:
        `num_train`, `num_test` and `rows`: for each task its `modality` and `attribute`, `chance`
        and the accuracy of each of `SOURCES` in percent, and the chosen `regularisation` of each. A
        task without clips to learn from or to test on is left out.
    """
    networks = {"pretrained": model, "random": untrained(model, seed)}
    learned, tested = read_rows(networks, *train), read_rows(networks, *test)
    rows = []
    for modality, name, attributes in TASKS:
        if (modality, "raw") not in learned or (modality, "raw") not in tested:
            continue
        row: dict[str, Any] = {"modality": modality, "attribute": name, "regularisation": {}}
        for source in SOURCES:
            key = modality, source
            num_classes, found, chosen = _measure(learned[key], tested[key], attributes)
            row |= {"chance": 100 / num_classes, source: found}
            row["regularisation"][source] = chosen
        rows.append(row)
    return {"num_train": len(train[1]), "num_test": len(test[1]), "rows": rows}


def untrained(model: VATT, seed: int) -> VATT:
    """The network with the weights that training from this seed begins with, for evaluation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VATT(model.config).eval()


@torch.no_grad()
def read_rows(
    networks: Mapping[str, VATT], batches: Iterable[Batch], combinations: Sequence[Combination]
) -> dict[tuple[str, str], LabelledRows]:
    """Features of each network and raw inputs, by modality and source; a batch is read once."""
    values: dict[tuple[str, str], list[Tensor]] = {}
    shown: dict[str, list[Combination]] = {}
    start = 0
    for batch in batches:
        here = combinations[start : start + len(batch)]
        start += len(batch)
        for modality in ("video", "audio"):
            raw = present_rows(batch, modality)
            if raw is None:
                continue
            present = zip(here, getattr(batch.facts, modality), strict=True)
            kept = [combination for combination, is_present in present if is_present]
            shown.setdefault(modality, []).extend(kept)
            made = {"raw": raw_values(raw, sample_rate=_sample_rate(networks))}
            for name, network in networks.items():
                made[name] = network.encode(modality, raw)
            for name, rows in made.items():
                values.setdefault((modality, name), []).append(rows)
    return {
        key: LabelledRows(values=torch.cat(parts), combinations=tuple(shown[key[0]]))
        for key, parts in values.items()
    }


def _sample_rate(networks: Mapping[str, VATT]) -> int:
    return next(iter(networks.values())).config.audio.sample_rate


def raw_values(clips: Tensor, *, sample_rate: int) -> Tensor:
    """The input itself as one row a clip.

    Args:
        clips: Pictures, uint8 `[B, T, H, W, C]`, or sound, float `[B, S]`.
        sample_rate: Of the sound.

    Returns:
        float32 `[B, T · C · 8 · 8]`, every frame averaged to 8 × 8 pixels, or `[B, M · F]`, a
        log-mel spectrogram of 80 bins.
    """
    if clips.ndim == 2:
        highest = min(7600.0, sample_rate / 2)
        return LogMel(sample_rate=sample_rate, max_hertz=highest)(clips).flatten(1)
    frames = clips.movedim(-1, 2).flatten(0, 1).float()
    return F.adaptive_avg_pool2d(frames, PIXELS).reshape(len(clips), -1)


def _measure(
    train: LabelledRows, test: LabelledRows, attributes: Sequence[str]
) -> tuple[int, float, float]:
    """Number of classes, accuracy in percent, and the regularisation that the training rows chose.

    This choice is made on combinations that the classifier has not seen, as the test's are.
    """
    asked, answers = train.labels(attributes), test.labels(attributes)
    classes = sorted({*asked, *answers})
    labels, truth = (torch.tensor([classes.index(x) for x in y]) for y in (asked, answers))
    numbers = {c: i for i, c in enumerate(dict.fromkeys(train.combinations))}
    held_out = torch.tensor([numbers[c] % HELD_OUT == HELD_OUT - 1 for c in train.combinations])
    mean, deviation = train.values.mean(dim=0), train.values.std(dim=0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    rows, test_rows = (x - mean for x in (train.values, test.values))
    rows, test_rows = rows / deviation, test_rows / deviation
    strength, start = REGULARISATIONS[0], None
    if held_out.any():
        kept, asked_of = (rows[~held_out], labels[~held_out]), (rows[held_out], labels[held_out])
        strength, start = choose_regularisation(kept, asked_of, len(classes))
    weights = fit_logistic(rows, labels, len(classes), strength, start=start)
    return len(classes), _accuracy(weights, test_rows, truth), strength


def choose_regularisation(
    train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor], num_classes: int
) -> tuple[float, Tensor | None]:
    """The strength that is most accurate on rows left out, and the weights found with it.

    From strong to weak, each started from the solution of the one before; of equally good ones the
    strongest, and none is tried beyond `PATIENCE` that were not better.
    """
    best, chosen = -1.0, 0
    weights: Tensor | None = None
    kept: Tensor | None = None
    for number, strength in enumerate(REGULARISATIONS):
        weights = fit_logistic(*train, num_classes, strength, start=weights)
        found = _accuracy(weights, *held_out)
        if found > best:
            best, chosen, kept = found, number, weights
        elif number - chosen >= PATIENCE:
            break
    return REGULARISATIONS[chosen], kept


def fit_logistic(
    rows_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    strength: float,
    *,
    start: Tensor | None = None,
) -> Tensor:
    """Multinomial logistic regression by L-BFGS.

    scikit-learn, an extra, would give the same weights with `C` 1 / (N · strength).

    Args:
        rows_ND: float `[N, D]`, standardised.
        labels_N: int64 `[N]`, in [0, `num_classes`).
        num_classes: `C`.
        strength: Of the regularisation: the mean cross entropy plus half of this times the sum of
            squares of the weights, without biases, is minimised.
        start: Where to begin; None: at zero.

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
        found = F.cross_entropy(_logits(weights, rows_ND), labels_N)
        found = found + strength / 2 * weights[:, :-1].square().sum()
        found.backward()
        return found

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach()


def _logits(weights: Tensor, rows_ND: Tensor) -> Tensor:
    return torch.addmm(weights[:, -1], rows_ND, weights[:, :-1].T)


def _accuracy(weights: Tensor, rows_ND: Tensor, labels_N: Tensor) -> float:
    """Percent."""
    found = _logits(weights, rows_ND).argmax(dim=1)
    return 100.0 * float((found == labels_N).double().mean())
