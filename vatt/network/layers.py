"""Transformer encoders: pre-norm (video, audio, agnostic) and T5 (text).

Shape legend in `vatt.batch`. Source: google-research/vatt, `layers.py` and `t5.py` of its model
code.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vatt.config.model import EncoderConfig
from vatt.errors import UserError

NORM_EPS = 1e-6  # every LayerNorm and RMS norm of the official encoders
RELATIVE_BIAS_RANGE = 0.05  # Keras' default for embeddings, which [C] leaves as it is
# Standard deviation of a unit normal cut at two of them; Keras' Glorot normal divides by it.
TRUNCATED_STD = 0.87962566103423978
AttentionLayer = int | Literal["rollout"]  # whose attention is asked for; -1: the last block


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
        """Glorot bounds of the three projections that the fused one stands for."""
        for part in self.query_key_value.weight.chunk(3):
            nn.init.xavier_uniform_(part.data)

    def forward(self, x_BLD: Tensor, score_bias: Tensor | None) -> Tensor:
        """`[B, L, D]` → `[B, L, D]`; `score_bias`, added to the scores, is `[B, N, L, L]`-like."""
        query, key, value = self._project(x_BLD)
        y_BNLE = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=score_bias,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.scale,
        )
        return self.output(y_BNLE.transpose(1, 2).flatten(2))

    def forward_with_weights(
        self, x_BLD: Tensor, score_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, without dropout, and the attention weights `[B, N, L, L]`."""
        query, key, value = self._project(x_BLD)
        scores_BNLL = query @ key.transpose(-1, -2) * self.scale
        if score_bias is not None:
            scores_BNLL = scores_BNLL + score_bias
        weights_BNLL = scores_BNLL.softmax(dim=-1)
        y_BNLE = weights_BNLL @ value
        return self.output(y_BNLE.transpose(1, 2).flatten(2)), weights_BNLL

    def _project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BL3NE = self.query_key_value(x_BLD).unflatten(-1, (3, self.num_heads, -1))
        x_3BNLE = x_BL3NE.permute(2, 0, 3, 1, 4)
        if x_3BNLE.device.type == "cpu":  # whose kernel reads scattered rows slowly
            x_3BNLE = x_3BNLE.contiguous()
        query, key, value = x_3BNLE
        return query, key, value


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

    def forward(self, x_BLD: Tensor, score_bias: Tensor | None) -> Tensor:
        """`[B, L, D]` → `[B, L, D]`."""
        x_BLD = x_BLD + self.dropout(self.attention(self.attention_norm(x_BLD), score_bias))
        return x_BLD + self.dropout(self.mlp(self.mlp_norm(x_BLD)))

    def forward_with_weights(
        self, x_BLD: Tensor, score_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and the attention weights `[B, N, L, L]`."""
        y_BLD, weights_BNLL = self.attention.forward_with_weights(
            self.attention_norm(x_BLD), score_bias
        )
        x_BLD = x_BLD + self.dropout(y_BLD)
        return x_BLD + self.dropout(self.mlp(self.mlp_norm(x_BLD))), weights_BNLL


class Encoder(nn.Module):
    """A stack of blocks with a final norm and dropout.

    Args:
        config: Sizes.
        t5: T5's variant of the blocks, with a relative attention bias that all layers share.
        relative_buckets: Buckets of that bias.
        relative_max_distance: Distance from which all words share the last bucket.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        t5: bool = False,
        relative_buckets: int = 32,
        relative_max_distance: int = 64,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(config, t5=t5) for _ in range(config.num_layers))
        norm = nn.RMSNorm if t5 else nn.LayerNorm
        self.final_norm = norm(config.d_model, eps=NORM_EPS)
        self.dropout = nn.Dropout(config.dropout)
        self.checkpoint_activations = False  # set by `training.compute`
        self.relative_max_distance = relative_max_distance
        self.relative_bias = nn.Embedding(relative_buckets, config.num_heads) if t5 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small relative biases."""
        if self.relative_bias is not None:
            limit = RELATIVE_BIAS_RANGE
            nn.init.uniform_(self.relative_bias.weight, -limit, limit)

    def forward(self, x_BLD: Tensor, token_mask_BL: Tensor | None = None) -> Tensor:
        """Encodes tokens.

        Args:
            x_BLD: float `[B, L, D]`.
            token_mask_BL: bool `[B, L]`, False for padding, which nobody attends to. None: no
                padding.

        Returns:
            float `[B, L, D]`.
        """
        score_bias = self._score_bias(x_BLD, token_mask_BL)
        recompute = self.checkpoint_activations and torch.is_grad_enabled()
        for block in self.blocks:
            if recompute:
                x_BLD = checkpoint(block, x_BLD, score_bias, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, score_bias)
        return self.dropout(self.final_norm(x_BLD))

    def forward_with_attention(
        self, x_BLD: Tensor, token_mask_BL: Tensor | None, layer: AttentionLayer
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, and where tokens look.

        Args:
            x_BLD: float `[B, L, D]`.
            token_mask_BL: bool `[B, L]` or None.
            layer: Index of a block, negative from the end; or `rollout`.

        Returns:
            Encoded tokens float `[B, L, D]`, and attention whose rows sum to 1: of a block
            `[B, N, L, L]`, of rollout `[B, 1, L, L]`: the product over all blocks of the mean
            over heads, half of it replaced by the identity for the residual branch.

        Raises:
            UserError: there is no such block.

        Source: Abnar & Zuidema, "Quantifying attention flow in transformers", ACL 2020.
        """
        wanted = self.block_index(layer)
        score_bias = self._score_bias(x_BLD, token_mask_BL)
        attention: Tensor | None = None
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if wanted is not None and number != wanted:
                x_BLD = block(x_BLD, score_bias)
                continue
            x_BLD, weights_BNLL = block.forward_with_weights(x_BLD, score_bias)
            attention = weights_BNLL if wanted is not None else _roll_out(attention, weights_BNLL)
        assert attention is not None
        return self.dropout(self.final_norm(x_BLD)), attention

    def block_index(self, layer: AttentionLayer) -> int | None:
        """Index from the front; None for rollout, which needs all blocks."""
        if layer == "rollout":
            return None
        count = len(self.blocks)
        if isinstance(layer, bool) or not isinstance(layer, int) or not -count <= layer < count:
            raise UserError(
                f"attention_layer must be in [-{count}, {count}) or 'rollout', got {layer!r}"
            )
        return layer % count

    def _score_bias(self, x_BLD: Tensor, token_mask_BL: Tensor | None) -> Tensor | None:
        """What is added to the attention scores; None where nothing is: the fast kernels."""
        bias = None
        if token_mask_BL is not None:
            blocked = torch.zeros_like(token_mask_BL, dtype=x_BLD.dtype)
            bias = blocked.masked_fill(~token_mask_BL, -torch.inf)[:, None, None, :]
            if torch.compiler.is_exporting():  # onnxruntime's Attention wants a row a query
                bias = bias.expand(-1, -1, x_BLD.shape[1], -1)
        if self.relative_bias is not None:
            buckets_LL = relative_position_buckets(
                x_BLD.shape[1],
                self.relative_bias.num_embeddings,
                self.relative_max_distance,
                x_BLD.device,
            )
            relative = self.relative_bias(buckets_LL).permute(2, 0, 1)[None].to(x_BLD.dtype)
            bias = relative if bias is None else bias + relative
        return bias


def _roll_out(before: Tensor | None, weights_BNLL: Tensor) -> Tensor:
    """One more block of attention rollout: `[B, 1, L, L]`."""
    mean = weights_BNLL.mean(dim=1, keepdim=True)
    identity = torch.eye(mean.shape[-1], dtype=mean.dtype, device=mean.device)
    step = (mean + identity) / 2
    return step if before is None else step @ before


def relative_position_buckets(
    length: int, num_buckets: int, max_distance: int, device: torch.device
) -> Tensor:
    """Bidirectional T5 buckets: near words exact, far ones logarithmic.

    The lower half of the buckets is for words before, the upper half for words after.

    Returns:
        int64 `[length, length]`, bucket of key position minus query position.

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
    """Draws a module's weights as Keras draws those of the official one; for `nn.Module.apply`.

    A Dense is Glorot uniform with bias zero; what a module does otherwise is its own
    `reset_parameters`, after those of its parts.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif callable(reset := getattr(module, "reset_parameters", None)):
        reset()


def truncated_normal(tensor: Tensor, std: float) -> None:
    """Fills with Keras' `TruncatedNormal`: what lies beyond two of `std` is drawn again."""
    nn.init.trunc_normal_(tensor, std=std, a=-2 * std, b=2 * std)
