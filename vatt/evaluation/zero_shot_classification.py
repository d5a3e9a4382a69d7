"""Zero-shot classification: prompts describe the classes, and each clip gets the nearest class.

Clips are compared with text in a space that both share. In a VATT this is the video-text space,
which audio enters by the last step of the video head, or the joint space.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vatt.encoders.encoder import Encoder
from vatt.errors import UserError
from vatt.evaluation.classification_metrics import accuracies_by_fold
from vatt.evaluation.clip_views import ViewPlan
from vatt.evaluation.frozen_features import FrozenFeatures, encode_clips
from vatt.evaluation.retrieval import on_grid
from vatt.evaluation.zero_shot_retrieval import AVERAGINGS, Averaging, average_windows
from vatt.features.embedder import Embedder
from vatt.sets.items import Item

Modality = Literal["video", "audio"]
PROMPTS = ("{}",)


def zero_shot_metrics(
    items: Sequence[Item], classes: Sequence[str], scores: Mapping[Averaging, Tensor]
) -> dict[str, dict[str, float]]:
    """Accuracies on the test clips of each fold, and their means, by averaging.

    Args:
        items: The clips.
        classes: All labels.
        scores: Similarities of clips and classes, float `[N, C]`.
    """
    rows: dict[str, dict[str, float]] = {}
    for name, of_all in scores.items():

        def score(fold: int, test: Tensor, of_all: Tensor = of_all) -> Tensor:
            return of_all[test]

        folds = accuracies_by_fold(name, items, classes, score)
        rows |= folds if len(folds) > 2 else {name: folds[f"{name}, fold 1"]}
    return rows


def class_words(label: str) -> str:
    """Words of a label: `ApplyEyeMakeup` and `apply_eye_makeup` → `apply eye makeup`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", label)
    return " ".join(re.split(r"[\s_]+", spaced)).strip().lower()


@torch.no_grad()
def embed_classes(
    encoder: Encoder,
    classes: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
    *,
    modality: Modality,
) -> Tensor:
    """Unit vector of each class: the mean of the unit vectors of its prompts, normalised.

    Args:
        encoder: Model with text and common spaces.
        classes: Labels; the prompts take their `class_words`.
        prompts: Texts with `{}` for the class.
        modality: Modality that is compared with the classes.

    Returns:
        float64 `[C, D]`, on the grid of exact products.

    Raises:
        UserError: a prompt has no `{}`, a class has no words, or the modality and text share no
            space.
    """
    wrong = [prompt for prompt in prompts if "{}" not in prompt]
    if wrong or not prompts:
        raise UserError(f"a prompt needs {{}} where the class goes, got {wrong or 'no prompt'}")
    space = text_space(encoder, modality)
    texts = [prompt.replace("{}", class_words(label)) for label in classes for prompt in prompts]
    blank = [text for text in texts if not encoder.count_tokens(text)]
    if blank:
        raise UserError(f"nothing is left of the prompts {blank[:3]} for the tokenizer")
    values = encoder.encode("text", texts, [space])[space]
    unit = functional.normalize(values.cpu().double(), dim=-1)
    mean = unit.unflatten(0, (len(classes), len(prompts))).mean(dim=1)
    return on_grid(functional.normalize(mean, dim=-1))


def text_space(encoder: Encoder, modality: Modality) -> str:
    """Space in which a modality is compared with text.

    Raises:
        UserError: the model has no text, or no such space.
    """
    if "text" not in encoder.modalities or not encoder.spaces("text"):
        raise UserError("zero-shot classification needs a model with text and common spaces")
    return Embedder(encoder).shared_space("text", modality)


def score_classes(
    encoder: Encoder,
    items: Sequence[Item],
    classes_CD: Tensor,
    plan: ViewPlan,
    *,
    modality: Modality,
    num_workers: int = 0,
) -> tuple[FrozenFeatures, dict[Averaging, Tensor]]:
    """Scores of each clip with each class, by both ways of averaging over windows.

    Args:
        encoder: The model.
        items: Clips with media.
        classes_CD: Unit vectors of the classes, float64 `[C, D]`, see `embed_classes`.
        plan: Views of each clip.
        modality: Modality to compare with text.
        num_workers: Processes that read.

    Raises:
        UserError: the model lacks the modality, or no clip can be read.
    """
    values, reasons = encode_clips(
        encoder,
        items,
        plan,
        modality,
        text_space(encoder, modality),
        batch_size=1,
        num_workers=num_workers,
    )
    clips = FrozenFeatures.of(items, [values], reasons)
    averages = zip(AVERAGINGS, average_windows(clips.values), strict=True)
    return clips, {name: average @ classes_CD.T for name, average in averages}
