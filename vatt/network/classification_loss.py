"""Losses and predictions of classifiers.

Source: paper section 4.2; google-research/vatt `modeling/backbones/{video,audio}/factory.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.system.ranks import sum_over_ranks


def classification_loss(logits_BC: Tensor, targets_BC: Tensor, *, multi_label: bool) -> Tensor:
    """Mean classification loss over the clips of all ranks, scalar.

    With one label per clip: softmax cross entropy. With several: sigmoid cross entropy, summed over
    classes. Each clip is then weighted by the mean of 1 / (count of a label in the batch) over its
    labels, so that frequent labels do not dominate.

    Args:
        logits_BC: float `[B, C]`.
        targets_BC: float `[B, C]`: 0 and 1, or probabilities (label smoothing, mixup).
        multi_label: Whether a clip may have several labels.

    Raises:
        ValueError: logits and targets have different shapes.
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
    """Mean of the logits over all views of a clip, before the softmax.

    Args:
        logits: float `[B · num_views, C]`, the views of a clip one after another.
        num_views: Number of views per clip, windows × crops.

    Returns:
        float `[B, C]`.

    Raises:
        ValueError: the number of rows is not a multiple of `num_views`.
    """
    if num_views < 1 or len(logits) % num_views:
        raise ValueError(
            f"{len(logits)} rows of logits are not {num_views} views of each of some clips"
        )
    return logits.unflatten(0, (-1, num_views)).mean(dim=1)


def probabilities(logits_BC: Tensor, *, multi_label: bool) -> Tensor:
    """Probabilities of logits `[B, C]`: sigmoid if a clip may have several labels, else softmax."""
    return logits_BC.sigmoid() if multi_label else logits_BC.softmax(dim=-1)
