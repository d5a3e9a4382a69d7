"""Raw modality → tokens: patches, positions, DropToken and the AGG token.

Source: paper sections 3.1 to 3.3; google-research/vatt `modeling/backbones`. Shape legend in
`vatt.batch`.
"""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vatt.config.geometry import AudioConfig, TextConfig, VideoConfig
from vatt.network.input_checks import expect_spectrogram, expect_text, expect_video, expect_waveform
from vatt.network.layers import NORM_EPS, TRUNCATED_STD, truncated_normal
from vatt.network.log_mel import log_mel_of

POSITION_DROPOUT = 0.1  # hard-coded [C]; here off where the encoder's dropout is 0


def patch_video(video_BTHWC: Tensor, patch_size: tuple[int, int, int]) -> Tensor:
    """`[B, T, H, W, C]` → patches `[B, L, P]`, time-major, then rows, then columns; dtype kept."""
    frames, height, width = patch_size
    pattern = "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)"
    return rearrange(video_BTHWC, pattern, pt=frames, ph=height, pw=width)


def patch_spectrogram(mel_BMF: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """`[B, M, F]` → patches `[B, L, P]`, time-major; what fills no patch is left out [C]."""
    time, mel = patch_size
    num_time, num_mel = mel_BMF.shape[1] // time, mel_BMF.shape[2] // mel
    whole = mel_BMF[:, : num_time * time, : num_mel * mel]
    return rearrange(whole, "b (t pt) (f pf) -> b (t f) (pt pf)", pt=time, pf=mel)


def draw_kept_tokens(num_rows: int, num_tokens: int, drop: float, device: torch.device) -> Tensor:
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


@lru_cache(maxsize=64)
def interpolation_matrix(num_from: int, num_to: int) -> Tensor:
    """Weights that carry a table of positions to another length: float32 `[num_to, num_from]`.

    The cubic polyharmonic spline, a sum of |distance|³ and a straight line, through entry i of the
    table at i / num_from, read at j / num_to.

    Source: `ExpandableEmbedding` of google-research/vatt `modeling/common/transformers.py`.
    """
    with torch.inference_mode(False), torch.device("cpu"):  # kept for callers in any mode
        return _interpolation_matrix(num_from, num_to)


def _interpolation_matrix(num_from: int, num_to: int) -> Tensor:
    if num_from == 1:
        return torch.ones(num_to, 1)
    knots = torch.arange(num_from, dtype=torch.float64) / num_from
    queries = torch.arange(num_to, dtype=torch.float64) / num_to
    line = torch.stack([knots, torch.ones_like(knots)], dim=1)
    system = torch.zeros(num_from + 2, num_from + 2, dtype=torch.float64)
    system[:num_from, :num_from] = (knots[:, None] - knots).abs() ** 3
    system[:num_from, num_from:], system[num_from:, :num_from] = line, line.T
    basis = (queries[:, None] - knots).abs() ** 3
    at_queries = torch.cat([basis, queries[:, None], torch.ones(num_to, 1)], dim=1)
    return torch.linalg.solve(system, at_queries, left=False)[:, :num_from].float()


class Positions(nn.Module):
    """Learned tables, one per axis, whose sum is normalised by a LayerNorm.

    Args:
        grid: Entries of each table: (8, 14, 14) for the paper's video, (1200,) for its waveform.
        d_model: Width.
        transposed: Reads a grid of two axes as if its second were the slower
            (`SpectrogramConfig.transposed_positions`).
    """

    def __init__(self, grid: tuple[int, ...], d_model: int, *, transposed: bool = False) -> None:
        super().__init__()
        self.grid = grid
        self.transposed = transposed
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(size, d_model)) for size in grid)
        self.norm = nn.LayerNorm(d_model, eps=NORM_EPS)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normal [C]; the norm makes its scale matter to Adam only."""
        for table in self.tables:
            truncated_normal(table, std=table.shape[1] ** -0.5)

    def forward(self, grid: tuple[int, ...] | None = None) -> Tensor:
        """Positions of a whole grid, float `[L, D]`, first axis slowest; None: of the tables' own.

        Each axis that has another length than its table is interpolated.
        """
        tables = [
            self._resize(table, size)
            for table, size in zip(self.tables, grid or self.grid, strict=True)
        ]
        if self.transposed:
            tables = tables[::-1]
        total = tables[0]
        for table in tables[1:]:
            total = total.unsqueeze(-2) + table
        return self.norm(total.flatten(0, -2))

    @staticmethod
    def _resize(table: Tensor, size: int) -> Tensor:
        if size == table.shape[0]:
            return table
        with torch.autocast(table.device.type, enabled=False):
            return interpolation_matrix(table.shape[0], size).to(table) @ table


class PatchTokens(nn.Module):
    """Video, waveform or spectrogram patches → tokens with AGG in front.

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
        self.kernel, num_channels = patch_kernel(geometry)
        num_values = math.prod(self.kernel) * num_channels
        # a strided convolution, as one product
        self.patch_projection = nn.Linear(num_values, d_model)
        self.pre_projection = nn.Linear(d_model, d_model) if agnostic else None
        mel = geometry.spectrogram if isinstance(geometry, AudioConfig) else None
        self.positions = Positions(
            geometry.position_grid or geometry.grid,
            d_model,
            transposed=mel is not None and mel.transposed_positions,
        )
        self.agg = nn.Parameter(torch.empty(d_model))
        self.position_dropout = nn.Dropout(POSITION_DROPOUT if dropout else 0.0)
        self.log_mel = log_mel_of(geometry) if isinstance(geometry, AudioConfig) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Glorot uniform of the convolution, whose fans count all positions of its kernel [C]."""
        init_agg(self.agg)
        d_model, num_values = self.patch_projection.weight.shape
        bound = math.sqrt(6 / (num_values + math.prod(self.kernel) * d_model))
        nn.init.uniform_(self.patch_projection.weight, -bound, bound)

    def forward(self, raw: Tensor) -> tuple[Tensor, None]:
        """Raw input → tokens float `[B, 1 + L, D]`, and no mask: none of them is padding.

        Args:
            raw: Video uint8 or float in [-1, 1] `[B, T, H, W, C]`; waveform float in [-1, 1]
                `[B, S]`; for a spectrogram model also the log-mel itself, float in [0, 1]
                `[B, M, F]`. Another geometry than the model's gets interpolated positions.

        Raises:
            ValueError: wrong rank, dtype or channels, or sizes that the patches do not divide.
        """
        patches_BLP, grid = self._patch(raw)
        positions_LD = self.positions(grid)
        if self.training and self.drop_token > 0:
            num_rows, num_tokens, _ = patches_BLP.shape
            kept_BL = draw_kept_tokens(num_rows, num_tokens, self.drop_token, raw.device)
            patches_BLP, positions = select_tokens(patches_BLP, kept_BL), positions_LD[kept_BL]
        else:
            positions = positions_LD
        if patches_BLP.dtype == torch.uint8:
            patches_BLP = normalize_video(patches_BLP)
        if self.geometry.input_scale != 1:
            patches_BLP = patches_BLP * self.geometry.input_scale
        x_BLD = self.patch_projection(patches_BLP.to(self.patch_projection.weight.dtype))
        if self.pre_projection is not None:
            x_BLD = F.gelu(self.pre_projection(x_BLD))
        return prepend_agg(self.agg, self.position_dropout(x_BLD + positions)), None

    def grid_of(self, raw: Tensor) -> tuple[int, ...]:
        """Number of tokens of an input along each axis.

        Raises:
            ValueError: wrong rank, dtype or size of the input.
        """
        if isinstance(self.geometry, VideoConfig):
            expect_video(raw, self.kernel)
            return tuple(n // p for n, p in zip(raw.shape[1:4], self.kernel, strict=True))
        if self.geometry.spectrogram is None:
            expect_waveform(raw, self.geometry.patch_size)
            return (raw.shape[1] // self.geometry.patch_size,)
        hop = self.geometry.spectrogram.hop_samples
        expect_spectrogram(raw, self.kernel, hop)
        num_windows = raw.shape[1] if raw.ndim == 3 else -(-raw.shape[1] // hop)
        num_mels = raw.shape[2] if raw.ndim == 3 else self.geometry.spectrogram.num_mels
        return num_windows // self.kernel[0], num_mels // self.kernel[1]

    def _patch(self, raw: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Patches `[B, L, P]` and the grid that they come from."""
        grid = self.grid_of(raw)
        if isinstance(self.geometry, VideoConfig):
            return patch_video(raw, self.geometry.patch_size), grid
        if self.geometry.spectrogram is None:
            return raw.unflatten(1, (-1, self.geometry.patch_size)), grid
        if raw.ndim == 2:
            assert self.log_mel is not None
            raw = self.log_mel(raw)
        return patch_spectrogram(raw, self.geometry.spectrogram.patch_size), grid


def patch_kernel(geometry: VideoConfig | AudioConfig) -> tuple[tuple[int, ...], int]:
    """Extent of a patch along each axis of the grid, and channels."""
    if isinstance(geometry, VideoConfig):
        return geometry.patch_size, 3
    if geometry.spectrogram is not None:
        return geometry.spectrogram.patch_size, 1
    return (geometry.patch_size,), 1


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
        self.embedding = word_vectors(config)
        self.max_words = config.max_words
        self.pre_projection = nn.Linear(config.d_embedding, d_model, bias=agnostic)
        self.positions = Positions((config.max_words,), d_model) if agnostic else None
        self.agg = nn.Parameter(torch.empty(d_model if agnostic else config.d_embedding))
        # agnostic: after adding positions, as for patches; T5 drops out its whole input [C]
        rate = (POSITION_DROPOUT if dropout else 0.0) if agnostic else dropout
        self.input_dropout = nn.Dropout(rate)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the initial weights; word vectors from N(0, 1), where [C] loads word2vec's."""
        init_agg(self.agg)

    def forward(self, ids_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of captions.

        Args:
            ids_BJ: Word ids, int64 `[B, J]`; 0 is padding.

        Returns:
            Tokens float `[B, 1 + J, D]` with the AGG token first, and a mask bool `[B, 1 + J]`,
            False for padding.

        Raises:
            ValueError: wrong rank or dtype, or more words than the model has positions.
        """
        expect_text(ids_BJ, self.max_words)
        words = self.embedding(ids_BJ)
        if self.positions is None:
            tokens = self.input_dropout(F.gelu(self.pre_projection(prepend_agg(self.agg, words))))
        else:
            words = F.gelu(self.pre_projection(words)) + self.positions()[: ids_BJ.shape[1]]
            tokens = prepend_agg(self.agg, self.input_dropout(words))
        return tokens, F.pad(ids_BJ != 0, (1, 0), value=True)


class LinearText(nn.Module):
    """The linear text tower: relu(Dense) of each word vector.

    Source: google-research/vatt `modeling/backbones/text/linear.py`.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embedding = word_vectors(config)
        self.max_words = config.max_words
        self.projection = nn.Linear(config.d_embedding, config.d_linear)

    def forward(self, ids_BJ: Tensor) -> tuple[Tensor, None]:
        """Ids int64 `[B, J]` → float `[B, max_words, D]`, padding included, and no mask.

        Raises:
            ValueError: wrong rank or dtype, or more words than `max_words`.
        """
        expect_text(ids_BJ, self.max_words)
        ids_BJ = F.pad(ids_BJ, (0, self.max_words - ids_BJ.shape[1]))
        return F.relu(self.projection(self.embedding(ids_BJ))), None


def word_vectors(config: TextConfig) -> nn.Embedding:
    """The table of word vectors, frozen or not."""
    embedding = nn.Embedding(config.vocab_size, config.d_embedding)
    embedding.weight.requires_grad_(config.train_embedding)
    return embedding


def prepend_agg(agg: Tensor, x_BLD: Tensor) -> Tensor:
    """`[D]`, `[B, L, D]` → `[B, 1 + L, D]`."""
    return torch.cat([agg.to(x_BLD.dtype).expand(x_BLD.shape[0], 1, -1), x_BLD], dim=1)


def init_agg(agg: Tensor) -> None:
    """Glorot normal of a vector, whose fans are both its length [C]."""
    truncated_normal(agg, std=agg.shape[0] ** -0.5 / TRUNCATED_STD)


def normalize_video(video: Tensor) -> Tensor:
    """uint8 0…255, any shape → float32 in [-1, 1]; on the device, so that bytes travel there."""
    if video.dtype != torch.uint8:
        raise ValueError(f"normalize_video takes uint8 pictures, got {video.dtype}")
    return video.float() / 127.5 - 1
