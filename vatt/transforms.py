"""Pure tensor functions on clips: crops, flips, colour jitter, audio noise.

Every picture of a clip is treated alike, so that motion stays motion.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vatt.draws import draw_normals, draw_uniforms

# Source: colour augmentation of the official code; brightness and hue are the largest change, of
# 0…1 and of the colour circle.
BRIGHTNESS = 32 / 255
CONTRAST_RANGE = SATURATION_RANGE = (0.6, 1.4)
HUE = 0.2
_COLOR, _NOISE = 1, 2  # what a number is drawn for

_RGB_TO_YIQ = torch.tensor(
    [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes of training clips. The defaults are the published recipe.

    Args:
        scale_range: The short side is decoded at this multiple of the image size, drawn uniformly,
            before a random square is cut from it; (1, 1) cuts along the longer side only.
        flip_rate: Share of the clips that are mirrored. Use 0 where captions speak of left and
            right.
        color_jitter_rate: Share of the clips whose colours are changed. Use 0 where captions speak
            of colours.
        audio_noise: Standard deviation of the noise as a share of the clip's largest amplitude.

    Raises:
        ValueError: a value out of range.
    """

    scale_range: tuple[float, float] = (1.0, 1.25)  # ours: at most 36 % of the area is cut off
    flip_rate: float = 0.5
    color_jitter_rate: float = 0.8
    audio_noise: float = 0.01

    def __post_init__(self) -> None:
        """Checks the ranges."""
        low, high = self.scale_range
        if not 1 <= low <= high:
            raise ValueError(f"augment.scale_range must be 1 ≤ low ≤ high, got {self.scale_range}")
        for name in ("flip_rate", "color_jitter_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} must be in [0, 1], got {getattr(self, name)}")
        if self.audio_noise < 0:
            raise ValueError(f"augment.audio_noise must be at least 0, got {self.audio_noise}")


def crop(frames: Tensor, size: int, *, vertical: float = 0.5, horizontal: float = 0.5) -> Tensor:
    """The same square of every picture.

    Args:
        frames: `[..., H, W, C]`, any dtype.
        size: Side of the square in pixels.
        vertical: Place along the height, 0 = top, 1 = bottom.
        horizontal: Place along the width, 0 = left, 1 = right.

    Returns:
        A view of `frames`, `[..., size, size, C]`.

    Raises:
        ValueError: pictures smaller than the square.
    """
    height, width = frames.shape[-3:-1]
    if min(height, width) < size:
        raise ValueError(f"cannot cut {size}×{size} pixels from pictures of {height}×{width}")
    top, left = round(vertical * (height - size)), round(horizontal * (width - size))
    return frames[..., top : top + size, left : left + size, :]


def flip_horizontally(frames: Tensor) -> Tensor:
    """Mirrors left and right of pictures `[..., H, W, C]`, any dtype; a copy of the same shape."""
    return frames.flip(-2)


def jitter_color(video: Tensor, rate: float, seeds: Tensor) -> Tensor:
    """Changes brightness, saturation, hue and contrast of a share of the clips.

    All four together are one affine map of RGB per clip, so that a clip is read and written once.
    Contrast turns about the clip's mean colour, hue in YIQ space; the official code takes each
    picture's mean, HSV, and clips after each step.

    Args:
        video: Float `[B, T, H, W, C]`, RGB in [-1, 1].
        rate: Share of the clips that are changed, in [0, 1].
        seeds: int64 `[B]`, on the video's device; they name what is drawn for each clip.

    Returns:
        The same dtype, shape and range; `video` itself stays as it is.
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
    """The affine maps of colours in [-1, 1].

    Args:
        draws: Uniform numbers `[B, 4]`.
        mean: Mean colours `[B, 3]`.

    Returns:
        Matrices `[B, 3, 3]` and offsets `[B, 3]`.
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
    to_yiq = _RGB_TO_YIQ.to(draws.device)
    turn = torch.linalg.inv(to_yiq) @ torch.stack(rows, dim=-1).view(-1, 3, 3) @ to_yiq
    offset = (1 - contrast)[:, None] * (turn @ mean[..., None])[..., 0] + brightness[:, None]
    return contrast[:, None, None] * turn, offset


def add_audio_noise(audio: Tensor, level: float, seeds: Tensor) -> Tensor:
    """Adds Gaussian noise in proportion to each clip's largest amplitude; silence stays silent.

    Args:
        audio: Float `[B, S]`, in about [-1, 1].
        level: Standard deviation as a share of the largest amplitude.
        seeds: int64 `[B]`, on the audio's device; they name what is drawn for each clip.

    Returns:
        The same dtype and shape, not clipped; `audio` itself stays as it is.
    """
    noise = draw_normals(seeds, _NOISE, audio.shape[1]).to(audio.dtype)
    return audio + noise * (level * audio.abs().amax(dim=-1, keepdim=True))
