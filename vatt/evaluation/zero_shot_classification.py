"""Zero-shot classification: prompts describe the classes, and each clip gets the nearest class.

Video is compared with text in the video-text space, audio with text in the joint space. If a model
has no joint space, the last step of the video head maps audio from the video-audio space to the
video-text space.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vatt.errors import UserError
from vatt.evaluation.classification_metrics import accuracies_by_fold
from vatt.evaluation.clip_views import ViewPlan
from vatt.evaluation.frozen_features import FrozenFeatures, encode_clips
from vatt.evaluation.retrieval import on_grid
from vatt.evaluation.zero_shot_retrieval import AVERAGINGS, Averaging, average_windows
from vatt.network.heads import FACHead
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer
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
    model: VATT,
    tokenizer: Tokenizer,
    classes: Sequence[str],
    prompts: Sequence[str] = PROMPTS,
) -> Tensor:
    """Unit vector of each class: the mean of the unit vectors of its prompts, normalised.

    Args:
        model: Model with text and common spaces, in evaluation mode.
        tokenizer: Tokenizer of the model.
        classes: Labels; the prompts take their `class_words`.
        prompts: Texts with `{}` for the class.

    Returns:
        float64 `[C, D]`, on the grid of exact products.

    Raises:
        UserError: a prompt has no `{}`, a class has no words, or the model has no text.
    """
    wrong = [prompt for prompt in prompts if "{}" not in prompt]
    if wrong or not prompts:
        raise UserError(f"a prompt needs {{}} where the class goes, got {wrong or 'no prompt'}")
    if model.config.head is None or "text" not in model.config.modalities:
        raise UserError("zero-shot classification needs a model with text and common spaces")
    texts = [prompt.replace("{}", class_words(label)) for label in classes for prompt in prompts]
    ids = tokenizer.encode(texts, model.config.text.max_words)
    blank = [text for text, row in zip(texts, ids, strict=True) if not row.any()]
    if blank:
        raise UserError(f"nothing is left of the prompts {blank[:3]} for the tokenizer")
    embedded = model.embed_text(ids.to(next(model.parameters()).device))
    values = embedded.get("vt", embedded.get("joint"))
    assert values is not None
    unit = functional.normalize(values.cpu().double(), dim=-1)
    mean = unit.unflatten(0, (len(classes), len(prompts))).mean(dim=1)
    return on_grid(functional.normalize(mean, dim=-1))


@torch.no_grad()
def embed_beside_text(model: VATT, modality: Modality, views: Tensor) -> Tensor:
    """Embeddings of views in the space of text.

    Args:
        model: Model with common spaces.
        modality: Modality of the views.
        views: uint8 `[n, T, H, W, C]`, or float `[n, S]`.

    Returns:
        float32 `[n, D]`, not normalised.
    """
    embedded = model.embed_video(views) if modality == "video" else model.embed_audio(views)
    beside = embedded.get("vt", embedded.get("joint"))
    if beside is None:  # sound
        assert isinstance(model.head, FACHead)
        beside = model.head.va_to_vt(embedded["va"])
    return beside


def score_classes(
    model: VATT,
    items: Sequence[Item],
    classes_CD: Tensor,
    plan: ViewPlan,
    *,
    modality: Modality,
    num_workers: int = 0,
) -> tuple[FrozenFeatures, dict[Averaging, Tensor]]:
    """Scores of each clip with each class, by both ways of averaging over windows.

    Args:
        model: Model in evaluation mode.
        items: Clips with media.
        classes_CD: Unit vectors of the classes, float64 `[C, D]`, see `embed_classes`.
        plan: Views of each clip.
        modality: Modality to compare with text.
        num_workers: Processes that read.

    Raises:
        UserError: the model lacks the modality, or no clip can be read.
    """
    values, reasons = encode_clips(
        model,
        items,
        plan,
        modality,
        partial(embed_beside_text, model, modality),
        batch_size=1,
        num_workers=num_workers,
    )
    clips = FrozenFeatures.of(items, [values], reasons)
    averages = zip(AVERAGINGS, average_windows(clips.values), strict=True)
    return clips, {name: average @ classes_CD.T for name, average in averages}
