"""Losses and predictions of classifiers.

Source: paper section 4.2; google-research/vatt `modeling/backbones/{video,audio}/factory.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.system.ranks import sum_over_ranks


def classification_loss(logits_BC: Tensor, targets_BC: Tensor, *, multi_label: bool) -> Tensor:
    """Mean loss over clips, scalar.

    One label each: cross entropy of the softmax. Several: sigmoid cross entropy summed over
    classes, each clip weighted by the mean over its labels of 1 / (how often the batch has that
    label), so that frequent labels do not rule; clips of all ranks count.

    Args:
        logits_BC: float `[B, C]`.
        targets_BC: float `[B, C]`: probabilities (label smoothing, mixup), or 0 and 1.
        multi_label: Whether a clip may have several labels.

    Raises:
        ValueError: logits and targets of different shapes.
    """
    if logits_BC.shape != targets_BC.shape:
        raise ValueError(
            f"targets must be [B, C] like the logits {list(logits_BC.shape)}, "
            f"got {list(targets_BC.shape)}"
        )
    if not multi_label:
        return F.cross_entropy(logits_BC.float(), targets_BC.float())
    targets_BC = targets_BC.float()
    with torch.no_grad():
        count_C = sum_over_ranks(targets_BC.sum(dim=0))
        rarity_BC = targets_BC / count_C.where(count_C > 0, 1.0)
        num_labels_B = targets_BC.sum(dim=1)
        weight_B = rarity_BC.sum(dim=1) / num_labels_B.where(num_labels_B > 0, 1.0)
    loss_BC = F.binary_cross_entropy_with_logits(logits_BC.float(), targets_BC, reduction="none")
    return (loss_BC.sum(dim=1) * weight_B).mean()


def average_views(logits: Tensor, num_views: int) -> Tensor:
    """Mean of the logits of all views of a clip, before any softmax.

    Args:
        logits: float `[B · num_views, C]`, the views of a clip one after another.
        num_views: Windows times crops of a clip.

    Returns:
        float `[B, C]`.

    Raises:
        ValueError: a number of rows that is no multiple of `num_views`.
    """
    if num_views < 1 or len(logits) % num_views:
        raise ValueError(
            f"{len(logits)} rows of logits are not {num_views} views of each of some clips"
        )
    return logits.unflatten(0, (-1, num_views)).mean(dim=1)


def probabilities(logits_BC: Tensor, *, multi_label: bool) -> Tensor:
    """Logits `[B, C]` → probabilities, of each class by itself or over all classes."""
    return logits_BC.sigmoid() if multi_label else logits_BC.softmax(dim=-1)
