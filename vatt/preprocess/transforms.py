"""Pure tensor functions on clips: crops, flips, colour jitter, audio noise.

All pictures of a clip are changed in the same way, which preserves motion.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.augment import AugmentConfig
from vatt.errors import UserError
from vatt.preprocess.draws import draw_normals, draw_uniforms

# Source: colour augmentation of the official code; brightness and hue are the largest change, of
# 0…1 and of the colour circle.
BRIGHTNESS = 32 / 255
CONTRAST_RANGE = SATURATION_RANGE = (0.6, 1.4)
HUE = 0.2
_COLOR, _NOISE, _TIME, _MEL, _PARTNER, _SHARE = 1, 2, 3, 4, 5, 6  # what a number is drawn for
_TRIES = 8  # of a gamma number, of which 95 % or more succeed: none does in 1 of 10**10 clips

_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)


def crop(
    frames: Tensor, size: tuple[int, int], *, vertical: float = 0.5, horizontal: float = 0.5
) -> Tensor:
    """Crops the same rectangle from every picture.

    Args:
        frames: `[..., H, W, C]`, any dtype.
        size: Height and width in pixels.
        vertical: Position along the height, 0 = top, 1 = bottom.
        horizontal: Position along the width, 0 = left, 1 = right.

    Returns:
        A view of `frames`, `[..., *size, C]`.

    Raises:
        ValueError: the pictures are smaller than the rectangle.
    """
    (rows, columns), (height, width) = size, frames.shape[-3:-1]
    if height < rows or width < columns:
        raise ValueError(f"cannot cut {rows}×{columns} pixels from pictures of {height}×{width}")
    top, left = round(vertical * (height - rows)), round(horizontal * (width - columns))
    return frames[..., top : top + rows, left : left + columns, :]


def stretch(frames: Tensor, size: int) -> Tensor:
    """Scales pictures to a square, bilinearly, with antialiasing if they become smaller.

    Args:
        frames: uint8 or float `[T, H, W, C]`.
        size: Side of the square in pixels.

    Returns:
        The same dtype, `[T, size, size, C]`; `frames` itself if it has that size.
    """
    if frames.shape[1:3] == (size, size):
        return frames
    pixels = frames.permute(0, 3, 1, 2)
    return F.interpolate(pixels, (size, size), mode="bilinear", antialias=True).permute(0, 2, 3, 1)


def jitter_color(video: Tensor, rate: float, seeds: Tensor) -> Tensor:
    """Changes brightness, saturation, hue and contrast of a share of the clips.

    All four changes together are one affine map of RGB per clip, so a clip is read and written
    once. Values are clipped once at the end.

    Source: `color_default_augm` of DMVR, which the official code calls in fine-tuning (not in
    pre-training, where the paper's augmentation has it): the same rate and ranges. That code takes
    each picture's mean colour for the contrast, here it is the clip's; and saturation and hue in
    HSV, which keeps the largest of R, G, B, here in YIQ, which keeps the luminance.

    Args:
        video: Float `[B, T, H, W, C]`, RGB in [-1, 1].
        rate: Share of the clips that are changed, in [0, 1].
        seeds: int64 `[B]`, seed of each clip, on the video's device.

    Returns:
        The same dtype, shape and range; `video` is not changed.
    """
    draws = draw_uniforms(seeds, _COLOR, 5)
    active = draws[:, 0] < rate
    matrix, offset = _color_maps(draws[:, 1:], video.mean(dim=(1, 2, 3), dtype=torch.float32))
    matrix = torch.where(active[:, None, None], matrix, torch.eye(3, device=video.device))
    offset = torch.where(active[:, None], offset, 0.0)
    pixels = video.flatten(1, 3)
    changed = torch.baddbmm(offset[:, None].to(video), pixels, matrix.mT.to(video))
    return changed.clamp_(-1, 1).view_as(video)


def _color_maps(draws: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Affine maps of colours in [-1, 1], `[B, 3, 3]` and `[B, 3]`.

    They are computed from uniform numbers `[B, 4]` and mean colours `[B, 3]`.
    """
    brightness = (2 * draws[:, 0] - 1) * 2 * BRIGHTNESS  # the scale -1…1 is twice as long as 0…1
    contrast, saturation = (
        low + draws[:, axis] * (high - low)
        for axis, (low, high) in ((1, CONTRAST_RANGE), (2, SATURATION_RANGE))
    )
    angle = (2 * draws[:, 3] - 1) * HUE * 2 * math.pi
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    rows = [one, zero, zero, zero, cos, -sin, zero, sin, cos]
    to_yiq, to_rgb = _color_spaces(draws.device)
    turn = to_rgb @ torch.stack(rows, dim=-1).view(-1, 3, 3) @ to_yiq
    offset = (1 - contrast)[:, None] * (turn @ mean[..., None])[..., 0] + brightness[:, None]
    return contrast[:, None, None] * turn, offset


@cache
def _color_spaces(device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices from RGB to YIQ and back on a device, which would wait for copy and inversion."""
    return _RGB_TO_YIQ.to(device), torch.linalg.inv(_RGB_TO_YIQ).to(device)


def add_audio_noise(audio: Tensor, level: float, seeds: Tensor) -> Tensor:
    """Adds Gaussian noise in proportion to each clip's largest amplitude; silence stays silent.

    Args:
        audio: Float `[B, S]`, in about [-1, 1].
        level: Standard deviation as a share of the largest amplitude.
        seeds: int64 `[B]`, seed of each clip, on the audio's device.

    Returns:
        The same dtype and shape, not clipped; `audio` is not changed.
    """
    noise = draw_normals(seeds, _NOISE, audio.shape[1]).to(audio.dtype)
    return audio + noise * (level * audio.abs().amax(dim=-1, keepdim=True))


def mask_spectrogram(log_mel_BMF: Tensor, augment: AugmentConfig, seeds: Tensor) -> Tensor:
    """Masks intervals of time and of mel bins: SpecAugment without time warping.

    Width and position of each mask are uniform.

    Args:
        log_mel_BMF: Float `[B, M, F]` in [0, 1].
        augment: Number and largest size of the masks.
        seeds: int64 `[B]`, seed of each clip, on the spectrograms' device.

    Returns:
        The same dtype, shape and range, 0 (the clip's smallest value) under the masks;
        `log_mel_BMF` is not changed.

    Source: Park et al., "SpecAugment", arXiv 1904.08779.
    """
    _, num_windows, num_mels = log_mel_BMF.shape
    time_BM = _draw_masks(
        seeds, _TIME, num_windows, augment.num_time_masks, augment.largest_time_mask
    )
    mel_BF = _draw_masks(seeds, _MEL, num_mels, augment.num_mel_masks, augment.largest_mel_mask)
    return log_mel_BMF.masked_fill(time_BM[:, :, None] | mel_BF[:, None], 0.0)


def _draw_masks(seeds: Tensor, purpose: int, size: int, count: int, largest: float) -> Tensor:
    """Places that any of `count` stretches covers: bool `[B, size]`."""
    draws = draw_uniforms(seeds, purpose, 2 * count).view(len(seeds), count, 2)
    width = (draws[..., 0] * (int(largest * size) + 1)).floor()
    start = (draws[..., 1] * (size - width + 1)).floor()
    place = torch.arange(size, device=seeds.device)
    inside = (place >= start[..., None]) & (place < (start + width)[..., None])
    return inside.any(dim=1)


def mixup(inputs: Tensor, targets: Tensor, seeds: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixes each clip with another one of the batch, and their labels in the same proportion.

    The partner of a clip depends on the batch, its own share does not. With the same seeds, several
    modalities of the same clips are mixed alike.

    Args:
        inputs: Float `[B, …]`: waveforms, spectrograms or pictures.
        targets: Float `[B, classes]`: share of each class, one-hot or several.
        seeds: int64 `[B]`, seed of each clip, on the same device.
        alpha: The own share of a clip is drawn from Beta(alpha, alpha); 5 for audio fine-tuning.

    Returns:
        Mixed inputs and targets, of the same dtypes and shapes.

    Raises:
        ValueError: targets or inputs are not floating point or differ in rows, or alpha is not
            positive.

    Source: Zhang et al., "mixup", arXiv 1710.09412; one share for each clip, as official.
    """
    if alpha <= 0:
        raise UserError(f"mixup needs alpha above 0, got {alpha}")
    if not (inputs.is_floating_point() and targets.is_floating_point()):
        raise ValueError(
            "mixup needs inputs and targets of floating point (one-hot instead of a class number), "
            f"got {inputs.dtype} and {targets.dtype}"
        )
    if not len(inputs) == len(targets) == len(seeds):
        sizes = len(inputs), len(targets), len(seeds)
        raise ValueError(f"mixup needs a target and a seed for each input, got {sizes}")
    partner = draw_uniforms(seeds, _PARTNER, 1)[:, 0].argsort()
    place = torch.empty_like(partner).scatter_(0, partner, partner.roll(1))
    share = _draw_beta(seeds, alpha)
    return _mixed(inputs, place, share), _mixed(targets, place, share)


def _mixed(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    weight = share.view(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    return weight * values + (1 - weight) * values[partner]


def _draw_beta(seeds: Tensor, alpha: float) -> Tensor:
    """One number of Beta(alpha, alpha) for each clip, float32 `[B]`."""
    first, second = (_draw_log_gamma(seeds, _SHARE + i, alpha) for i in (0, 3))
    return torch.sigmoid(first - second)


def _draw_log_gamma(seeds: Tensor, purpose: int, alpha: float) -> Tensor:
    """Logarithm of one number of Gamma(alpha, 1) for each clip, float32 `[B]`.

    Source: Marsaglia and Tsang, "A simple method for generating gamma variables", 2000.
    """
    size = (alpha if alpha >= 1 else alpha + 1) - 1 / 3
    normal = draw_normals(seeds, purpose, _TRIES)
    uniform = draw_uniforms(seeds, purpose + 1, _TRIES)
    cube = (1 + normal / math.sqrt(9 * size)) ** 3
    log_cube = cube.clamp(min=1e-30).log()
    accepted = (cube > 0) & (uniform.log() < normal**2 / 2 + size * (1 - cube + log_cube))
    first = accepted.to(torch.int8).argmax(dim=1, keepdim=True)
    drawn = log_cube.gather(1, first)[:, 0] + math.log(size)
    if alpha >= 1:
        return drawn
    return drawn + (1 - draw_uniforms(seeds, purpose + 2, 1)[:, 0]).log() / alpha
