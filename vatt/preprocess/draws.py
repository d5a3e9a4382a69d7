"""Random numbers that depend only on a clip's seed, on any device and in any batch.

With a generator, numbers would depend on the position in the batch. Here, every number is a hash of
the clip's seed, of its purpose and of its own index. Nothing waits for the device, and the same
seeds give the same numbers on all devices, up to the rounding of log and cosine.
"""

import math

import torch
from torch import Tensor

# Source: the finaliser of SplitMix64 (Steele et al., "Fast splittable pseudorandom number
# generators", 2014), as in datamodules/order.py, whose numbers these are.
_STEP_64, _ADDED_64 = 0xD1342543DE82EF95, 0x9E3779B97F4A7C15
_FACTORS_64 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
# Source: "lowbias32" (C. Wellons, hash-prospector); the step is 2**32 / golden ratio.
_STEP_32, _FACTORS_32 = 0x9E3779B9, (0x7FEB352D, 0x846CA68B)
_CACHED = 1 << 15  # numbers at a time: their hashes and values take 0.5 MB


def draw_uniforms(seeds: Tensor, purpose: int, count: int) -> Tensor:
    """Draws uniform numbers in [0, 1) for each clip.

    Args:
        seeds: int64 `[B]`.
        purpose: Purpose of the numbers; each purpose gets different numbers.
        count: Number of values per clip.

    Returns:
        float32 `[B, count]`, on the seeds' device.
    """
    index = torch.arange(count, device=seeds.device)
    bits = _mix_64(_draw_bits(seeds, purpose)[:, None], index)
    return (_shifted(bits, 40) * 2.0**-24).to(torch.float32)


def draw_normals(seeds: Tensor, purpose: int, count: int) -> Tensor:
    """Draws standard normal numbers for each clip, between -6 and 6.

    It uses 32-bit hashes and the Box-Muller transform, which suit long rows. On one core, 64 clips
    of 25,600 numbers take 15 ms (7 ms with one generator for all), and 64 clips of 153,600 numbers
    take 127 ms (120 ms).

    Args:
        seeds: int64 `[B]`.
        purpose: Purpose of the numbers; each purpose gets different numbers.
        count: Number of values per clip, below 2**32.

    Returns:
        float32 `[B, count]`, on the seeds' device.
    """
    keys = _draw_bits(seeds, purpose)
    # a processor does so much at a time as stays in its cache; a device does all at once
    num_rows = len(keys) if keys.device.type != "cpu" else _CACHED // max(1, count)
    return torch.cat([_normals(chunk, count) for chunk in keys.split(max(1, num_rows))])


def _draw_bits(seeds: Tensor, purpose: int) -> Tensor:
    return _mix_64(_mix_64(torch.zeros_like(seeds), seeds), purpose)


def _mix_64(state: Tensor, key: Tensor | int) -> Tensor:
    """One more key in a 64-bit hash; int64 products and sums wrap around, as they must."""
    state = state * _signed(_STEP_64, 64) + key + _signed(_ADDED_64, 64)
    state = (state ^ _shifted(state, 30)) * _signed(_FACTORS_64[0], 64)
    state = (state ^ _shifted(state, 27)) * _signed(_FACTORS_64[1], 64)
    return state ^ _shifted(state, 31)


def _normals(keys: Tensor, count: int) -> Tensor:
    """float32 `[B, count]` from int64 keys `[B]`: a hash of each index, two hashes a pair."""
    half = -(-count // 2)
    bits = torch.arange(2 * half, dtype=torch.int32, device=keys.device) * _signed(_STEP_32, 32)
    bits = bits ^ keys.to(torch.int32)[:, None]
    spare = torch.empty_like(bits)
    _fold_32(bits, 16, spare).mul_(_signed(_FACTORS_32[0], 32))
    # inside the hash: added outside, close keys would give the same numbers some places further on
    bits ^= (keys >> 32).to(torch.int32)[:, None]
    _fold_32(bits, 15, spare).mul_(_signed(_FACTORS_32[1], 32))
    turns = _fold_32(bits, 16, spare).to(torch.float32).mul_(2.0**-32)  # [-0.5, 0.5]
    share = turns[:, :half].add_(0.5).clamp_(min=2.0**-26)  # 0 has no logarithm
    radius, angle = share.log_().mul_(-2).sqrt_(), turns[:, half:].mul_(2 * math.pi)
    return torch.cat([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=1)[:, :count]


def _fold_32(bits: Tensor, places: int, spare: Tensor) -> Tensor:
    """`bits ^= bits >> places` in place; `spare` is of the same shape."""
    torch.bitwise_right_shift(bits, places, out=spare)
    return bits.bitwise_xor_(spare.bitwise_and_((1 << (32 - places)) - 1))


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Shifts int64 right and fills with zeros; torch fills with the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(constant: int, width: int) -> int:
    """The signed number with the same bits."""
    return constant - (1 << width) if constant >> (width - 1) else constant
