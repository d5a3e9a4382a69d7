"""Contrastive losses between two modalities: NCE, multi-instance NCE and SigLIP's sigmoid loss.

Source: paper section 3.5; google-research/vatt `utils/train/objectives.py`; Zhai et al., "Sigmoid
loss for language image pre-training", ICCV 2023. Shape legend in `vatt.batch`; `G` are the rows of
all ranks.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.batch import Batch
from vatt.config_checks import check_choices
from vatt.heads import at_least_float32, sum_over_ranks, world_size
from vatt.model import VATTOutput

BLOCKED = -1e9  # score of what is absent [C]
MAX_SCALE = 100.0  # a learned 1 / temperature stays below (CLIP, section 2.5)
Form = Literal["asymmetric", "symmetric", "sigmoid"]


class Pair(NamedTuple):
    """Two modalities that a loss brings together, and where the FAC head lets them meet."""

    first: str
    second: str
    fac_space: str | None


# FAC has no space for sound and words: its audio-text loss fails in the official code, too.
PAIRS = {
    "video_audio": Pair("video", "audio", "va"),
    "video_text": Pair("video", "text", "vt"),
    "audio_text": Pair("audio", "text", None),
}


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which contrastive loss.

    Args:
        form: `asymmetric`: both directions share one denominator [C, default]; `symmetric`: a ratio
            for each, added; `sigmoid`: every pair of clips by itself, SigLIP.
        temperature: What similarities are divided by; the start value if it is learned. None: 0.07
            [P, C], and 0.1 for the sigmoid form.
        learn_temperature: Whether each pair learns its own temperature, and its bias in the sigmoid
            form. None: as published, only in the sigmoid form.
        sigmoid_bias: Start of what the sigmoid form adds to the scaled similarities.
        video_audio_weight: Weight of the video-audio pair; the total is the weighted mean.
        video_text_weight: Weight of the video-text pair.
        audio_text_weight: Weight of the audio-text pair, which needs the joint head.
        official_masking: What the official code does where one of two modalities is absent: the
            asymmetric form minds only the second of a pair, the symmetric one weighs rows by the
            shares of both. Otherwise a row counts where both are there, and all alike.
    """

    form: Form = "asymmetric"
    temperature: float | None = None
    learn_temperature: bool | None = None
    sigmoid_bias: float = -10.0
    video_audio_weight: float = 1.0
    video_text_weight: float = 1.0
    audio_text_weight: float = 0.0
    official_masking: bool = False

    def __post_init__(self) -> None:
        """Refuses values for which there is no loss."""
        check_choices(self, "loss")
        if not self.start_temperature > 0:
            raise ValueError(f"loss.temperature must be positive, got {self.temperature}")
        weights = self.weights.values()
        if not all(weight >= 0 for weight in weights):
            raise ValueError("loss weights must not be negative")
        if self.learns_temperature and self.start_temperature < 1 / MAX_SCALE:
            raise ValueError(f"a learned temperature starts at {1 / MAX_SCALE} or above")
        if sum(weights) == 0:
            raise ValueError("at least one loss weight must be positive")
        if self.official_masking and self.form == "sigmoid":
            raise ValueError("official_masking is of the NCE forms: the release has no sigmoid")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each pair."""
        return {name: getattr(self, f"{name}_weight") for name in PAIRS}

    @property
    def start_temperature(self) -> float:
        """The temperature at the start, and throughout unless it learns."""
        default = 0.1 if self.form == "sigmoid" else 0.07
        return default if self.temperature is None else self.temperature

    @property
    def learns_temperature(self) -> bool:
        """Whether temperatures, and biases, are parameters."""
        default = self.form == "sigmoid"
        return default if self.learn_temperature is None else self.learn_temperature


@dataclass(kw_only=True)
class LossOutput:
    """Scalars of one step, by the names of the pairs whose weight is above zero.

    Accuracies in [0, 1] say how often the own bag scores highest. A pair without a single valid row
    has loss 0 and accuracy NaN.

    Args:
        total: Weighted mean of the pairs' losses, with gradient.
        losses: Of each pair.
        accuracies: Of each pair.
        temperatures: Of each pair.
        biases: Of each pair, in the sigmoid form.
    """

    total: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    accuracies: dict[str, Tensor] = field(default_factory=dict)
    temperatures: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


class ContrastiveLoss(nn.Module):
    """The pre-training loss over a batch of all ranks.

    Each rank's value is the sum over its valid rows, divided by the number of valid rows of all
    ranks and multiplied by the number of ranks: the mean over ranks, of values as of gradients, is
    that of one process with the whole batch.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.pairs = tuple(name for name, weight in config.weights.items() if weight > 0)
        learns = config.learns_temperature
        start = math.log(1 / config.start_temperature)
        count = len(self.pairs)
        self.log_scale = nn.Parameter(torch.full((count,), start), requires_grad=learns)
        self.bias: nn.Parameter | None = None
        if config.form == "sigmoid":
            start_bias = torch.full((count,), config.sigmoid_bias)
            self.bias = nn.Parameter(start_bias, requires_grad=learns)

    def forward(self, output: VATTOutput, batch: Batch) -> LossOutput:
        """Contrasts what the model made of `batch`; see `LossOutput`.

        Raises:
            ValueError: a pair has a weight, but the model's head has no space for it.
        """
        if self.config.learns_temperature:  # clamped here: a clamp in the graph has no way back
            self.log_scale.data.clamp_(max=math.log(MAX_SCALE))
        scales = self.log_scale.exp()
        result = LossOutput(total=scales.new_zeros(()))
        for number, name in enumerate(self.pairs):
            first, second = embeddings_of(PAIRS[name], output.embeddings)
            bias = None if self.bias is None else self.bias[number]
            loss, accuracy = pair_loss(
                self.config,
                first,
                second,
                mask_of(batch, PAIRS[name].first),
                mask_of(batch, PAIRS[name].second),
                scales[number],
                bias,
            )
            result.total = result.total + self.config.weights[name] * loss
            result.losses[name] = loss.detach()
            result.accuracies[name] = accuracy
            result.temperatures[name] = 1 / scales[number].detach()
            if bias is not None:
                result.biases[name] = bias.detach()
        result.total = result.total / sum(self.config.weights.values())
        if not result.total.requires_grad:  # no two modalities meet: nothing to learn, but a step
            result.total = result.total + sum(0.0 * e.sum() for e in output.embeddings.values())
        return result


def mask_of(batch: Batch, modality: str) -> Tensor | None:
    """A modality's mask, `[B]` or for text `[B, K]`; None where the batch lacks it."""
    mask: Tensor | None = getattr(batch, f"{modality}_mask")
    return mask


def embeddings_of(pair: Pair, embeddings: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Embeddings of both modalities in the space where they meet; None for what is absent.

    Raises:
        ValueError: the model's head has no such space.
    """
    joint = any(name.endswith("_joint") for name in embeddings)
    space = "joint" if joint else pair.fac_space
    if space is None and embeddings:
        raise ValueError(
            f"the {pair.first}-{pair.second} loss needs the joint head, the model has "
            f"{', '.join(sorted(embeddings))}: set its weight to 0, or head.kind to joint"
        )
    return embeddings.get(f"{pair.first}_{space}"), embeddings.get(f"{pair.second}_{space}")


def pair_loss(
    config: LossConfig,
    first: Tensor | None,
    second: Tensor | None,
    first_mask: Tensor | None,
    second_mask: Tensor | None,
    scale: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss of one pair of modalities, and the share of rows whose own bag scores highest.

    Args:
        config: Form and masking.
        first: float `[B, D]`, not normalised; None: no row has it.
        second: float `[B, D]` or a bag of candidates `[B, K, D]`.
        first_mask: bool `[B]`.
        second_mask: bool `[B]` or `[B, K]`.
        scale: 1 / temperature, scalar.
        bias: Of the sigmoid form, scalar.
    """
    if first is None or second is None or first_mask is None or second_mask is None:
        return scale * 0.0, scale.new_tensor(float("nan"))
    if second_mask.ndim == 1:
        second, second_mask = second[:, None], second_mask[:, None]
    with torch.autocast(first.device.type, enabled=False):  # 1e9 is not a half
        first_BD = F.normalize(at_least_float32(first), dim=-1)
        second_BKD = F.normalize(at_least_float32(second), dim=-1)
        if config.form == "sigmoid":
            assert bias is not None
            rows = contrast_sigmoid(first_BD, second_BKD, first_mask, second_mask, scale, bias)
        else:
            seen = first_mask
            if config.official_masking and config.form == "asymmetric":
                seen = torch.ones_like(first_mask)
            symmetric = config.form == "symmetric"
            rows = contrast(first_BD, second_BKD, seen, second_mask, scale, symmetric=symmetric)
    num_valid = sum_over_ranks(rows.valid.sum().to(rows.losses.dtype))
    if config.official_masking and config.form == "symmetric":
        num_valid = official_count(first_mask, second_mask)
    share = world_size() / num_valid.clamp(min=1e-12)
    accuracy = (rows.correct & rows.valid).sum() / rows.valid.sum()
    return torch.where(rows.valid, rows.losses, 0.0).sum() * share, accuracy


def official_count(first_mask_B: Tensor, second_mask_BK: Tensor) -> Tensor:
    """What the official symmetric form divides by: rows that have each modality, over all rows."""
    first = sum_over_ranks(first_mask_B.sum().float())
    second = sum_over_ranks(second_mask_BK.any(dim=1).sum().float())
    return first * second / (len(first_mask_B) * world_size())


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
    first_BD: Tensor,
    second_BKD: Tensor,
    first_mask_B: Tensor,
    second_mask_BK: Tensor,
    scale: Tensor,
    *,
    symmetric: bool,
) -> Rows:
    """Multi-instance NCE of local clips against all ranks' candidates; NCE where `K` is 1.

    Args:
        first_BD: float32, L2-normalised.
        second_BKD: float32, L2-normalised bag of audio (K = 1) or captions.
        first_mask_B: bool, clips that have the first modality.
        second_mask_BK: bool, candidates that are there.
        scale: 1 / temperature, scalar.
        symmetric: Separate ratios for the two directions instead of one denominator.

    Source: google-research/vatt `utils/train/objectives.py`, AsymmetricNCE and SymmetricNCE.
    """
    num_rows, num_candidates = second_mask_BK.shape
    own = torch.arange(num_rows, device=first_BD.device)
    first_GD, second_GKD = gather_rows(first_BD), gather_rows(second_BKD)
    first_mask_G, second_mask_GK = gather_rows(first_mask_B), gather_rows(second_mask_BK)

    # local clips against the candidates of everybody, and the local bags against everybody's clips
    row_BGK = (scale * first_BD @ second_GKD.flatten(0, 1).T).unflatten(1, (-1, num_candidates))
    row_BGK = row_BGK.masked_fill(~second_mask_GK, BLOCKED)
    column_BKG = scale * second_BKD @ first_GD.T
    column_BKG = column_BKG.masked_fill(~(second_mask_BK[:, :, None] & first_mask_G), BLOCKED)

    positive_B = row_BGK[own, own + rank() * num_rows].logsumexp(dim=1)
    row_B = row_BGK.flatten(1).logsumexp(dim=1)
    column_B = column_BKG.flatten(1).logsumexp(dim=1)
    if symmetric:
        loss_B = row_B + column_B - 2 * positive_B
    else:
        loss_B = torch.logaddexp(row_B, column_B) - positive_B
    valid_B = first_mask_B & second_mask_BK.any(dim=1)
    return Rows(loss_B, own_bag_is_best(row_BGK), valid_B)


def contrast_sigmoid(
    first_BD: Tensor,
    second_BKD: Tensor,
    first_mask_B: Tensor,
    second_mask_BK: Tensor,
    scale: Tensor,
    bias: Tensor,
) -> Rows:
    """SigLIP's loss of local clips against all ranks' candidates, each a yes or no.

    Of a bag all candidates are a yes; each is weighted by 1 / (how many the bag has), so that a bag
    weighs as much as one. Arguments as of `contrast`, and `bias`, scalar, added to the scores.

    Source: Zhai et al., ICCV 2023, equation 1 and algorithm 1; bags are ours.
    """
    num_rows, num_candidates = second_mask_BK.shape
    own = torch.arange(num_rows, device=first_BD.device)
    second_GKD, second_mask_GK = gather_rows(second_BKD), gather_rows(second_mask_BK)
    score_BGK = (scale * first_BD @ second_GKD.flatten(0, 1).T + bias).unflatten(
        1, (-1, num_candidates)
    )
    sign_BGK = torch.full_like(score_BGK, -1.0)
    sign_BGK[own, own + rank() * num_rows] = 1.0
    present_GK = second_mask_GK.to(score_BGK.dtype)
    share_GK = present_GK / present_GK.sum(dim=1, keepdim=True).clamp(min=1)
    loss_BGK = F.softplus(-sign_BGK * score_BGK) * share_GK
    valid_B = first_mask_B & second_mask_BK.any(dim=1)
    correct_B = own_bag_is_best(score_BGK.masked_fill(~second_mask_GK, BLOCKED))
    return Rows(loss_BGK.sum(dim=(1, 2)), correct_B, valid_B)


def own_bag_is_best(score_BGK: Tensor) -> Tensor:
    """Whether a local row's highest score is in its own bag, bool `[B]`."""
    num_rows, _, num_candidates = score_BGK.shape
    best_B = score_BGK.detach().flatten(1).argmax(dim=1) // num_candidates
    return best_B == torch.arange(num_rows, device=best_B.device) + rank() * num_rows


def rank() -> int:
    """This process's rank, 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_rows(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient: `[B, …]` → `[G, …]`, the same `B` on each."""
    if world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_gather

    if not x.is_floating_point():
        parts = [torch.empty_like(x, dtype=torch.uint8) for _ in range(world_size())]
        dist.all_gather(parts, x.to(torch.uint8).contiguous())
        return torch.cat(parts).to(x.dtype)
    return torch.cat(all_gather(x.contiguous()))
