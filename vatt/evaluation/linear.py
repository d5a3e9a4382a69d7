"""Linear evaluation: classifiers on frozen features, in all folds of a set.

Source: paper section 4.3 and appendix A.3.6; google-research/vatt `utils/eval/evaluators.py`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.errors import UserError
from vatt.evaluation.classification_metrics import accuracies_by_fold, split_places
from vatt.evaluation.frozen_features import FrozenFeatures
from vatt.network.layers import TRUNCATED_STD, truncated_normal
from vatt.sets.classification import TRAIN

Classifier = Literal["low-rank", "logistic"]
CLASSIFIERS: tuple[Classifier, ...] = ("low-rank", "logistic")
Predict = Callable[[Tensor], Tensor]  # features float [n, D] → probabilities float [n, C]


@dataclass(frozen=True, kw_only=True)
class LowRankConfig:
    """The paper's classifier on frozen features.

    Args:
        rank: Width between its two linear layers [P, C].
        dropout: Dropout rate between the layers [P: a sampling of 10 %; C].
        weight_decay: Factor of the sum of squares of the second layer's weights, which is added to
            the loss [C].
        learning_rate: Learning rate of Adam [P, C].
        batch_size: Features per step [P, C].
        num_steps: Training steps: 50,000 [P]; [C] trains 1,000 epochs.
    """

    rank: int = 128
    dropout: float = 0.9
    weight_decay: float = 0.1
    learning_rate: float = 5e-4
    batch_size: int = 64
    num_steps: int = 50_000


def evaluate_folds(
    features: FrozenFeatures,
    classes: Sequence[str],
    classifiers: Sequence[Classifier] = CLASSIFIERS,
    *,
    low_rank: LowRankConfig | None = None,
    regularisation: float = 1.0,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Accuracies of classifiers in each fold, and their means.

    Every view of a training clip is a sample. For a test clip, the probabilities of its views are
    averaged.

    Args:
        features: Features of all clips, with their labels and splits.
        classes: All labels.
        classifiers: Names of the classifiers.
        low_rank: Settings of the paper's classifier. None: the defaults.
        regularisation: `C` of scikit-learn's logistic regression, on standardised features.
        seed: Seed of weights, batches and dropout.

    Returns:
        Percent by row (`low-rank, fold 1`, …, `low-rank, mean of folds`) and column (`top-1`, and
        `top-5` with more than 5 classes).

    Raises:
        UserError: a fold has no training or test clips, or scikit-learn is missing.
    """
    labels = torch.tensor([classes.index(item.label) for item in features.items])
    trainers: dict[Classifier, Callable[..., Predict]] = {
        "low-rank": partial(train_low_rank, config=low_rank or LowRankConfig(), seed=seed),
        "logistic": partial(train_logistic, regularisation=regularisation, seed=seed),
    }
    rows: dict[str, dict[str, float]] = {}
    for name in classifiers:

        def score(fold: int, test: Tensor, name: Classifier = name) -> Tensor:
            train = split_places(features.items, fold, TRAIN)
            samples = features.values[train].flatten(0, 1)  # every view
            answers = labels[train].repeat_interleave(features.values.shape[1])
            predict = trainers[name](samples, answers, len(classes))
            return predict_views(predict, features.values[test])

        rows |= accuracies_by_fold(name, features.items, classes, score)
    return rows


def train_low_rank(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, config: LowRankConfig, *, seed: int
) -> Predict:
    """Trains the paper's classifier: two linear layers with dropout between them.

    Args:
        features_ND: float32 `[N, D]`.
        labels_N: int64 `[N]`.
        num_classes: `C`.
        config: Settings of the classifier.
        seed: Seed of weights, batches and dropout.

    Returns:
        Function from features to probabilities.
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(features_ND.shape[1], config.rank),
            nn.Dropout(config.dropout),
            nn.Linear(config.rank, num_classes),
        )
        for layer in (network[0], network[2]):
            assert isinstance(layer, nn.Linear)
            _draw_glorot_normal(layer)
        last = network[2].weight
        assert isinstance(last, Tensor)
        # Keras' epsilon, as in pre-training
        optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, eps=1e-7)
        order = torch.zeros(0, dtype=torch.int64)
        for _ in range(config.num_steps):
            if len(order) < config.batch_size:
                order = torch.cat([order, torch.randperm(len(features_ND))])
            chosen, order = order[: config.batch_size], order[config.batch_size :]
            loss = F.cross_entropy(network(features_ND[chosen]), labels_N[chosen])
            loss = loss + config.weight_decay * last.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    return lambda rows: network(rows).softmax(dim=-1).detach()


def train_logistic(
    features_ND: Tensor,
    labels_N: Tensor,
    num_classes: int,
    regularisation: float = 1.0,
    *,
    seed: int = 0,
) -> Predict:
    """Trains scikit-learn's multinomial logistic regression on standardised features.

    Args:
        features_ND: float32 `[N, D]`.
        labels_N: int64 `[N]`; classes without any label get probability 0.
        num_classes: `C`.
        regularisation: scikit-learn's `C`.
        seed: Seed of the solver.

    Raises:
        UserError: scikit-learn is not installed, or all clips have the same label.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise UserError(
            'logistic regression needs scikit-learn: pip install "vatt[eval]", or choose '
            "--classifiers low-rank"
        ) from error
    if len(labels_N.unique()) < 2:
        raise UserError("logistic regression needs training clips of at least two classes")
    regression = LogisticRegression(C=regularisation, max_iter=2000, random_state=seed)
    pipeline = make_pipeline(StandardScaler(), regression)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes")  # few clips, many classes
        pipeline.fit(features_ND.double().numpy(), labels_N.numpy())

    def predict(rows: Tensor) -> Tensor:
        known = torch.from_numpy(pipeline.predict_proba(rows.double().numpy()))
        full = known.new_zeros(len(rows), num_classes)
        full[:, torch.as_tensor(pipeline.classes_)] = known
        return full

    return predict


def predict_views(predict: Predict, features_NVD: Tensor) -> Tensor:
    """Class probabilities of each clip, averaged over its views: `[N, V, D]` → `[N, C]`."""
    num_clips, num_views = features_NVD.shape[:2]
    return predict(features_NVD.flatten(0, 1)).unflatten(0, (num_clips, num_views)).mean(dim=1)


def _draw_glorot_normal(layer: nn.Linear) -> None:
    """As Keras draws it: truncated at two standard deviations, the variance kept."""
    deviation = (2 / sum(layer.weight.shape)) ** 0.5
    truncated_normal(layer.weight, std=deviation / TRUNCATED_STD)
    nn.init.zeros_(layer.bias)
