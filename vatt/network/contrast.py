"""Local clips against the candidates of all ranks: the scores that the contrastive losses compare.

Scores are made for some columns at a time and made again for the gradient, so that memory grows
with local rows × chunk and not with rows × columns. Source: paper section 3.5; google-research/vatt
`utils/train/objectives.py`. Shape legend in `vatt.batch`; `J` here are the clips of a chunk.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCKED = -1e9  # score of what is absent [C]
CHUNK_CLIPS = 2048  # the paper's batch is one chunk


class Sides(NamedTuple):
    """Both modalities of some clips, embeddings float32 and of unit length.

    Args:
        first_BD: The one whose rows are contrasted.
        second_BKD: Bags of candidates: captions, or audio (K = 1).
        first_mask_B: bool, clips that have the first modality.
        second_mask_BK: bool, candidates that are there.
    """

    first_BD: Tensor
    second_BKD: Tensor
    first_mask_B: Tensor
    second_mask_BK: Tensor


class Rows(NamedTuple):
    """What a contrast gives for each local row, all `[B]`.

    Args:
        losses: float, meaningless where not valid.
        correct: bool, whether the own bag scores highest.
        valid: bool, rows that have both modalities.
    """

    losses: Tensor
    correct: Tensor
    valid: Tensor


def contrast(
    local: Sides, everyone: Sides, first_row: int, scale: Tensor, *, symmetric: bool
) -> Rows:
    """Multi-instance NCE of local clips against all ranks' candidates; NCE where `K` is 1.

    Args:
        local: This rank's clips.
        everyone: Those of all ranks.
        first_row: Place of the first local clip among those of all ranks.
        scale: 1 / temperature, scalar.
        symmetric: Separate ratios for the two directions instead of one denominator.

    Source: AsymmetricNCE and SymmetricNCE of `utils/train/objectives.py`.
    """
    own_B = _own_rows(local, first_row)
    clips_BD, bags_BKD = scale * local.first_BD, scale * local.second_BKD
    rows = [
        keep(score_bags, clips_BD, bags_JKD, mask_JK, own_B - start)
        for start, bags_JKD, mask_JK, keep in _chunks(everyone.second_BKD, everyone.second_mask_BK)
    ]
    columns = [
        keep(score_clips, bags_BKD, local.second_mask_BK, clips_JD, mask_J)
        for _, clips_JD, mask_J, keep in _chunks(everyone.first_BD, everyone.first_mask_B)
    ]
    row_B = torch.stack([chunk.all_bags_B for chunk in rows]).logsumexp(dim=0)
    column_B = torch.stack(columns).logsumexp(dim=0)
    positive_BK = sum((chunk.own_bag_BK for chunk in rows[1:]), rows[0].own_bag_BK)
    positive_B = positive_BK.logsumexp(dim=1)
    if symmetric:
        loss_B = row_B + column_B - 2 * positive_B
    else:
        loss_B = torch.logaddexp(row_B, column_B) - positive_B
    return Rows(loss_B, _own_is_best(rows, own_B), _valid(local))


def contrast_sigmoid(
    local: Sides, everyone: Sides, first_row: int, scale: Tensor, bias: Tensor
) -> Rows:
    """SigLIP's loss of local clips against all ranks' candidates, each a yes or no.

    Of a bag all candidates are a yes; each is weighted by 1 / (how many the bag has), so that a bag
    weighs as much as one. Arguments as of `contrast`, and `bias`, scalar, added to the scores.

    Source: Zhai et al., ICCV 2023, equation 1 and algorithm 1; bags are ours.
    """
    own_B = _own_rows(local, first_row)
    clips_BD = scale * local.first_BD
    rows = [
        keep(judge_bags, clips_BD, bias, bags_JKD, mask_JK, own_B - start)
        for start, bags_JKD, mask_JK, keep in _chunks(everyone.second_BKD, everyone.second_mask_BK)
    ]
    loss_B = sum((chunk.all_bags_B for chunk in rows[1:]), rows[0].all_bags_B)
    return Rows(loss_B, _own_is_best(rows, own_B), _valid(local))


class BagScores(NamedTuple):
    """What local clips make of the bags of a chunk.

    Args:
        all_bags_B: float, of all candidates together.
        own_bag_BK: float, scores of the own candidates; 0 where these are in another chunk.
        best_B: float, the highest score.
        best_place_B: int64, the bag in the chunk that has it.
    """

    all_bags_B: Tensor
    own_bag_BK: Tensor
    best_B: Tensor
    best_place_B: Tensor


def score_bags(clips_BD: Tensor, bags_JKD: Tensor, mask_JK: Tensor, own_B: Tensor) -> BagScores:
    """Log of the summed exponentials of local clips' scores with some of all clips' bags.

    Args:
        clips_BD: float, times 1 / temperature.
        bags_JKD: float.
        mask_JK: bool.
        own_B: int64, place of the own bag, outside of [0, J) where it is in another chunk.
    """
    score_BJK = _score(clips_BD, bags_JKD).masked_fill(~mask_JK, BLOCKED)
    inside_B = (own_B >= 0) & (own_B < len(bags_JKD))
    place_B = own_B.clamp(0, len(bags_JKD) - 1)
    own_BK = score_BJK[torch.arange(len(own_B), device=own_B.device), place_B]
    own_BK = torch.where(inside_B[:, None], own_BK, 0.0)
    return BagScores(score_BJK.flatten(1).logsumexp(dim=1), own_BK, *_best(score_BJK))


def score_clips(
    bags_BKD: Tensor, bag_mask_BK: Tensor, clips_JD: Tensor, clip_mask_J: Tensor
) -> Tensor:
    """As `score_bags` the other way round, local bags with some of all clips: float `[B]`."""
    score_BKJ = bags_BKD @ clips_JD.T
    score_BKJ = score_BKJ.masked_fill(~(bag_mask_BK[:, :, None] & clip_mask_J), BLOCKED)
    return score_BKJ.flatten(1).logsumexp(dim=1)


def judge_bags(
    clips_BD: Tensor, bias: Tensor, bags_JKD: Tensor, mask_JK: Tensor, own_B: Tensor
) -> BagScores:
    """As `score_bags`, with the sum of the sigmoid losses in the place of the logarithm."""
    score_BJK = _score(clips_BD, bags_JKD) + bias
    own_BJ = own_B[:, None] == torch.arange(len(bags_JKD), device=own_B.device)
    sign_BJ1 = torch.where(own_BJ, 1.0, -1.0).to(score_BJK.dtype)[..., None]
    present_JK = mask_JK.to(score_BJK.dtype)
    share_JK = present_JK / present_JK.sum(dim=1, keepdim=True).clamp(min=1)
    loss_BJK = F.softplus(-sign_BJ1 * score_BJK) * share_JK
    best = _best(score_BJK.masked_fill(~mask_JK, BLOCKED))
    return BagScores(loss_BJK.sum(dim=(1, 2)), score_BJK.new_zeros(()), *best)


def _score(clips_BD: Tensor, bags_JKD: Tensor) -> Tensor:
    return (clips_BD @ bags_JKD.flatten(0, 1).T).unflatten(1, bags_JKD.shape[:2])


@torch.no_grad()
def _best(score_BJK: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score of each row, and whose bag has it."""
    best_B, place_B = score_BJK.flatten(1).max(dim=1)
    return best_B, place_B // score_BJK.shape[2]


def _own_is_best(chunks: list[BagScores], own_B: Tensor) -> Tensor:
    """Whether a local row's highest score is in its own bag, bool `[B]`."""
    best_SB = torch.stack([chunk.best_B for chunk in chunks])
    starts = zip(_starts(len(chunks)), chunks, strict=True)
    place_SB = torch.stack([start + chunk.best_place_B for start, chunk in starts])
    return place_SB.gather(0, best_SB.argmax(dim=0, keepdim=True))[0] == own_B


def _own_rows(local: Sides, first_row: int) -> Tensor:
    return first_row + torch.arange(len(local.first_BD), device=local.first_BD.device)


def _valid(local: Sides) -> Tensor:
    return local.first_mask_B & local.second_mask_BK.any(dim=1)


def _starts(num_chunks: int) -> range:
    return range(0, num_chunks * CHUNK_CLIPS, CHUNK_CLIPS)


Keep = Callable[..., Any]


def _chunks(columns: Tensor, mask: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Keep]]:
    """Start of each chunk, its columns and mask, and how to call a function of them.

    The only chunk is called as it is; of several only the results are kept.
    """
    parts, masks = columns.split(CHUNK_CLIPS), mask.split(CHUNK_CLIPS)
    keep: Keep = _call if len(parts) == 1 else _call_and_forget
    for start, part, mask_part in zip(_starts(len(parts)), parts, masks, strict=True):
        yield start, part, mask_part, keep


def _call(function: Callable[..., Any], *tensors: Tensor) -> Any:
    return function(*tensors)


def _call_and_forget(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """The result alone; what led to it is computed again for the gradient."""
    return checkpoint(function, *tensors, use_reentrant=False, preserve_rng_state=False)
