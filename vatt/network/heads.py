"""Heads on the pooled features: common spaces of the modalities, or a classifier.

Source: paper section 3.4, google-research/vatt `modeling/heads`. Shape legend in `vatt.batch`.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vatt.config.model import ClassifierConfig, HeadConfig
from vatt.network.layers import TRUNCATED_STD, truncated_normal
from vatt.system.ranks import sum_over_ranks

BATCH_NORM_EPS = 1e-5
STANDARDIZE_EPS = 1e-12  # variance of features of size 1 that are equal but for rounding: 1e-14
MAX_LAG = 0.5  # of a running mean, in standard deviations
BATCH_NORM_MOMENTUM = 0.1  # torch's convention; 0.9 in TensorFlow's


class BatchNorm(nn.Module):
    """BatchNorm over the rows of all ranks, with a biased running variance [C].

    torch's SyncBatchNorm needs CUDA and stores the unbiased variance.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def reset_parameters(self) -> None:
        """Resets to the identity, with statistics of mean 0 and variance 1."""
        for ones, zeros in ((self.weight, self.bias), (self.running_variance, self.running_mean)):
            nn.init.ones_(ones)
            nn.init.zeros_(zeros)

    def forward(self, x: Tensor) -> Tensor:
        """Float `[rows, D]` → float32 `[rows, D]`; training uses the rows of all ranks."""
        x = at_least_float32(x)  # statistics of bfloat16 rows would lose digits
        if self.training:
            mean, variance, num_rows = self._batch_statistics(x)
            self._update(mean.detach(), variance.detach(), num_rows > 0)
        else:
            mean, variance = self.running_mean, self.running_variance
        return (x - mean) * (variance + BATCH_NORM_EPS).rsqrt() * self.weight + self.bias

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, biased variance and number of rows: one exchange between the ranks.

        The variance is `E[x²] − E[x]²`, as in [C].
        """
        num_rows = x.new_full((1,), float(x.shape[0]))
        sums = sum_over_ranks(torch.cat([x.sum(dim=0), x.square().sum(dim=0), num_rows]))
        mean, mean_square = (sums[:-1] / sums[-1].clamp(min=1)).chunk(2)
        return mean, (mean_square - mean.square()).clamp(min=0), sums[-1].detach()

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, seen: Tensor) -> None:
        """Updates the running statistics, unless no rank had a row."""
        for running, new in ((self.running_mean, mean), (self.running_variance, variance)):
            new = torch.where(seen, new.to(running.dtype), running)
            running.lerp_(new, BATCH_NORM_MOMENTUM)


class Standardize(nn.Module):
    """BatchNorm without weights for features whose spread is small beside their size.

    The variance is taken around the mean, with a tiny epsilon, because `E[x²] − E[x]²` of nearly
    parallel features is rounding. Until ten batches are seen the running statistics are plain
    means, so that a run of a few steps does not keep the initial ones.

    Source: the linear probes of He et al., "Masked Autoencoders", 2022, appendix A.
    """

    running_mean: Tensor
    running_variance: Tensor
    num_batches: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))
        self.register_buffer("num_batches", torch.zeros(()))  # a float: averages of weights take it

    def reset_parameters(self) -> None:
        """Resets to the identity."""
        for zeros in (self.running_mean, self.num_batches):
            nn.init.zeros_(zeros)
        nn.init.ones_(self.running_variance)

    def forward(self, x: Tensor) -> Tensor:
        """Float `[rows, D]` → float32 `[rows, D]`; training uses the rows of all ranks."""
        x = at_least_float32(x)
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            mean, variance, num_rows = self._statistics(x)
            self._update(mean.detach(), variance.detach(), num_rows.detach() > 1)
        return (x - mean) * (variance + STANDARDIZE_EPS).rsqrt()

    @torch.no_grad()
    def catch_up(self, x: Tensor) -> None:
        """Replaces running statistics that lag behind the weights; a collective.

        At high learning rates a step can move the mean of nearly parallel features by more than
        they differ, and the running mean is then that of no model.

        Args:
            x: float `[rows, D]`, features of a batch by the present weights.
        """
        mean, variance, num_rows = self._statistics(at_least_float32(x))
        lag = ((mean - self.running_mean).square() / (variance + STANDARDIZE_EPS)).mean()
        replaces = (lag > MAX_LAG**2) & (num_rows > 1)
        for running, new in ((self.running_mean, mean), (self.running_variance, variance)):
            running.copy_(torch.where(replaces, new.to(running.dtype), running))

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, biased variance and number of rows, over all ranks."""
        num_rows = sum_over_ranks(x.new_full((1,), float(x.shape[0]))).clamp(min=1)
        mean = sum_over_ranks(x.sum(dim=0)) / num_rows
        return mean, sum_over_ranks((x - mean).square().sum(dim=0)) / num_rows, num_rows

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, seen: Tensor) -> None:
        """Updates the running statistics, unless there was no second row."""
        self.num_batches.add_(seen.to(self.num_batches.dtype)[0])
        share = self.num_batches.clamp(min=1).reciprocal().clamp(min=BATCH_NORM_MOMENTUM)
        for running, new in ((self.running_mean, mean), (self.running_variance, variance)):
            new = torch.where(seen, new.to(running.dtype), running)
            running.lerp_(new, share.to(running.dtype))


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32; float32 and float64 do not change."""
    return x if x.dtype == torch.float64 else x.float()


class Dense(nn.Module):
    """Linear layer with a bias or, if `batch_norm` is set, with BatchNorm instead."""

    def __init__(self, d_in: int, d_out: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(d_in, d_out, bias=not batch_norm)
        self.batch_norm = BatchNorm(d_out) if batch_norm else None

    def forward(self, x: Tensor) -> Tensor:
        """Float `[rows, d_in]` → float `[rows, d_out]`."""
        x = self.linear(x.to(self.linear.weight.dtype))  # BatchNorm gives float32 to a half model
        return x if self.batch_norm is None else self.batch_norm(x)


class FACHead(nn.Module):
    """Projects features into the video-audio (va) and video-text (vt) spaces; va leads to vt.

    Args:
        config: Widths, and the layers that have BatchNorm.
        d_features: Width of the features of each modality of the model.
    """

    def __init__(self, config: HeadConfig, d_features: Mapping[str, int]) -> None:
        super().__init__()
        everywhere = config.batch_norm == "all"
        self.video_hidden = Dense(d_features["video"], config.d_va, batch_norm=True)
        self.video_va = Dense(config.d_va, config.d_va, batch_norm=True)
        d_audio, d_text = d_features.get("audio"), d_features.get("text")
        self.audio_hidden = self.audio_va = self.va_vt = self.text_vt = None
        if d_audio is not None and config.audio_layers == 2:
            self.audio_hidden = Dense(d_audio, config.d_va, batch_norm=everywhere)
            d_audio = config.d_va
        if d_audio is not None:
            self.audio_va = Dense(d_audio, config.d_va, batch_norm=everywhere)
        if d_text is not None:
            self.va_vt = Dense(config.d_va, config.d_vt, batch_norm=True)
            self.text_vt = Dense(d_text, config.d_vt, batch_norm=everywhere)

    def forward(self, modality: str, features: Tensor) -> dict[str, Tensor]:
        """Embeddings of one modality in each of its spaces.

        Args:
            modality: `video`, `audio` or `text`.
            features: float `[rows, D]`.

        Returns:
            `va` `[rows, d_va]` for video and audio, `vt` `[rows, d_vt]` for video and text.
        """
        if modality == "video":
            va = self.video_va(F.relu(self.video_hidden(features)))
            return {"va": va} if self.va_vt is None else {"va": va, "vt": self.va_to_vt(va)}
        if modality == "audio":
            assert self.audio_va is not None
            if self.audio_hidden is not None:
                features = F.relu(self.audio_hidden(features))
            return {"va": self.audio_va(features)}
        assert self.text_vt is not None
        return {"vt": self.text_vt(features)}

    def va_to_vt(self, va: Tensor) -> Tensor:
        """Last step of the video head, ReLU → Dense → BatchNorm: `[rows, d_va]` → `[rows, d_vt]`.

        Only for models with text.
        """
        assert self.va_vt is not None
        return self.va_vt(F.relu(va))


class JointHead(nn.Module):
    """Projects the features of each modality into one joint space: ReLU → Dense → BatchNorm.

    Args:
        config: Width of the space.
        d_features: Width of the features of each modality of the model.
    """

    def __init__(self, config: HeadConfig, d_features: Mapping[str, int]) -> None:
        super().__init__()
        self.joint = nn.ModuleDict(
            {name: Dense(d, config.d_joint, batch_norm=True) for name, d in d_features.items()}
        )

    def forward(self, modality: str, features: Tensor) -> dict[str, Tensor]:
        """Embeddings of one modality in the joint space.

        Args:
            modality: `video`, `audio` or `text`.
            features: float `[rows, D]`.

        Returns:
            `joint`, float `[rows, d_joint]`, not normalised.
        """
        return {"joint": self.joint[modality](F.relu(features))}


def all_spaces(head: FACHead | JointHead, modality: str, features: Tensor) -> dict[str, Tensor]:
    """Embeddings of one modality in all spaces that it can be projected into.

    Audio enters the video-text space through the last step of the video head.

    Args:
        head: Head of the model.
        modality: `video`, `audio` or `text`.
        features: float `[rows, D]`.

    Returns:
        float32 `[rows, d_space]` by space, not normalised.
    """
    embeddings = head(modality, features)
    if modality == "audio" and isinstance(head, FACHead) and head.va_vt is not None:
        embeddings["vt"] = head.va_to_vt(embeddings["va"])
    return {space: at_least_float32(value) for space, value in embeddings.items()}


class Classifier(nn.Module):
    """Dropout and Dense on pooled features, which may be standardised first.

    Source: google-research/vatt `modeling/backbones/video/factory.py` and `audio/factory.py`.
    """

    def __init__(self, config: ClassifierConfig, d_features: int) -> None:
        super().__init__()
        self.config = config
        self.standardize = Standardize(d_features) if config.standardize else None
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(d_features, config.num_classes)
        self.reset_parameters()

    def forward(self, features: Tensor) -> Tensor:
        """Float `[B, D]` → logits float32 `[B, num_classes]`."""
        if self.standardize is not None:  # gives float32 to a half model
            features = self.standardize(features).to(self.linear.weight.dtype)
        return at_least_float32(self.linear(self.dropout(features)))

    def reset_parameters(self) -> None:
        """Draws Glorot normal weights; for several labels, Glorot uniform and a low bias [C]."""
        rows, columns = self.linear.weight.shape
        if self.config.multi_label:
            nn.init.xavier_uniform_(self.linear.weight)
            nn.init.constant_(self.linear.bias, -math.log(self.config.num_classes - 1))
        else:
            truncated_normal(
                self.linear.weight, std=math.sqrt(2 / (rows + columns)) / TRUNCATED_STD
            )
            nn.init.zeros_(self.linear.bias)
