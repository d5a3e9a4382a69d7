"""Zero-shot classification: prompts describe the classes, and each clip gets the nearest class.

Video is compared with text in the video-text space, audio with text in the joint space. If a model
has no joint space, the last step of the video head maps audio from the video-audio space to the
video-text space.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from vatt.errors import Fault, UserError
from vatt.evaluation.classification_metrics import accuracies, fold_rows
from vatt.evaluation.clip_views import ViewPlan, read_items
from vatt.evaluation.retrieval import on_grid
from vatt.evaluation.zero_shot_retrieval import AVERAGINGS, average_windows
from vatt.network.heads import FACHead
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer
from vatt.sets.classification import TEST
from vatt.sets.items import Item

Modality = Literal["video", "audio"]
PROMPTS = ("{}",)


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Similarities between clips and classes.

    Args:
        items: Clips that could be read.
        embeddings: float64 `[N, C]`; cosine between a class and the mean embedding of a clip's
            windows.
        similarities: float64 `[N, C]`; mean over a clip's windows of their cosines with a class.
        faults: Clips that could not be read, with reasons.
    """

    items: tuple[Item, ...]
    embeddings: Tensor
    similarities: Tensor
    faults: tuple[Fault, ...] = ()

    def metrics(self, classes: Sequence[str]) -> dict[str, dict[str, float]]:
        """Accuracies on the test clips of each fold, and their means, by averaging."""
        labels = torch.tensor([classes.index(item.label) for item in self.items])
        num_folds = len(self.items[0].splits)
        rows: dict[str, dict[str, float]] = {}
        for name in AVERAGINGS:
            folds = []
            for fold in range(num_folds):
                test = [i for i, item in enumerate(self.items) if item.splits[fold] == TEST]
                if not test:
                    raise UserError(f"fold {fold + 1} has no test clip that can be read")
                folds.append(accuracies(getattr(self, name)[test], labels[test]))
            rows |= fold_rows(name, folds) if num_folds > 1 else {name: folds[0]}
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

    Raises:
        UserError: the model lacks the modality.
    """
    if modality not in model.config.modalities:
        raise UserError(f"this model has {' and '.join(model.config.modalities)}, not {modality}")
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
) -> ClassScores:
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
    device = next(model.parameters()).device
    scores: list[tuple[Tensor, Tensor]] = []
    readable: list[Item] = []
    faults: list[Fault] = []
    for item, read in zip(items, read_items(items, plan, num_workers=num_workers), strict=True):
        views = read.video if modality == "video" else read.audio
        if read.fault or views is None:
            faults.append(Fault(item.key, read.fault or f"has no {modality}"))
            continue
        embedded = embed_beside_text(model, modality, torch.from_numpy(views).to(device)).cpu()
        first, second = average_windows(embedded[None])
        scores.append((first @ classes_CD.T, second @ classes_CD.T))
        readable.append(item)
    if not readable:
        raise UserError(f"none of {len(items)} clips can be read; the first: {faults[:1]}")
    return ClassScores(
        items=tuple(readable),
        embeddings=torch.cat([pair[0] for pair in scores]),
        similarities=torch.cat([pair[1] for pair in scores]),
        faults=tuple(faults),
    )
