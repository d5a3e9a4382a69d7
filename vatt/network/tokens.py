"""Tokens of raw inputs: patches, positions, DropToken and the AGG token.

Source: paper sections 3.1 to 3.3; google-research/vatt `modeling/backbones`. Shape legend in
`vatt.batch`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vatt.config.geometry import AudioConfig, TextConfig, VideoConfig
from vatt.errors import UserError
from vatt.network.input_checks import expect_spectrogram, expect_text, expect_video, expect_waveform
from vatt.network.layers import NORM_EPS, TRUNCATED_STD, truncated_normal
from vatt.network.log_mel import log_mel_of, num_spectrogram_frames

MAX_KNOTS = 1 << 14  # of a spline: its system of equations then has 2 GB
POSITION_DROPOUT = 0.1  # hard-coded [C]; here off where the encoder's dropout is 0


def patch_video(video_BTHWC: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """`[B, T, H, W, C]` → patches `[B, L, P]`, time-major, then rows, then columns; dtype kept."""
    frames, height, width = patch_size
    pattern = "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)"
    return rearrange(video_BTHWC, pattern, pt=frames, ph=height, pw=width)


def patch_spectrogram(mel_BMF: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """`[B, M, F]` → patches `[B, L, P]`, time-major; incomplete patches are left out [C]."""
    time, mel = patch_size
    num_time, num_mel = mel_BMF.shape[1] // time, mel_BMF.shape[2] // mel
    whole = mel_BMF[:, : num_time * time, : num_mel * mel]
    return rearrange(whole, "b (t pt) (f pf) -> b (t f) (pt pf)", pt=time, pf=mel)


def draw_kept_tokens(num_rows: int, num_tokens: int, drop: float, device: torch.device) -> Tensor:
    """Draws the tokens that DropToken keeps, separately for each row, in their original order.

    Args:
        num_rows: `B`.
        num_tokens: Number of tokens before dropping.
        drop: Share of tokens to drop, in [0, 1).
        device: Device of the random numbers.

    Returns:
        int64 `[B, kept]`, ascending; kept = num_tokens − floor(drop · num_tokens), at least 1.

    Source: paper section 3.3. The official code draws one permutation for the whole batch and
    leaves tokens shuffled.
    """
    num_kept = max(1, num_tokens - int(drop * num_tokens))
    order = torch.rand(num_rows, num_tokens, device=device).argsort(dim=1)
    return order[:, :num_kept].sort(dim=1).values


def select_tokens(x_BLD: Tensor, kept_BL: Tensor) -> Tensor:
    """Tokens `kept_BL` of every clip: `[B, L, D]`, `[B, kept]` → `[B, kept, D]`."""
    return x_BLD.gather(1, kept_BL[:, :, None].expand(-1, -1, x_BLD.shape[2]))


@lru_cache(maxsize=64)
def interpolation_matrix(num_from: int, num_to: int) -> Tensor:
    """Matrix that interpolates a table to another length: float32 `[num_to, num_from]`.

    It evaluates a cubic polyharmonic spline (a sum of |distance|³ and a straight line) at j /
    num_to; the spline passes through entry i of the table at i / num_from.

    Raises:
        UserError: the table is too long.

    Source: `ExpandableEmbedding` of google-research/vatt `modeling/common/transformers.py`.
    """
    if num_from > MAX_KNOTS:
        raise UserError(
            f"a table of {num_from:,} positions cannot be interpolated, at most {MAX_KNOTS:,} can: "
            f"use clips of {num_from:,} positions, not {num_to:,}"
        )
    with torch.inference_mode(False), torch.device("cpu"):  # kept for callers in any mode
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


@lru_cache(maxsize=64)
def _interpolation_matrix_on(device: torch.device, num_from: int, num_to: int) -> Tensor:
    """Interpolation matrix on a device, for which a copy in each step would wait."""
    with torch.inference_mode(False):
        return interpolation_matrix(num_from, num_to).to(device)


class Positions(nn.Module):
    """Learned positions: one table per axis, whose sum is normalised by a LayerNorm.

    Args:
        grid: Entries of each table: (8, 14, 14) for the paper's video, (1200,) for its waveform.
        d_model: Width.
        transposed: Whether to read a grid of two axes as if the second were the slower one
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
        """Draws a truncated normal [C]; because of the norm, its scale matters to Adam only."""
        for table in self.tables:
            truncated_normal(table, std=table.shape[1] ** -0.5)

    def forward(self, grid: tuple[int, ...] | None = None) -> Tensor:
        """Positions of all tokens of a grid, float `[L, D]`, first axis slowest.

        If an axis is longer or shorter than its table, the table is interpolated. Without `grid`,
        the grid is that of the tables.
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
            matrix = _interpolation_matrix_on(table.device, table.shape[0], size)
            return matrix.to(table.dtype) @ table


class PatchTokens(nn.Module):
    """Video, waveform or spectrogram patches → tokens with AGG in front.

    DropToken drops patches before they are projected, so dropped tokens cost nothing.

    Args:
        geometry: Modality and sizes of the input.
        d_model: Width.
        agnostic: Whether to add the Dense(GELU) in front of the shared encoder.
        drop_token: Share of tokens dropped in training, in [0, 1).
        dropout: Dropout rate of the encoder; 0 also disables the fixed dropout after adding
            positions.
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
        """Draws Glorot uniform weights; fans count all positions of the kernel [C]."""
        init_agg(self.agg)
        d_model, num_values = self.patch_projection.weight.shape
        bound = math.sqrt(6 / (num_values + math.prod(self.kernel) * d_model))
        nn.init.uniform_(self.patch_projection.weight, -bound, bound)

    def forward(self, raw: Tensor) -> tuple[Tensor, None]:
        """Tokens of video or audio, float `[B, 1 + L, D]` with AGG first, and None for the mask.

        Args:
            raw: Video uint8 or float in [-1, 1] `[B, T, H, W, C]`; or waveform float in [-1, 1]
                `[B, S]`; for spectrogram models also log-mel float in [0, 1] `[B, M, F]`. Positions
                are interpolated if the geometry differs from the model's.

        Raises:
            ValueError: the input has a wrong rank, dtype or number of channels, or patches do not
                divide its sizes.
        """
        positions_LD = self.positions(self.grid_of(raw))
        patches_BLP = self._patch(raw)
        if self.training and self.drop_token > 0:
            num_rows, num_tokens, _ = patches_BLP.shape
            kept_BL = draw_kept_tokens(num_rows, num_tokens, self.drop_token, raw.device)
            patches_BLP = select_tokens(patches_BLP, kept_BL)
            positions = F.embedding(kept_BL, positions_LD)  # indexing has a slower gradient
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
            ValueError: the input has a wrong rank, dtype or size.
        """
        sizes: Sequence[int]
        if isinstance(self.geometry, VideoConfig):
            expect_video(raw, self.kernel)
            sizes = raw.shape[1:4]
        elif (mel := self.geometry.spectrogram) is None:
            expect_waveform(raw, self.geometry.patch_size)
            sizes = raw.shape[1:]
        else:
            expect_spectrogram(raw, self.kernel, mel.hop_samples)
            sizes = raw.shape[1:]
            if raw.ndim == 2:
                sizes = num_spectrogram_frames(raw.shape[1], mel.hop_samples), mel.num_mels
        return tuple(n // p for n, p in zip(sizes, self.kernel, strict=True))

    def _patch(self, raw: Tensor) -> Tensor:
        """Patches `[B, L, P]`."""
        if isinstance(self.geometry, VideoConfig):
            return patch_video(raw, self.kernel)
        if self.log_mel is None:
            return raw.unflatten(1, (-1, *self.kernel))
        return patch_spectrogram(self.log_mel(raw) if raw.ndim == 2 else raw, self.kernel)


def patch_kernel(geometry: VideoConfig | AudioConfig) -> tuple[tuple[int, ...], int]:
    """Size of a patch along each axis of the grid, and channels."""
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
        agnostic: Whether to use learned absolute positions and to add AGG after the projection to
            `d_model`. Otherwise AGG is added to the word vectors before the projection, without
            positions (T5 has a relative bias).
        dropout: Dropout rate of the encoder.
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
        """Draws the initial weights; word vectors are N(0, 1) until others are loaded."""
        init_agg(self.agg)

    def forward(self, ids_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of captions.

        Args:
            ids_BJ: Word ids, int64 `[B, J]`; 0 is padding.

        Returns:
            Tokens float `[B, 1 + J, D]` with the AGG token first, and a mask bool `[B, 1 + J]`,
            False for padding.

        Raises:
            ValueError: the ids have a wrong rank or dtype, or more words than the model has
                positions.
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
        """Ids int64 `[B, J]` → float `[B, max_words, D]` including padding, and None for the mask.

        Raises:
            ValueError: the ids have a wrong rank or dtype, or more than `max_words` words.
        """
        expect_text(ids_BJ, self.max_words)
        ids_BJ = F.pad(ids_BJ, (0, self.max_words - ids_BJ.shape[1]))
        return F.relu(self.projection(self.embedding(ids_BJ))), None


def word_vectors(config: TextConfig) -> nn.Embedding:
    """Embedding of words, frozen if `train_embedding` is False."""
    embedding = nn.Embedding(config.vocab_size, config.d_embedding)
    embedding.weight.requires_grad_(config.train_embedding)
    return embedding


def prepend_agg(agg: Tensor, x_BLD: Tensor) -> Tensor:
    """`[D]`, `[B, L, D]` → `[B, 1 + L, D]`."""
    return torch.cat([agg.to(x_BLD.dtype).expand(x_BLD.shape[0], 1, -1), x_BLD], dim=1)


def init_agg(agg: Tensor) -> None:
    """Draws a Glorot normal vector; both fans are its length [C]."""
    truncated_normal(agg, std=agg.shape[0] ** -0.5 / TRUNCATED_STD)


def normalize_video(video: Tensor) -> Tensor:
    """Scales uint8 pixels of any shape to float32 in [-1, 1]; runs on the device."""
    if video.dtype != torch.uint8:
        raise ValueError(f"normalize_video takes uint8 pictures, got {video.dtype}")
    return video.float().div_(127.5).sub_(1)  # in place: one copy in memory, not three
