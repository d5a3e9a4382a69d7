"""Random draws that depend only on seed, epoch and sample, never on the state of a process."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vatt.config.augment import OFFICIAL_SCALE_RANGE, OFFICIAL_SCALE_RATE, AugmentConfig
from vatt.preprocess.view import Piece, View


class Purpose(IntEnum):
    """Purpose of a draw, one of its integer keys. Changing a value changes all runs."""

    SHARDS = 1
    SAMPLES = 2
    TURNS = 3
    CLIP = 11
    TIES = 12
    CAPTIONS = 13
    CHANGES = 14
    LABELLED_CLIP = 21


def draw_bits(*keys: ArrayLike) -> NDArray[np.uint64]:
    """One well-mixed 64-bit number for every combination of integer keys, which broadcast.

    With the other keys fixed, the map from the last key is one-to-one, so sorting the numbers of
    0…n-1 gives a permutation.

    Source: the finaliser of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
    generators", 2014).
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = state * np.uint64(0xD1342543DE82EF95) + np.asarray(key, np.int64).astype(np.uint64)
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def draw_uniforms(*keys: ArrayLike) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for every combination of integer keys, which broadcast."""
    return np.multiply(draw_bits(*keys) >> np.uint64(11), 2.0**-53, dtype=np.float64)


def draw_permutation(size: int, *keys: int) -> NDArray[np.int64]:
    """A permutation of 0…size-1, determined by integer keys."""
    return np.argsort(draw_bits(*keys, np.arange(size)), kind="stable")


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Reference to a sample of the stream.

    Args:
        set_index: Index of the set among the mixed sets.
        sample_index: Index within the set.
        epoch: Number of earlier passes through the set.
        position: Number of samples that the run read before this one, over all ranks. None: the
            sample is read for the cache only.
    """

    set_index: int
    sample_index: int
    epoch: int
    position: int | None = None


def draw_view(augment: AugmentConfig, draws: Sequence[float]) -> View:
    """Draws a random view.

    Args:
        augment: Ranges of the changes.
        draws: Six uniform numbers in [0, 1).
    """
    extent, vertical, horizontal, flip, aspect, choice = draws
    piece = factors = None
    scale = 1.0
    if augment.crop in ("area", "paper"):
        aspect = _between(augment.aspect_range, aspect)
        piece = Piece(aspect=aspect, extent=extent, area_range=augment.area_range)
    elif augment.crop == "official":
        ends = OFFICIAL_SCALE_RANGE if choice < OFFICIAL_SCALE_RATE else (1.0, 1.0)
        factors = _between(ends, aspect), _between(ends, extent)
    else:
        scale = _between(augment.scale_range, extent)
    return View(
        piece=piece,
        factors=factors,
        scale=scale,
        vertical=vertical,
        horizontal=horizontal,
        flip=flip < augment.flip_rate,
    )


def _between(ends: tuple[float, float], share: float) -> float:
    low, high = ends
    return low + share * (high - low)


def draw_captions(text: Tensor, refs: Sequence[SampleRef], *, count: int, seed: int) -> Tensor:
    """Draws some captions of each bag; blank captions come last.

    Args:
        text: int64 `[B, K, J]`.
        refs: Sample of each row; it determines the draw.
        count: Number of captions to keep.
        seed: Seed of the draws.

    Returns:
        int64 `[B, count, J]`.
    """
    rows = (column[:, None] for column in _names(refs))
    chances = draw_uniforms(seed, *rows, Purpose.CAPTIONS, np.arange(text.shape[1]))
    blank = (text == 0).all(dim=-1)
    order = (torch.from_numpy(chances) + blank).argsort(dim=1)[:, :count]
    return text.gather(1, order[..., None].expand(-1, -1, text.shape[2]))


def name_seeds(refs: Sequence[SampleRef], *, seed: int) -> Tensor:
    """Seeds of the random changes of each clip; they depend on sample and epoch, not on rank.

    Args:
        refs: Sample of each row.
        seed: Seed of the draws.

    Returns:
        int64 `[B]`, at least 0.
    """
    bits = draw_bits(seed, *_names(refs), Purpose.CHANGES)
    return torch.from_numpy((bits >> np.uint64(1)).astype(np.int64))


def _names(refs: Sequence[SampleRef]) -> NDArray[np.int64]:
    """Set, sample and epoch of each row, `[3, B]`."""
    return np.array([(ref.set_index, ref.sample_index, ref.epoch) for ref in refs]).T
