"""The common spaces: fine (video-audio) and coarse (video-text), FAC.

Source: paper section 3.4, google-research/vatt `modeling/heads`. Shape legend in `vatt.batch`.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.config import HeadConfig

BATCH_NORM_EPS = 1e-5
BATCH_NORM_MOMENTUM = 0.1  # torch's convention; 0.9 in TensorFlow's


class BatchNorm(nn.Module):
    """BatchNorm over the rows of all ranks, whose running variance is the biased one [C].

    torch's SyncBatchNorm needs CUDA and keeps the unbiased variance.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Float `[rows, D]` → float32 `[rows, D]`; training takes all ranks' rows together."""
        x = x.float()  # statistics of bfloat16 rows would lose digits
        if self.training:
            mean, variance = self._batch_statistics(x)
            self._update(mean.detach(), variance.detach())
        else:
            mean, variance = self.running_mean, self.running_variance
        return (x - mean) * (variance + BATCH_NORM_EPS).rsqrt() * self.weight + self.bias

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        num_rows = sum_over_ranks(x.new_tensor(float(x.shape[0]))).clamp(min=1)
        mean = sum_over_ranks(x.sum(dim=0)) / num_rows
        return mean, sum_over_ranks((x - mean).square().sum(dim=0)) / num_rows

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.lerp_(mean, BATCH_NORM_MOMENTUM)
        self.running_variance.lerp_(variance, BATCH_NORM_MOMENTUM)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, with gradient; the tensor itself with one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)


class Dense(nn.Module):
    """A linear layer, with BatchNorm in place of the bias where asked."""

    def __init__(self, d_in: int, d_out: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(d_in, d_out, bias=not batch_norm)
        self.batch_norm = BatchNorm(d_out) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Float `[rows, d_in]` → float `[rows, d_out]`."""
        x = self.linear(x)
        return x if self.batch_norm is None else self.batch_norm(x)


class FACHead(nn.Module):
    """Features → the video-audio (va) and video-text (vt) spaces; vt hangs below va.

    Args:
        config: Widths and where BatchNorm stands.
        d_video: Width of video features.
        d_audio: Width of audio features.
        d_text: Width of text features.
    """

    def __init__(self, config: HeadConfig, d_video: int, d_audio: int, d_text: int) -> None:
        super().__init__()
        everywhere = config.batch_norm == "all"
        self.video_hidden = Dense(d_video, config.d_va, batch_norm=True)
        self.video_va = Dense(config.d_va, config.d_va, batch_norm=True)
        self.va_vt = Dense(config.d_va, config.d_vt, batch_norm=True)
        self.audio_hidden = None
        if config.audio_layers == 2:
            self.audio_hidden = Dense(d_audio, config.d_va, batch_norm=everywhere)
            d_audio = config.d_va
        self.audio_va = Dense(d_audio, config.d_va, batch_norm=everywhere)
        self.text_vt = Dense(d_text, config.d_vt, batch_norm=everywhere)

    def video(self, features: Tensor) -> dict[str, Tensor]:
        """Float `[rows, D]` → `va` `[rows, d_va]` and `vt` `[rows, d_vt]`."""
        va = self.video_va(F.relu(self.video_hidden(features)))
        return {"va": va, "vt": self.va_to_vt(va)}

    def audio(self, features: Tensor) -> dict[str, Tensor]:
        """Float `[rows, D]` → `va` `[rows, d_va]`."""
        if self.audio_hidden is not None:
            features = F.relu(self.audio_hidden(features))
        return {"va": self.audio_va(features)}

    def text(self, features: Tensor) -> dict[str, Tensor]:
        """Float `[rows, D]` → `vt` `[rows, d_vt]`."""
        return {"vt": self.text_vt(features)}

    def va_to_vt(self, va: Tensor) -> Tensor:
        """The video head's last step, ReLU → Dense → BatchNorm: `[rows, d_va]` → `[rows, d_vt]`."""
        return self.va_vt(F.relu(va))
