"""Contrastive losses: NCE for video and audio, multi-instance NCE for video and captions.

Source: paper section 3.5; google-research/vatt `utils/train/objectives.py`. Shape legend in
`vatt.batch`; `G` are the rows of all ranks.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.batch import Batch
from vatt.config import check_choices
from vatt.heads import sum_over_ranks
from vatt.model import VATTOutput

BLOCKED = -1e9  # score of what is absent [C]
MAX_SCALE = 100.0  # a learned 1 / temperature stays below (CLIP, section 2.5)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which contrastive loss.

    Args:
        form: `asymmetric`: both directions share one denominator [C, default]; `symmetric`: a ratio
            for each, added.
        temperature: What similarities are divided by; the start value if it is learned.
        learn_temperature: Whether each pair learns its own temperature (the paper's is fixed).
        video_audio_weight: Weight of the video-audio pair; the total is the weighted mean.
        video_text_weight: Weight of the video-text pair.
    """

    form: Literal["asymmetric", "symmetric"] = "asymmetric"
    temperature: float = 0.07
    learn_temperature: bool = False
    video_audio_weight: float = 1.0
    video_text_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuses values for which there is no loss."""
        check_choices(self, "loss")
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature must be positive, got {self.temperature}")
        if min(self.video_audio_weight, self.video_text_weight) < 0:
            raise ValueError("loss weights must not be negative")
        if self.learn_temperature and self.temperature < 1 / MAX_SCALE:
            raise ValueError(f"a learned temperature starts at {1 / MAX_SCALE} or above")
        if self.video_audio_weight + self.video_text_weight == 0:
            raise ValueError("at least one loss weight must be positive")


@dataclass(kw_only=True)
class LossOutput:
    """Scalars of one step; accuracies in [0, 1] say how often the own bag scores highest.

    A pair without a single valid row has loss 0 and accuracy NaN.
    """

    total: Tensor
    video_audio: Tensor
    video_text: Tensor
    accuracy_video_audio: Tensor
    accuracy_video_text: Tensor
    temperature_video_audio: Tensor
    temperature_video_text: Tensor


class ContrastiveLoss(nn.Module):
    """The pre-training loss over a batch of all ranks.

    Each rank's value is the sum over its valid rows, divided by the number of valid rows of all
    ranks and multiplied by the number of ranks: the mean over ranks, of values as of gradients, is
    that of one process with the whole batch.
    """

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        start = math.log(1 / config.temperature)
        self.log_scale = nn.Parameter(
            torch.full((2,), start), requires_grad=config.learn_temperature
        )

    def forward(self, output: VATTOutput, batch: Batch) -> LossOutput:
        """Contrasts what the model made of `batch`; see `LossOutput`."""
        video_rows = batch.video_mask
        embeddings = output.embeddings
        if self.config.learn_temperature:  # clamped here: a clamp in the graph has no way back
            self.log_scale.data.clamp_(max=math.log(MAX_SCALE))
        scale = self.log_scale.exp()
        audio_mask = None if batch.audio_mask is None else batch.audio_mask[:, None]
        audio = embeddings.get("audio_va")
        video_audio, accuracy_audio = self._pair(
            embeddings.get("video_va"),
            None if audio is None else audio[:, None],
            video_rows,
            audio_mask,
            scale[0],
        )
        video_text, accuracy_text = self._pair(
            embeddings.get("video_vt"),
            embeddings.get("text_vt"),
            video_rows,
            batch.text_mask,
            scale[1],
        )
        weights = (self.config.video_audio_weight, self.config.video_text_weight)
        total = (weights[0] * video_audio + weights[1] * video_text) / sum(weights)
        return LossOutput(
            total=total,
            video_audio=video_audio.detach(),
            video_text=video_text.detach(),
            accuracy_video_audio=accuracy_audio,
            accuracy_video_text=accuracy_text,
            temperature_video_audio=1 / scale[0].detach(),
            temperature_video_text=1 / scale[1].detach(),
        )

    def _pair(
        self,
        video_BD: Tensor | None,
        other_BKD: Tensor | None,
        video_mask_B: Tensor | None,
        other_mask_BK: Tensor | None,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor]:
        if video_BD is None or other_BKD is None or video_mask_B is None or other_mask_BK is None:
            return scale * 0.0, scale.new_tensor(float("nan"))
        with torch.autocast(video_BD.device.type, enabled=False):  # 1e9 is not a half
            loss_B, correct_B, valid_B = contrast(
                F.normalize(video_BD.float(), dim=-1),
                F.normalize(other_BKD.float(), dim=-1),
                video_mask_B,
                other_mask_BK,
                scale,
                symmetric=self.config.form == "symmetric",
            )
        num_valid = sum_over_ranks(valid_B.sum().to(loss_B.dtype))
        share = world_size() / num_valid.clamp(min=1)
        accuracy = (correct_B & valid_B).sum() / valid_B.sum()
        return torch.where(valid_B, loss_B, 0.0).sum() * share, accuracy


def contrast(
    video_BD: Tensor,
    other_BKD: Tensor,
    video_mask_B: Tensor,
    other_mask_BK: Tensor,
    scale: Tensor,
    *,
    symmetric: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-instance NCE of local clips against all ranks' candidates; NCE where `K` is 1.

    Args:
        video_BD: float32, L2-normalised.
        other_BKD: float32, L2-normalised bag of audio (K = 1) or captions.
        video_mask_B: bool, clips with a picture.
        other_mask_BK: bool, candidates that are there.
        scale: 1 / temperature, scalar.
        symmetric: Separate ratios for the two directions instead of one denominator.

    Returns:
        loss float `[B]` (meaningless where not valid), whether the own bag scores highest bool
        `[B]`, valid rows bool `[B]`.

    Source: FACTS of `google-research/vatt/utils/train/objectives.py`, AsymmetricNCE and
    SymmetricNCE.
    """
    num_rows, num_candidates = other_mask_BK.shape
    first = rank() * num_rows
    own = torch.arange(num_rows, device=video_BD.device)
    video_GD, other_GKD = gather_rows(video_BD), gather_rows(other_BKD)
    video_mask_G, other_mask_GK = gather_rows(video_mask_B), gather_rows(other_mask_BK)

    # local clips against the candidates of everybody, and the local bags against everybody's clips
    row_BGK = (scale * video_BD @ other_GKD.flatten(0, 1).T).unflatten(1, (-1, num_candidates))
    row_BGK = row_BGK.masked_fill(~other_mask_GK, BLOCKED)
    column_BKG = scale * other_BKD @ video_GD.T
    column_BKG = column_BKG.masked_fill(~(other_mask_BK[:, :, None] & video_mask_G), BLOCKED)

    positive_B = row_BGK[own, own + first].logsumexp(dim=1)
    row_B = row_BGK.flatten(1).logsumexp(dim=1)
    column_B = column_BKG.flatten(1).logsumexp(dim=1)
    if symmetric:
        loss_B = row_B + column_B - 2 * positive_B
    else:
        loss_B = torch.logaddexp(row_B, column_B) - positive_B
    best_B = row_BGK.detach().flatten(1).argmax(dim=1) // num_candidates
    return loss_B, best_B == own + first, video_mask_B & other_mask_BK.any(dim=1)


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
