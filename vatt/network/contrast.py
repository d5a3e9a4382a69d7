"""Scores between local clips and the candidates of all ranks, for the contrastive losses.

Scores are computed for a chunk of columns at a time, and again for the gradient, so that memory is
proportional to local rows × chunk, not rows × columns. Source: paper section 3.5;
google-research/vatt `utils/train/objectives.py`. Shape legend in `vatt.batch`; `J` is the number of
clips in a chunk here.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCKED = -1e9  # score of what is absent [C]
CHUNK_CLIPS = 2048  # the paper's batch is one chunk
P = ParamSpec("P")
T = TypeVar("T")


class Sides(NamedTuple):
    """Embeddings of two modalities of some clips, float32, of unit length.

    Args:
        first_BD: Modality whose rows are contrasted.
        second_BKD: Bags of candidates of the other modality: captions, or audio (K = 1).
        first_mask_B: bool; whether a clip has the first modality.
        second_mask_BK: bool; whether a candidate is present.
    """

    first_BD: Tensor
    second_BKD: Tensor
    first_mask_B: Tensor
    second_mask_BK: Tensor


class Rows(NamedTuple):
    """Losses of the local rows, all `[B]`.

    Args:
        losses: float; undefined if a row is not valid.
        correct: bool; whether the row's own bag scores highest.
        valid: bool; whether a row has both modalities.
    """

    losses: Tensor
    correct: Tensor
    valid: Tensor


def contrast(
    local: Sides, everyone: Sides, first_row: int, scale: Tensor, *, symmetric: bool
) -> Rows:
    """Multi-instance NCE of local clips against the candidates of all ranks; NCE if `K` is 1.

    Args:
        local: This rank's clips.
        everyone: Clips of all ranks.
        first_row: Index of the first local clip among those of all ranks.
        scale: 1 / temperature, scalar.
        symmetric: Whether each direction has its own denominator; else both share one.

    Source: AsymmetricNCE and SymmetricNCE of `utils/train/objectives.py`.
    """
    own_B = _own_rows(local, first_row)
    clips_BD, bags_BKD = scale * local.first_BD, scale * local.second_BKD
    chunks = _chunks(everyone)
    row_scores, column_scores = _recomputed(score_bags, chunks), _recomputed(score_clips, chunks)
    rows = [
        row_scores(clips_BD, chunk.second_BKD, chunk.second_mask_BK, own_B - start)
        for start, chunk in chunks
    ]
    columns = [
        column_scores(bags_BKD, local.second_mask_BK, chunk.first_BD, chunk.first_mask_B)
        for _, chunk in chunks
    ]
    row_B = torch.stack([chunk.all_bags_B for chunk in rows]).logsumexp(dim=0)
    column_B = torch.stack(columns).logsumexp(dim=0)
    positive_BK = sum((chunk.own_bag_BK for chunk in rows[1:]), rows[0].own_bag_BK)
    positive_B = positive_BK.logsumexp(dim=1)
    if symmetric:
        loss_B = row_B + column_B - 2 * positive_B
    else:
        loss_B = torch.logaddexp(row_B, column_B) - positive_B
    return Rows(loss_B, _own_is_best(rows), _valid(local))


def contrast_sigmoid(
    local: Sides, everyone: Sides, first_row: int, scale: Tensor, bias: Tensor
) -> Rows:
    """SigLIP's loss of local clips against the candidates of all ranks.

    All candidates of a clip's own bag count as matching. Each is weighted by 1 / (size of the bag),
    so that a bag weighs as much as a single candidate.

    Args:
        local: This rank's clips.
        everyone: Clips of all ranks.
        first_row: Index of the first local clip among those of all ranks.
        scale: 1 / temperature, scalar.
        bias: Added to the scores, scalar.

    Source: Zhai et al., ICCV 2023, equation 1 and algorithm 1; bags are ours.
    """
    own_B = _own_rows(local, first_row)
    clips_BD = scale * local.first_BD
    chunks = _chunks(everyone)
    losses = _recomputed(sigmoid_bags, chunks)
    rows = [
        losses(clips_BD, bias, chunk.second_BKD, chunk.second_mask_BK, own_B - start)
        for start, chunk in chunks
    ]
    loss_B = sum((chunk.all_bags_B for chunk in rows[1:]), rows[0].all_bags_B)
    return Rows(loss_B, _own_is_best(rows), _valid(local))


class BagScores(NamedTuple):
    """Scores between local clips and the bags of one chunk.

    Args:
        all_bags_B: float; logsumexp of a clip's scores with all candidates of the chunk.
        own_bag_BK: float; scores of a clip with the candidates of its own bag, 0 if that bag is in
            another chunk.
        best_B: float; highest score of a clip.
        own_is_best_B: bool; whether the highest score is that of the clip's own bag.
    """

    all_bags_B: Tensor
    own_bag_BK: Tensor
    best_B: Tensor
    own_is_best_B: Tensor


def score_bags(clips_BD: Tensor, bags_JKD: Tensor, mask_JK: Tensor, own_B: Tensor) -> BagScores:
    """Logsumexp of the scores between local clips and a chunk of the bags of all clips.

    Args:
        clips_BD: float; embeddings of local clips divided by the temperature.
        bags_JKD: float; embeddings of the chunk's candidates.
        mask_JK: bool; whether a candidate is present.
        own_B: int64; index of a clip's own bag, outside [0, J) if it is in another chunk.
    """
    score_BJK = _score(clips_BD, bags_JKD).masked_fill(~mask_JK, BLOCKED)
    inside_B = (own_B >= 0) & (own_B < len(bags_JKD))
    place_B = own_B.clamp(0, len(bags_JKD) - 1)
    own_BK = score_BJK[torch.arange(len(own_B), device=own_B.device), place_B]
    own_BK = torch.where(inside_B[:, None], own_BK, 0.0)
    return BagScores(score_BJK.flatten(1).logsumexp(dim=1), own_BK, *_best(score_BJK, own_B))


def score_clips(
    bags_BKD: Tensor, bag_mask_BK: Tensor, clips_JD: Tensor, clip_mask_J: Tensor
) -> Tensor:
    """Logsumexp of the scores between local bags and a chunk of all clips: float `[B]`."""
    score_BKJ = bags_BKD @ clips_JD.T
    score_BKJ = score_BKJ.masked_fill(~(bag_mask_BK[:, :, None] & clip_mask_J), BLOCKED)
    return score_BKJ.flatten(1).logsumexp(dim=1)


def sigmoid_bags(
    clips_BD: Tensor, bias: Tensor, bags_JKD: Tensor, mask_JK: Tensor, own_B: Tensor
) -> BagScores:
    """Scores like those of `score_bags`; `all_bags_B` is the sum of the sigmoid losses."""
    score_BJK = _score(clips_BD, bags_JKD) + bias
    own_BJ = own_B[:, None] == torch.arange(len(bags_JKD), device=own_B.device)
    sign_BJ1 = torch.where(own_BJ, 1.0, -1.0).to(score_BJK.dtype)[..., None]
    present_JK = mask_JK.to(score_BJK.dtype)
    share_JK = present_JK / present_JK.sum(dim=1, keepdim=True).clamp(min=1)
    loss_BJK = F.softplus(-sign_BJ1 * score_BJK) * share_JK
    best = _best(score_BJK.masked_fill(~mask_JK, BLOCKED), own_B)
    return BagScores(loss_BJK.sum(dim=(1, 2)), score_BJK.new_zeros(()), *best)


def _score(clips_BD: Tensor, bags_JKD: Tensor) -> Tensor:
    return (clips_BD @ bags_JKD.flatten(0, 1).T).unflatten(1, bags_JKD.shape[:2])


@torch.no_grad()
def _best(score_BJK: Tensor, own_B: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score of each row, and whether it is in the own bag."""
    best_B, place_B = score_BJK.flatten(1).max(dim=1)
    return best_B, place_B // score_BJK.shape[2] == own_B


def _own_is_best(chunks: list[BagScores]) -> Tensor:
    """Whether a local row's highest score is in its own bag, bool `[B]`."""
    chunk_1B = torch.stack([chunk.best_B for chunk in chunks]).argmax(dim=0, keepdim=True)
    return torch.stack([chunk.own_is_best_B for chunk in chunks]).gather(0, chunk_1B)[0]


def _own_rows(local: Sides, first_row: int) -> Tensor:
    return first_row + torch.arange(len(local.first_BD), device=local.first_BD.device)


def _valid(local: Sides) -> Tensor:
    return local.first_mask_B & local.second_mask_BK.any(dim=1)


def _chunks(everyone: Sides) -> list[tuple[int, Sides]]:
    """First clip of each chunk, and its sides."""
    parts = zip(*(side.split(CHUNK_CLIPS) for side in everyone), strict=True)
    return [(number * CHUNK_CLIPS, Sides(*part)) for number, part in enumerate(parts)]


def _recomputed(function: Callable[P, T], chunks: list[tuple[int, Sides]]) -> Callable[P, T]:
    """The function; with several chunks, it stores only results and runs again for gradients."""
    if len(chunks) == 1:
        return function
    return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
