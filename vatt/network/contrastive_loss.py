"""Contrastive losses between two modalities: NCE, multi-instance NCE and SigLIP's sigmoid loss.

Source: paper section 3.5; google-research/vatt `utils/train/objectives.py`; Zhai et al., "Sigmoid
loss for language image pre-training", ICCV 2023. Shape legend in `vatt.batch`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.batch import Batch, MicroBatches
from vatt.config.checks import check_choices
from vatt.errors import UserError
from vatt.network.contrast import Rows, Sides, contrast, contrast_sigmoid
from vatt.network.heads import at_least_float32
from vatt.network.model import VATTOutput
from vatt.system.ranks import RowLayout, exchange_layout, gather_rows, sum_over_ranks, world_size

AUDIO_TEXT = "at"  # a space of PE-AV's
MAX_SCALE = 100.0  # a learned 1 / temperature stays below (CLIP, section 2.5)
Form = Literal["asymmetric", "symmetric", "sigmoid"]


class Pair(NamedTuple):
    """Two modalities that a loss contrasts, and their common space in the FAC head."""

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
    """Settings of the contrastive loss.

    Args:
        form: `asymmetric`: both directions share one denominator [C, default]; `symmetric`: the sum
            of one loss per direction; `sigmoid`: SigLIP, a binary loss for every pair of clips.
        temperature: Divisor of the similarities; if it is learned, its initial value. None: 0.07
            [P, C], and 0.1 for the sigmoid form.
        learn_temperature: Whether each pair of modalities learns its own temperature (and bias, in
            the sigmoid form). None: as published, only in the sigmoid form.
        sigmoid_bias: Initial bias that the sigmoid form adds to the scaled similarities.
        video_audio_weight: Weight of the video-audio pair; the total loss is the weighted mean.
        video_text_weight: Weight of the video-text pair.
        audio_text_weight: Weight of the audio-text pair, which needs the joint head.
        official_masking: Whether to treat clips that lack a modality as the official code does: the
            asymmetric form checks only the second modality of a pair, and the symmetric form weighs
            rows by the shares of both. False: a row counts if it has both modalities, and all rows
            count equally.
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
        """Refuses values for which no loss is defined."""
        check_choices(self, "loss")
        if not self.start_temperature > 0:
            raise UserError(f"loss.temperature must be positive, got {self.temperature}")
        weights = self.weights.values()
        if not all(weight >= 0 for weight in weights):
            raise UserError("loss weights must not be negative")
        if self.learns_temperature and self.start_temperature < 1 / MAX_SCALE:
            raise UserError(f"a learned temperature starts at {1 / MAX_SCALE} or above")
        if sum(weights) == 0:
            raise UserError("at least one loss weight must be positive")
        if self.official_masking and self.form == "sigmoid":
            raise UserError("official_masking is of the NCE forms: the release has no sigmoid")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each pair."""
        return {name: getattr(self, f"{name}_weight") for name in PAIRS}

    @property
    def start_temperature(self) -> float:
        """Initial temperature; it stays constant unless temperatures are learned."""
        default = 0.1 if self.form == "sigmoid" else 0.07
        return default if self.temperature is None else self.temperature

    @property
    def learns_temperature(self) -> bool:
        """Whether temperatures (and biases) are learned."""
        default = self.form == "sigmoid"
        return default if self.learn_temperature is None else self.learn_temperature


@dataclass(kw_only=True)
class LossOutput:
    """Scalars of one step, by the names of the pairs whose weight is above zero.

    An accuracy is the share of rows, in [0, 1], whose own bag scores highest. A pair without any
    valid row has loss 0 and accuracy NaN.

    Args:
        total: Weighted mean of the pairs' losses, with gradient.
        losses: Loss of each pair.
        accuracies: Accuracy of each pair.
        temperatures: Temperature of each pair.
        biases: Bias of each pair, in the sigmoid form.
    """

    total: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    accuracies: dict[str, Tensor] = field(default_factory=dict)
    temperatures: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


class ContrastiveLoss(nn.Module):
    """Pre-training loss over a batch that is distributed over all ranks.

    On every rank, the loss equals that of a single process with the whole batch. The gradient of a
    rank is that of its own rows times the number of ranks. DDP and FSDP average over ranks, which
    gives the gradient of a single process with the whole batch.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.max_scale = MAX_SCALE
        self.pairs = tuple(name for name, weight in config.weights.items() if weight > 0)
        learns = config.learns_temperature
        start = math.log(1 / config.start_temperature)
        count = len(self.pairs)
        self.log_scale = nn.Parameter(torch.full((count,), start), requires_grad=learns)
        self.bias: nn.Parameter | None = None
        if config.form == "sigmoid":
            start_bias = torch.full((count,), config.sigmoid_bias)
            self.bias = nn.Parameter(start_bias, requires_grad=learns)

    @torch.no_grad()
    def start_from(self, scales: Mapping[str, float], biases: Mapping[str, float]) -> None:
        """Starts from the scales and biases of a pre-trained model.

        A scale may stay as large as it was there.

        Args:
            scales: 1 / temperature by name of the pair; pairs that this loss lacks are ignored.
            biases: Biases of the sigmoid form, by name of the pair.
        """
        for number, name in enumerate(self.pairs):
            if name in scales:
                self.log_scale[number] = math.log(scales[name])
            if name in biases and self.bias is not None:
                self.bias[number] = biases[name]
        self.max_scale = max(MAX_SCALE, *(scales.get(name, 0.0) for name in self.pairs), 0.0)

    def bound_temperatures(self) -> None:
        """Clamps learned temperatures; a clamp in the graph would stop their gradient."""
        if self.config.learns_temperature:
            self.log_scale.data.clamp_(max=math.log(self.max_scale))

    def forward(self, output: VATTOutput, batch: Batch | MicroBatches) -> LossOutput:
        """Losses for the model's output of a batch.

        Raises:
            UserError: a pair has a weight, but the model's head has no space for it.
        """
        self.bound_temperatures()
        scales, masks = self.log_scale.exp(), batch.masks
        result = LossOutput(total=scales.new_zeros(()))
        for number, name in enumerate(self.pairs):
            pair = PAIRS[name]
            embeddings = embeddings_of(pair, output.embeddings)
            both_masks = masks.get(pair.first), masks.get(pair.second)
            bias = None if self.bias is None else self.bias[number]
            loss, accuracy = pair_loss(self.config, *embeddings, *both_masks, scales[number], bias)
            result.total = result.total + self.config.weights[name] * loss
            result.losses[name] = loss.detach()
            result.accuracies[name] = accuracy
            result.temperatures[name] = 1 / scales[number].detach()
            if bias is not None:
                result.biases[name] = bias.detach()
        result.total = result.total / sum(self.config.weights.values())
        if world_size() > 1 or not result.total.requires_grad:
            # DDP waits for a gradient of every weight, also where no two modalities meet
            result.total = result.total + sum(e[:0].sum() for e in output.embeddings.values())
        return result


def embeddings_of(pair: Pair, embeddings: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """Embeddings of both modalities in their common space; None for an absent modality.

    Raises:
        UserError: the model's head has no such space.
    """
    spaces = {name.partition("_")[2] for name in embeddings}
    space = "joint" if "joint" in spaces else pair.fac_space
    if space is None and AUDIO_TEXT in spaces:
        space = AUDIO_TEXT
    if space is None and embeddings:
        raise UserError(
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
    """Loss of one pair of modalities, and the share of rows whose own bag scores highest.

    Both cover the rows of all ranks, and are equal on all ranks. The gradient is that of this
    rank's rows times the number of ranks. All ranks must call this function together.

    Args:
        config: Form and masking.
        first: float `[B, D]`, not normalised. None: no row of any rank has this modality.
        second: float `[B, D]` or a bag of candidates `[B, K, D]`.
        first_mask: bool `[B]`. None: no row of this rank has this modality.
        second_mask: bool `[B]` or `[B, K]`.
        scale: 1 / temperature, scalar.
        bias: Bias of the sigmoid form, scalar.
    """
    if first is None or second is None:
        return scale * 0.0, scale.new_tensor(float("nan"))
    with torch.autocast(first.device.type, enabled=False):  # 1e9 is not a half
        local = _sides(first, second, first_mask, second_mask)
        num_rows, num_candidates = local.second_mask_BK.shape
        layout = exchange_layout(num_rows, num_candidates)
        local = _with_candidates(local, layout.num_candidates)
        divisor = None
        if config.official_masking and config.form == "symmetric":
            divisor = official_count(local, layout)
        if config.official_masking and config.form == "asymmetric":
            local = local._replace(first_mask_B=torch.ones_like(local.first_mask_B))
        everyone = Sides(*(gather_rows(side, layout) for side in local))
        if config.form == "sigmoid":
            assert bias is not None
            rows = contrast_sigmoid(local, everyone, layout.first, scale, bias)
        else:
            symmetric = config.form == "symmetric"
            rows = contrast(local, everyone, layout.first, scale, symmetric=symmetric)
        return _mean_over_ranks(rows, divisor)


def official_count(local: Sides, layout: RowLayout) -> Tensor:
    """Divisor of the official symmetric form: product of rows with each modality, over all rows."""
    first = sum_over_ranks(local.first_mask_B.sum().float())
    second = sum_over_ranks(local.second_mask_BK.any(dim=1).sum().float())
    return first * second / layout.total


def _sides(
    first: Tensor, second: Tensor, first_mask: Tensor | None, second_mask: Tensor | None
) -> Sides:
    """Unit vectors and masks; single candidates become bags of one."""
    if first_mask is None:
        first_mask = first.new_zeros(first.shape[:-1], dtype=torch.bool)
    if second_mask is None:
        second_mask = second.new_zeros(second.shape[:-1], dtype=torch.bool)
    if second_mask.ndim == 1:
        second, second_mask = second[:, None], second_mask[:, None]
    first_BD = F.normalize(at_least_float32(first), dim=-1)
    second_BKD = F.normalize(at_least_float32(second), dim=-1)
    return Sides(first_BD, second_BKD, first_mask, second_mask)


def _with_candidates(local: Sides, num_candidates: int) -> Sides:
    """Pads bags to the largest of any rank; added candidates are masked."""
    missing = num_candidates - local.second_mask_BK.shape[1]
    if missing == 0:
        return local
    return local._replace(
        second_BKD=F.pad(local.second_BKD, (0, 0, 0, missing)),
        second_mask_BK=F.pad(local.second_mask_BK, (0, missing)),
    )


def _mean_over_ranks(rows: Rows, divisor: Tensor | None) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of all ranks' valid rows, with this rank's share of the gradient."""
    local_sum = torch.where(rows.valid, rows.losses, 0.0).sum()
    num_correct, num_valid = (rows.correct & rows.valid).sum(), rows.valid.sum()
    counts = torch.stack([part.to(local_sum) for part in (num_correct, num_valid)])
    sums = sum_over_ranks(torch.cat([counts, local_sum.detach()[None]]))
    share = 1 / (sums[1] if divisor is None else divisor).clamp(min=1e-12)
    loss = local_sum * share
    if world_size() > 1:  # every rank sees the value of all; DDP means over ranks' gradients
        loss = world_size() * (loss - loss.detach()) + sums[2] * share
    return loss, sums[0] / sums[1]
