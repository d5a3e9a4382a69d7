"""Transformer encoders: pre-norm (video, audio, agnostic) and T5 (text).

Shape legend in `vatt.batch`. Source: google-research/vatt, `layers.py` and `t5.py` of its model
code.
"""

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from vatt.config.geometry import TextConfig
from vatt.config.model import EncoderConfig

NORM_EPS = 1e-6  # every LayerNorm and RMS norm of the official encoders
RELATIVE_BIAS_RANGE = 0.05  # Keras' default for embeddings, which [C] leaves as it is
# Standard deviation of a unit normal cut at two of them; Keras' Glorot normal divides by it.
TRUNCATED_STD = 0.87962566103423978
# Results that `selective` checkpointing keeps: those of dense layers. Attention runs again: if it
# did not, dropout after it would draw other numbers than the first time.
KEPT_RESULTS = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
Checkpointing = bool | Literal["selective"]
AttentionLayer = int | Literal["rollout"]  # block whose attention is wanted; -1: the last one


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection.

    Args:
        config: Sizes.
        bias: Whether the projections have biases.
        scaled: Whether scores are divided by sqrt(d_kv); T5 does not.
    """

    def __init__(self, config: EncoderConfig, *, bias: bool, scaled: bool) -> None:
        super().__init__()
        width = config.num_heads * config.d_kv
        self.num_heads = config.num_heads
        self.scale = config.d_kv**-0.5 if scaled else 1.0
        self.dropout = config.dropout
        self.query_key_value = nn.Linear(config.d_model, 3 * width, bias=bias)
        self.output = nn.Linear(width, config.d_model, bias=bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws weights with the Glorot bounds of the three separate projections."""
        for part in self.query_key_value.weight.chunk(3):
            nn.init.xavier_uniform_(part.data)

    def forward(
        self, x_BLD: Tensor, score_bias: Tensor | None, seen: list[Tensor] | None = None
    ) -> Tensor:
        """Mixes the values of all tokens.

        Args:
            x_BLD: float `[B, L, D]`.
            score_bias: Bias added to the scores, float, broadcast to `[B, N, L, L]`. None: no bias.
            seen: List that receives the attention weights, float `[B, N, L, L]`; this is slow, and
                disables dropout of attention. None: fast kernels are used.

        Returns:
            float `[B, L, D]`.
        """
        x_BL3NE = self.query_key_value(x_BLD).unflatten(-1, (3, self.num_heads, -1))
        x_3BNLE = x_BL3NE.permute(2, 0, 3, 1, 4)
        if x_3BNLE.device.type == "cpu":  # whose kernel reads scattered rows slowly
            x_3BNLE = x_3BNLE.contiguous()
        query, key, value = x_3BNLE
        if seen is None:
            y_BNLE = F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=score_bias,
                dropout_p=self.dropout if self.training else 0.0,
                scale=self.scale,
            )
        else:
            scores_BNLL = query @ key.transpose(-1, -2) * self.scale
            if score_bias is not None:
                scores_BNLL = scores_BNLL + score_bias
            seen.append(scores_BNLL.softmax(dim=-1))
            y_BNLE = seen[-1] @ value
        return self.output(y_BNLE.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Dense → exact GELU → dropout → Dense."""

    def __init__(self, config: EncoderConfig, *, bias: bool) -> None:
        super().__init__()
        self.inner = nn.Linear(config.d_model, config.d_ff, bias=bias)
        self.outer = nn.Linear(config.d_ff, config.d_model, bias=bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` → `[..., D]`."""
        return self.outer(self.dropout(F.gelu(self.inner(x))))


class Block(nn.Module):
    """Pre-norm attention and MLP, each on a residual branch with dropout.

    Args:
        config: Sizes.
        t5: T5's variant: RMS norm before attention, no biases, scores not scaled.
    """

    def __init__(self, config: EncoderConfig, *, t5: bool = False) -> None:
        super().__init__()
        norm = nn.RMSNorm if t5 else nn.LayerNorm
        bias = config.bias and not t5
        self.attention_norm = norm(config.d_model, eps=NORM_EPS)
        self.attention = Attention(config, bias=bias, scaled=not t5)
        self.mlp_norm = nn.LayerNorm(config.d_model, eps=NORM_EPS)  # also in the official T5
        self.mlp = MLP(config, bias=bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x_BLD: Tensor, score_bias: Tensor | None, seen: list[Tensor] | None = None
    ) -> Tensor:
        """`[B, L, D]` → `[B, L, D]`; for the arguments see `Attention.forward`."""
        attended_BLD = self.attention(self.attention_norm(x_BLD), score_bias, seen)
        x_BLD = x_BLD + self.dropout(attended_BLD)
        return x_BLD + self.dropout(self.mlp(self.mlp_norm(x_BLD)))


class RelativeBias(nn.Embedding):
    """T5's bias of attention scores, which depends on the distance of two words.

    Args:
        num_buckets: Number of buckets of distances.
        num_heads: Attention heads; each has its own biases.
        max_distance: Distance from which all words share the last bucket.
    """

    def __init__(self, num_buckets: int, num_heads: int, max_distance: int) -> None:
        super().__init__(num_buckets, num_heads)
        self.max_distance = max_distance

    def reset_parameters(self) -> None:
        """Draws small uniform biases."""
        super().reset_parameters()  # drawn in vain, so that a seed's other weights stay the same
        nn.init.uniform_(self.weight, -RELATIVE_BIAS_RANGE, RELATIVE_BIAS_RANGE)

    def forward(self, length: int) -> Tensor:  # type: ignore[override]
        """Bias of the scores of a caption, float `[1, N, L, L]`."""
        buckets_LL = relative_position_buckets(
            length, self.num_embeddings, self.max_distance, self.weight.device
        )
        return super().forward(buckets_LL).permute(2, 0, 1)[None]


class Encoder(nn.Module):
    """A stack of blocks with a final norm and dropout.

    Args:
        config: Sizes.
        t5: Settings of the text for T5's variant of the blocks, which share one relative bias.
            None: the plain variant, without relative bias.
    """

    def __init__(self, config: EncoderConfig, *, t5: TextConfig | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(config, t5=t5 is not None) for _ in range(config.num_layers)
        )
        norm = nn.LayerNorm if t5 is None else nn.RMSNorm
        self.final_norm = norm(config.d_model, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpoint_activations: Checkpointing = False  # set by `training.compute`
        self.relative_bias: RelativeBias | None = None
        if t5 is not None:
            self.relative_bias = RelativeBias(
                t5.relative_buckets, config.num_heads, t5.relative_max_distance
            )

    def forward(
        self,
        x_BLD: Tensor,
        token_mask_BL: Tensor | None = None,
        seen: list[Tensor] | None = None,
        layer: AttentionLayer = "rollout",
    ) -> Tensor:
        """Encodes tokens.

        Args:
            x_BLD: float `[B, L, D]`.
            token_mask_BL: bool `[B, L]`, False for padding; no token attends to padding. None: no
                padding.
            seen: List that receives the attention weights of block `layer`, float `[B, N, L, L]`;
                for `rollout`, the means over heads `[B, 1, L, L]` of all blocks. None: weights are
                not stored.
            layer: Index of a block, negative from the end; or `rollout`.

        Returns:
            float `[B, L, D]`.
        """
        kind = x_BLD.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            x_BLD = x_BLD.float()  # branches are added in float32; words come in 16 bits
        score_bias = self._score_bias(x_BLD, token_mask_BL)
        recompute = self.checkpoint_activations and torch.is_grad_enabled() and seen is None
        for number, block in enumerate(self.blocks):
            if recompute and self.checkpoint_activations == "selective":
                x_BLD = _run_selectively(block, x_BLD, score_bias)
            elif recompute:
                x_BLD = checkpoint(block, x_BLD, score_bias, use_reentrant=False)
            elif layer == "rollout" and seen is not None:
                x_BLD = block(x_BLD, score_bias, seen)
                seen[-1] = seen[-1].mean(dim=1, keepdim=True)
            else:
                wanted = layer != "rollout" and number == layer % len(self.blocks)
                x_BLD = block(x_BLD, score_bias, seen if wanted else None)
        return self.dropout(self.final_norm(x_BLD))

    def _score_bias(self, x_BLD: Tensor, token_mask_BL: Tensor | None) -> Tensor | None:
        """Bias of the attention scores, `[B or 1, N or 1, L, L]`; None allows the fast kernels."""
        bias = None
        length = x_BLD.shape[1]
        if token_mask_BL is not None:
            blocked = torch.zeros_like(token_mask_BL, dtype=x_BLD.dtype)
            bias = blocked.masked_fill(~token_mask_BL, -torch.inf)[:, None, None, :]
            bias = bias.expand(-1, -1, length, -1)  # onnxruntime wants a row for each query
        if self.relative_bias is not None:
            relative = self.relative_bias(length).to(x_BLD.dtype)
            bias = relative if bias is None else bias + relative
        return bias


def _run_selectively(block: nn.Module, x_BLD: Tensor, score_bias: Tensor | None) -> Tensor:
    """A block of which only `KEPT_RESULTS` are kept.

    Autocast keeps no weights in 16 bits meanwhile: the second run, without those of other calls,
    would have other operators than the first.
    """
    kind, selects = x_BLD.device.type, partial(create_selective_checkpoint_contexts, KEPT_RESULTS)
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype, enabled, cache_enabled=False):
        return checkpoint(block, x_BLD, score_bias, use_reentrant=False, context_fn=selects)


def roll_out(means: Sequence[Tensor]) -> Tensor:
    """Attention rollout: product of the attention matrices of all blocks.

    Half of each block's attention is replaced by the identity, for the residual branch.

    Args:
        means: Mean over heads of each block's attention, float `[B, 1, L, L]`, from the first block
            on.

    Returns:
        float `[B, 1, L, L]`, rows sum to 1.

    Source: Abnar & Zuidema, "Quantifying attention flow in transformers", ACL 2020.
    """
    identity = torch.eye(means[0].shape[-1], dtype=means[0].dtype, device=means[0].device)
    steps = [(mean + identity) / 2 for mean in means]
    return reduce(lambda before, step: step @ before, steps)


def relative_position_buckets(
    length: int, num_buckets: int, max_distance: int, device: torch.device
) -> Tensor:
    """Bidirectional buckets of T5: exact for near words, logarithmic for far ones.

    The lower half of the buckets is for words before, the upper half for words after.

    Returns:
        int64 `[length, length]`: bucket of (key position − query position).

    Source: Raffel et al. 2020, section 2.1.
    """
    position = torch.arange(length, device=device)
    offset_LL = position[None, :] - position[:, None]
    half = num_buckets // 2
    num_exact = half // 2
    distance = offset_LL.abs()
    far = distance.clamp(min=1).float().div(num_exact).log()
    far = far / math.log(max_distance / num_exact) * (half - num_exact)
    far = (num_exact + far.long()).clamp(max=half - 1)
    return torch.where(distance < num_exact, distance, far) + half * (offset_LL > 0)


def init_weights(module: nn.Module) -> None:
    """Draws the weights of a module as Keras does in the official code; for `nn.Module.apply`.

    A Dense gets Glorot uniform weights and bias zero. A module that deviates has its own
    `reset_parameters`, which runs after those of its parts.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def truncated_normal(tensor: Tensor, std: float) -> None:
    """Fills a tensor as Keras' `TruncatedNormal`: values beyond two `std` are drawn again."""
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
