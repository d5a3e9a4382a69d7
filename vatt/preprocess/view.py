"""Reading of clips as model inputs, for training, evaluation and feature extraction."""

import math
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from vatt.config.geometry import AudioGeometry, VideoGeometry
from vatt.media.clip import Clip, read_clip
from vatt.media.pictures import SizeRule
from vatt.media.source import MediaSource
from vatt.preprocess import transforms


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A crop given by area and aspect ratio, for pictures of any size.

    Source: `sample_distorted_bounding_box` of TensorFlow, which the official code calls. The aspect
    ratio is uniform, and the height is uniform between the heights of the smallest and the largest
    area that fit. If not even the smallest area fits, that code draws again; this one takes the
    largest crop of the drawn aspect ratio. That code also draws again where the crop has less than
    10 % of the picture (its `min_object_covered`); here as little as `area_range` says.

    Args:
        aspect: Ratio of width to height of the crop as displayed.
        extent: Position of the height in its range, in [0, 1]: 0 is the smallest, 1 the largest.
        area_range: Smallest and largest share of the picture, in [0, 1].
    """

    aspect: float
    extent: float
    area_range: tuple[float, float]

    def shares(self, width: float, height: float) -> tuple[float, float]:
        """Width and height of the crop as shares of the displayed picture, in (0, 1]."""
        area = width * height
        lowest, highest = (math.sqrt(share * area / self.aspect) for share in self.area_range)
        highest = min(highest, height, width / self.aspect)
        own_height = min(lowest, highest) + self.extent * max(0.0, highest - lowest)
        return min(1.0, own_height * self.aspect / width), min(1.0, own_height / height)


@dataclass(frozen=True, kw_only=True)
class View:
    """The part of the picture that the model sees. The default is the largest central square.

    Args:
        piece: Crop that is stretched to the model's square. None: a square is cropped.
        factors: For a square: the picture's width and height are multiplied by these two before its
            shorter side is scaled to the image size, so only their ratio matters, but for rounding.
            None: the aspect is kept.
        scale: For a square without `factors`: short side of the decoded picture as a multiple of
            the image size, at least 1.
        vertical: Position of the crop, 0 = top, 1 = bottom.
        horizontal: Position of the crop, 0 = left, 1 = right.
        flip: Whether to mirror left and right.
    """

    piece: Piece | None = None
    factors: tuple[float, float] | None = None
    scale: float = 1.0
    vertical: float = 0.5
    horizontal: float = 0.5
    flip: bool = False


CENTER = View()


def read_view(
    source: MediaSource,
    *,
    start_seconds: float,
    video: VideoGeometry | None,
    audio: AudioGeometry | None,
    view: View = CENTER,
) -> Clip:
    """Reads picture and sound from one start; frames are cropped to a square.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        start_seconds: Start of the clip, from the start of the file.
        video: Number, rate and size of frames. None: no picture is read.
        audio: Number and rate of samples. None: no sound is read.
        view: Part of the picture; the default is the largest central square.

    Returns:
        A clip whose video is uint8 `[T, H, W, C]`, H = W = `video.image_size`, and whose audio is
        float32 `[S]`; None if not requested or not in the file. If `image_size` is None, the
        pictures are whole, and of the file's size.

    Raises:
        MediaError: the file is unreadable, damaged at these times, or ends before the start.

    Example:
        >>> config = vatt.preset("tiny")
        >>> clip = vatt.read_view(
        ...     "dog.mp4", start_seconds=0.5, video=config.video, audio=config.audio
        ... )
        >>> clip.video, clip.audio  # uint8 [T, H, W, 3], float32 [S]
    """
    fit = short_side = None
    size_rule: SizeRule | None = None
    image_size = None if video is None else video.image_size
    if image_size is not None and view.piece is not None:
        size_rule = fit = PieceFit(view.piece, image_size)
    elif image_size is not None and view.factors is not None:
        size_rule = partial(stretched_size, factors=view.factors, size=image_size)
    elif image_size is not None:
        short_side = round(image_size * view.scale)
    clip = read_clip(
        source,
        start_seconds=start_seconds,
        video=video,
        audio=audio,
        short_side=short_side,
        size_rule=size_rule,
    )
    if image_size is None or clip.video is None:
        return clip
    shares = None if fit is None else fit.shares
    return replace(clip, video=cut_view(clip.video, image_size, view, shares))


def evaluation_size(width: float, height: float, size: int) -> tuple[int, int]:
    """Width and height of a picture whose shorter side is scaled to `size` pixels.

    Source: `resize_smallest` of DMVR, which rounds the longer side down.
    """
    return max(size, int(width * size // height)), max(size, int(height * size // width))


def stretched_size(
    width: float, height: float, *, factors: tuple[float, float], size: int
) -> tuple[int, int]:
    """Width and height of a picture that is stretched, then scaled to a shorter side of `size`.

    Source: `scale_jitter_augm`, then `resize_smallest` of DMVR, which round down. That code
    interpolates twice, without averaging over pixels; here FFmpeg scales once.
    """
    across, down = (
        max(1, int(factor * side)) for factor, side in zip(factors, (width, height), strict=True)
    )
    return evaluation_size(across, down, size)


class PieceFit:
    """Size at which to decode a picture so that a crop of it becomes the model's square.

    FFmpeg scales both sides so that the crop is exactly the square and needs no further scaling. It
    never enlarges: the crop is enlarged afterwards, which is cheaper.

    Args:
        piece: Crop.
        image_size: Side of the square in pixels.
    """

    def __init__(self, piece: Piece, image_size: int) -> None:
        self.piece = piece
        self.image_size = image_size
        self.shares = (1.0, 1.0)  # of width and height; known when the picture's shape is

    def __call__(self, width: float, height: float) -> tuple[int, int]:
        """Decoded width and height of a picture with this displayed width and height."""
        self.shares = self.piece.shares(width, height)
        across, down = (
            max(1, min(round(self.image_size / share), round(side)))
            for share, side in zip(self.shares, (width, height), strict=True)
        )
        return across, down


def cut_view(
    frames: Tensor,
    image_size: int,
    view: View = CENTER,
    shares: tuple[float, float] | None = None,
) -> Tensor:
    """Crops the square of a view from pictures that are already scaled.

    Args:
        frames: `[T, H, W, C]`, any dtype; H and W of at least `image_size`.
        image_size: Side of the square in pixels.
        view: Position of the square, and whether it is mirrored.
        shares: Width and height of the crop as shares of the picture. The pictures must then have
            the size of `PieceFit`, uint8 or float, and the crop is scaled to the square if needed.
            None: the view has no `piece`.

    Returns:
        The same dtype, `[T, image_size, image_size, C]`; may share memory with `frames`.

    Raises:
        ValueError: the pictures are smaller than the square.
    """
    rows, columns = image_size, image_size
    if shares is not None:
        columns = max(1, round(shares[0] * frames.shape[2]))
        rows = max(1, round(shares[1] * frames.shape[1]))
    place = {"vertical": view.vertical, "horizontal": view.horizontal}
    square = transforms.stretch(transforms.crop(frames, (rows, columns), **place), image_size)
    return square.flip(2) if view.flip else square
