"""Raw modality → tokens: patches, positions, DropToken and the AGG token.

Source: paper sections 3.1 to 3.3; google-research/vatt `modeling/backbones`. Shape legend in
`vatt.batch`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vatt.config import AudioConfig, TextConfig, VideoConfig
from vatt.layers import NORM_EPS
from vatt.preprocess import normalize_video

POSITION_DROPOUT = 0.1  # hard-coded [C]; here off where the encoder's dropout is 0


def patch_video(video_BTHWC: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """`[B, T, H, W, C]` → patches `[B, L, P]`, time-major, then rows, then columns; dtype kept."""
    frames, height, width = patch_size
    pattern = "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)"
    return rearrange(video_BTHWC, pattern, pt=frames, ph=height, pw=width)


def patch_waveform(waveform_BS: Tensor, patch_size: int) -> Tensor:
    """`[B, S]` → patches `[B, L, P]`."""
    return rearrange(waveform_BS, "b (l p) -> b l p", p=patch_size)


def sample_kept_tokens(num_rows: int, num_tokens: int, drop: float, device: torch.device) -> Tensor:
    """Draws the tokens that DropToken keeps, for each row its own, in their original order.

    Args:
        num_rows: `B`.
        num_tokens: Tokens before the drop.
        drop: Share dropped, in [0, 1).
        device: Where the random numbers are drawn.

    Returns:
        int64 `[B, kept]`, ascending; kept = num_tokens − floor(drop · num_tokens), at least 1.

    Source: paper section 3.3. The official code draws one permutation for the whole batch and keeps
    it shuffled.
    """
    num_kept = max(1, num_tokens - int(drop * num_tokens))
    order = torch.rand(num_rows, num_tokens, device=device).argsort(dim=1)
    return order[:, :num_kept].sort(dim=1).values


def select_tokens(x_BLD: Tensor, kept_BL: Tensor) -> Tensor:
    """Rows `kept_BL` of every clip: `[B, L, D]`, `[B, kept]` → `[B, kept, D]`."""
    return x_BLD.gather(1, kept_BL[:, :, None].expand(-1, -1, x_BLD.shape[2]))


class Positions(nn.Module):
    """Learned tables, one per axis, whose sum is normalised by a LayerNorm.

    Args:
        grid: Entries of each table: (8, 14, 14) for the paper's video, (1200,) for its audio.
        d_model: Width.
    """

    def __init__(self, grid: tuple[int, ...], d_model: int) -> None:
        super().__init__()
        self.grid = grid
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(size, d_model)) for size in grid)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        for table in self.tables:
            nn.init.trunc_normal_(table, std=d_model**-0.5)

    def forward(self) -> Tensor:
        """Positions of the whole grid, float `[L, D]`, first axis slowest."""
        total = self.tables[0]
        for table in list(self.tables)[1:]:
            total = total.unsqueeze(-2) + table
        return self.norm(total.flatten(0, -2))


class PatchTokens(nn.Module):
    """Video or waveform patches → tokens with AGG in front.

    Patches are dropped before they are projected, so that what DropToken drops costs nothing.

    Args:
        geometry: Which modality and its sizes.
        d_model: Width.
        agnostic: Adds the Dense(GELU) that leads into the shared encoder.
        drop_token: Share of tokens dropped in training.
        dropout: The encoder's dropout rate; 0 switches the one after positions off as well.
    """

    def __init__(
        self,
        geometry: VideoConfig | AudioConfig,
        d_model: int,
        *,
        agnostic: bool,
        drop_token: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.drop_token = drop_token
        grid: tuple[int, ...]
        if isinstance(geometry, VideoConfig):
            frames, height, width = geometry.patch_size
            num_values, grid = frames * height * width * 3, geometry.grid
        else:
            num_values, grid = geometry.patch_size, (geometry.num_tokens,)
        self.patch_projection = nn.Linear(
            num_values, d_model
        )  # a strided convolution, as one product
        self.pre_projection = nn.Linear(d_model, d_model) if agnostic else None
        self.positions = Positions(grid, d_model)
        self.agg = nn.Parameter(torch.empty(d_model))
        self.position_dropout = nn.Dropout(POSITION_DROPOUT if dropout else 0.0)
        init_agg(self.agg)

    def forward(self, raw: Tensor) -> Tensor:
        """Video `[B, T, H, W, C]` or waveform `[B, S]` → tokens float `[B, 1 + L, D]`.

        Raises:
            ValueError: the input has another geometry than the model.
        """
        patches_BLP = self._patch(raw)
        positions_LD = self.positions()
        if self.training and self.drop_token > 0:
            num_rows, num_tokens, _ = patches_BLP.shape
            kept_BL = sample_kept_tokens(num_rows, num_tokens, self.drop_token, raw.device)
            patches_BLP, positions = select_tokens(patches_BLP, kept_BL), positions_LD[kept_BL]
        else:
            positions = positions_LD
        if patches_BLP.dtype == torch.uint8:
            patches_BLP = normalize_video(patches_BLP)
        if self.geometry.input_scale != 1:
            patches_BLP = patches_BLP * self.geometry.input_scale
        x_BLD = self.patch_projection(patches_BLP)
        if self.pre_projection is not None:
            x_BLD = F.gelu(self.pre_projection(x_BLD))
        return prepend_agg(self.agg, self.position_dropout(x_BLD + positions))

    def _patch(self, raw: Tensor) -> Tensor:
        geometry = self.geometry
        if isinstance(geometry, VideoConfig):
            size = geometry.image_size
            expect_shape("video", raw, (geometry.num_frames, size, size, 3))
            return patch_video(raw, geometry.patch_size)
        expect_shape("audio", raw, (geometry.num_samples,))
        return patch_waveform(raw, geometry.patch_size)


class WordTokens(nn.Module):
    """Word ids → tokens with AGG in front.

    Args:
        config: Vocabulary and lengths.
        d_model: Width.
        agnostic: Learned absolute positions, AGG in `d_model` after the projection; else AGG among
            the word vectors, before it, and no positions (T5's relative bias does that).
        dropout: The encoder's dropout rate.
    """

    def __init__(self, config: TextConfig, d_model: int, *, agnostic: bool, dropout: float) -> None:
        super().__init__()
        self.max_words = config.max_words
        self.vocab_size = config.vocab_size
        self.embedding = nn.Embedding(config.vocab_size, config.d_embedding)
        self.embedding.weight.requires_grad_(config.train_embedding)
        self.pre_projection = nn.Linear(config.d_embedding, d_model, bias=agnostic)
        self.positions = Positions((config.max_words,), d_model) if agnostic else None
        self.agg = nn.Parameter(torch.empty(d_model if agnostic else config.d_embedding))
        self.position_dropout = nn.Dropout(POSITION_DROPOUT if dropout and agnostic else 0.0)
        init_agg(self.agg)

    def forward(self, ids_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """Ids `[B, J]` → tokens float `[B, 1 + J, D]` and their mask bool `[B, 1 + J]`.

        Raises:
            ValueError: more words than the model has positions, or an id outside the vocabulary.
        """
        if ids_BJ.ndim != 2 or ids_BJ.shape[1] > self.max_words:
            raise ValueError(f"text must be [B, J ≤ {self.max_words}], got {tuple(ids_BJ.shape)}")
        if not ids_BJ.is_cuda and ids_BJ.numel() and int(ids_BJ.max()) >= self.vocab_size:
            raise ValueError(
                f"text id {int(ids_BJ.max())} is outside the vocabulary of {self.vocab_size}"
            )
        words = self.embedding(ids_BJ)
        if self.positions is None:
            tokens = F.gelu(self.pre_projection(prepend_agg(self.agg, words)))
        else:
            words = F.gelu(self.pre_projection(words)) + self.positions()[: ids_BJ.shape[1]]
            tokens = prepend_agg(self.agg, self.position_dropout(words))
        return tokens, F.pad(ids_BJ != 0, (1, 0), value=True)


def prepend_agg(agg: Tensor, x_BLD: Tensor) -> Tensor:
    """`[D]`, `[B, L, D]` → `[B, 1 + L, D]`."""
    return torch.cat([agg.to(x_BLD.dtype).expand(x_BLD.shape[0], 1, -1), x_BLD], dim=1)


def init_agg(agg: Tensor) -> None:
    """Glorot normal of a vector, whose fans are both its length [C]."""
    nn.init.normal_(agg, std=agg.shape[0] ** -0.5)


def expect_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `value` is `[B, *shape]`."""
    if tuple(value.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} must be [B, {wanted}] for this model, got {tuple(value.shape)}")
