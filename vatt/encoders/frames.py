"""Vectors of windows of video from vectors of their frames, for models of pictures.

Source: CLIP4Clip (https://arxiv.org/abs/2104.08860), whose "mean pooling" is the mean of the unit
vectors of the frames. It takes one frame per second; two give windows of 4 s eight frames.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.geometry import VideoWindow

# eight frames, evenly spread over windows of every length
FRAMES = VideoWindow(num_frames=8, frame_rate=2.0, has_fixed_count=True)


def encode_frames(
    rows: Sequence[Tensor],
    encode: Callable[[list[Tensor]], dict[str | None, Tensor]],
) -> dict[str | None, Tensor]:
    """Vectors of windows by space.

    Args:
        rows: Windows, uint8 `[T, H, W, 3]` of any sizes.
        encode: Function from frames, uint8 `[T, H, W, 3]` per window, to vectors of all frames one
            after the other, float32 `[F, D]` by space.

    Returns:
        float32 `[N, D]` by space: the mean of the unit vectors of all frames, or the mean of the
        vectors for the space None.
    """
    frames, counts = zip(*map(distinct_frames, rows), strict=True)
    lengths = [len(count) for count in counts]
    vectors = {}
    for space, of_frames in encode(list(frames)).items():
        unit = of_frames if space is None else F.normalize(of_frames, dim=-1)
        weights = [(count / count.sum()).to(unit.device)[:, None] for count in counts]
        parts = zip(unit.split(lengths), weights, strict=True)
        vectors[space] = torch.stack([(part * weight).sum(dim=0) for part, weight in parts])
    return vectors


def distinct_frames(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Frames without those that repeat the one before, and how often each is shown.

    An image is a video whose frames are all equal, and past its end a video shows its last frame.

    Args:
        frames: uint8 `[T, H, W, 3]`.

    Returns:
        uint8 `[F, H, W, 3]` with F <= T, and float32 `[F]`.
    """
    changes = (frames[1:] != frames[:-1]).flatten(1).any(dim=1)
    starts = torch.cat([torch.tensor([0]), changes.nonzero()[:, 0] + 1])
    counts = torch.diff(starts, append=torch.tensor([len(frames)]))
    return frames[starts], counts.float()
