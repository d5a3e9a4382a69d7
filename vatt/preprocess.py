"""Clip → model input, once for training, evaluation and features."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vatt import transforms
from vatt.config import AudioConfig, VideoConfig

if TYPE_CHECKING:
    from vatt.media import Clip, MediaSource


@dataclass(frozen=True, kw_only=True)
class View:
    """Which square of the picture the model sees. The default is the largest central one.

    Args:
        scale: Short side of the decoded picture as a multiple of the image size, at least 1.
        vertical: Place of the square, 0 = top, 1 = bottom.
        horizontal: Place of the square, 0 = left, 1 = right.
        flip: Whether left and right change places.
    """

    scale: float = 1.0
    vertical: float = 0.5
    horizontal: float = 0.5
    flip: bool = False


CENTER = View()


def read_view(
    source: "MediaSource",
    *,
    start_seconds: float,
    video: VideoConfig | None,
    audio: AudioConfig | None,
    view: View = CENTER,
) -> "Clip":
    """Reads picture and sound from one start, the picture cut to the model's square.

    Args:
        source: As for `vatt.media.read_clip`.
        start_seconds: From the file's start.
        video: Geometry of the picture; None reads none.
        audio: Geometry of the sound; None reads none.
        view: Which square.

    Returns:
        A clip whose video is uint8 `[T, H, W, C]`, H = W = `video.image_size`, and whose audio is
        float32 `[S]`; None where not asked for or not in the file.

    Raises:
        MediaError: the file is unreadable, damaged in this place, or ends before the start.
    """
    from vatt.media import read_clip  # here: the network imports this file and needs no PyAV

    short_side = round(video.image_size * view.scale) if video is not None else None
    clip = read_clip(
        source, start_seconds=start_seconds, video=video, audio=audio, short_side=short_side
    )
    if clip.video is None or video is None:
        return clip
    return replace(clip, video=cut_view(clip.video, video.image_size, view))


def cut_view(frames: Tensor, image_size: int, view: View = CENTER) -> Tensor:
    """Cuts pictures that are already scaled to the view's square.

    Args:
        frames: `[..., H, W, C]`, any dtype; H and W of at least `image_size`.
        image_size: Side of the square in pixels.
        view: Which square.

    Returns:
        The same dtype, `[..., image_size, image_size, C]`; may share memory with `frames`.

    Raises:
        ValueError: pictures smaller than the square.
    """
    square = transforms.crop(frames, image_size, vertical=view.vertical, horizontal=view.horizontal)
    return transforms.flip_horizontally(square) if view.flip else square


def normalize_video(video: Tensor) -> Tensor:
    """uint8 0…255, any shape → float32 in [-1, 1]; on the device, so that bytes travel there."""
    if video.dtype != torch.uint8:
        raise ValueError(f"normalize_video takes uint8 pictures, got {video.dtype}")
    return video.float() / 127.5 - 1
