"""Fixed views of evaluation: windows evenly spread in time, crops along the longer side.

Frames and pixels are exactly those of the official evaluation, so that published numbers can be
compared. Frames are counted at a base rate, of which every `stride`-th is read. Models that scale
pictures themselves get whole ones.
"""

import math
from functools import partial

import torch
from torch import Tensor

from vatt.config.geometry import AudioGeometry, AudioWindow, VideoGeometry
from vatt.errors import UserError
from vatt.media.clip import MediaInfo, probe, read_frames, read_waveform
from vatt.media.pictures import SizeRule, own_size
from vatt.media.source import MediaSource
from vatt.preprocess.view import evaluation_size
from vatt.preprocess.windows import evaluation_windows, looped


def evaluation_crops(height: int, width: int, size: int, count: int) -> list[tuple[int, int]]:
    """Positions of square crops in a picture whose shorter side is `size` pixels.

    Args:
        height: Height of the picture in pixels.
        width: Width of the picture in pixels.
        size: Side of the squares in pixels.
        count: Number of crops: 1 (the middle), or 3 (start, middle and end of the longer side).

    Returns:
        Top and left pixel of each crop.

    Raises:
        UserError: the number of crops is not 1 or 3, or the shorter side is not `size`.

    Source: official code, evaluation with several crops: the middle one of three starts at
    length / 2 - size // 2, half to even; a single one at (length - size) // 2.
    """
    if count not in (1, 3):
        raise UserError(f"evaluation takes 1 or 3 crops, got {count}")
    if min(height, width) != size:
        raise ValueError(
            f"crops of {size} pixels need pictures with that shorter side, got {height}×{width}"
        )
    length = max(height, width)
    if count == 1:
        offsets = [(length - size) // 2]
    else:
        offsets = [0, round(length / 2 - size // 2), length - size]
    return [(offset, 0) if height >= width else (0, offset) for offset in offsets]


def read_video_views(
    source: MediaSource,
    video: VideoGeometry,
    *,
    num_windows: int = 4,
    num_crops: int = 3,
    stride: int = 2,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Tensor:
    """Reads all video views of a file, or of a part of it.

    Each window is decoded once for all its crops. A video shorter than a window is decoded once and
    looped; an image is repeated.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        video: Number of frames, frame rate and size. The official evaluation takes 32 frames at
            12.5 frames/s: every second frame of 25.
        num_windows: Number of windows, evenly spread.
        num_crops: Crops of each window, 1 or 3. Whole pictures, of models without `image_size`, are
            not cropped.
        stride: Distance of the frames to read, in frames of the base rate `video.frame_rate` ×
            stride.
        start_seconds: Start of the part, from the start of the file.
        end_seconds: End of the part; the end of the file if None or later.

    Returns:
        uint8 `[num_windows × num_crops, T, H, W, C]`, H = W = `video.image_size`; the crops of a
        window follow each other. Without `image_size`: `[num_windows, T, H, W, C]`, of the file's
        size.

    Raises:
        MediaError: the file is unreadable, damaged in one of the windows, has no picture, or ends
            before the part starts.
        UserError: the number of windows, number of crops or stride is invalid.
    """
    base_rate, info = video.frame_rate * stride, probe(source)
    part_seconds = _part_seconds(info, start_seconds, end_seconds)
    num_available = max(1, round(part_seconds * base_rate))
    window = video.num_frames * stride
    starts = evaluation_windows(num_available, window, num_windows)
    size = video.image_size
    read = partial(read_frames, source, size_rule=_size_rule(info, size))
    if num_available >= window:
        clips = [
            read(
                start_seconds=start_seconds + start / base_rate,
                num_frames=video.num_frames,
                frame_rate=video.frame_rate,
            )[0]
            for start in starts
        ]
    else:
        whole, _ = read(start_seconds=start_seconds, num_frames=num_available, frame_rate=base_rate)
        clips = [whole[looped(num_available, video.num_frames, stride)]] * num_windows
    if size is None:
        return torch.stack(clips)
    return torch.cat([_cut_crops(clip, size, num_crops) for clip in clips])


def read_audio_views(
    source: MediaSource,
    audio: AudioGeometry,
    *,
    num_windows: int = 4,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
) -> Tensor:
    """Reads all audio windows of a file, or of a part of it; shorter sounds are looped.

    A model that fills short windows itself gets a shorter sound as it is.

    Args:
        source: Path, http(s) URL, bytes, `FileRange` or binary file object.
        audio: Number of samples and their rate.
        num_windows: Number of windows, evenly spread.
        start_seconds: Start of the part, from the start of the file.
        end_seconds: End of the part; the end of the file if None or later.

    Returns:
        float32 `[num_windows, S]`, in about [-1, 1]. S is less for a shorter sound if the geometry
        is not padded.

    Raises:
        MediaError: the file is unreadable, damaged in one of the windows, has no sound, or ends
            before the part starts.
        UserError: the number of windows is invalid.
    """
    rate, window = audio.sample_rate, audio.num_samples
    part_seconds = _part_seconds(probe(source), start_seconds, end_seconds)
    num_available = max(1, round(part_seconds * rate))
    starts = evaluation_windows(num_available, window, num_windows)
    is_padded = not isinstance(audio, AudioWindow) or audio.is_padded
    if num_available < window:
        starts = [0]
    rows = []
    for start in starts:
        waveform, _ = read_waveform(
            source,
            start_seconds=start_seconds + start / rate,
            num_samples=min(window, num_available),
            sample_rate=rate,
        )
        if is_padded:
            waveform = waveform.repeat(math.ceil(window / len(waveform)))[:window]
        rows.append(waveform)
    return torch.stack(rows).expand(num_windows, -1)


def _size_rule(info: MediaInfo, size: int | None) -> SizeRule:
    """Size of a picture before it is cropped; whole ones have the same size in all windows."""
    if size is not None:
        return partial(evaluation_size, size=size)
    if info.width is None or info.height is None:  # no picture, which its reader refuses
        return own_size
    whole = info.width, info.height
    return lambda width, height: whole


def _part_seconds(info: MediaInfo, start_seconds: float, end_seconds: float | None) -> float:
    """Length of a part of a file, up to the end of the file; not positive if it starts later."""
    if end_seconds is None:
        return info.duration_seconds - start_seconds
    return min(end_seconds, info.duration_seconds) - start_seconds


def _cut_crops(frames: Tensor, size: int, count: int) -> Tensor:
    """Squares of pictures `[T, H, W, C]`: `[count, T, size, size, C]`."""
    height, width = frames.shape[1:3]
    corners = evaluation_crops(height, width, size, count)
    return torch.stack([frames[:, top : top + size, left : left + size] for top, left in corners])
