"""Sources of users: frames and waveforms as arrays, besides files, URLs and bytes."""

import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from vatt.batch import described
from vatt.config.geometry import VideoGeometry
from vatt.errors import MediaError, UserError
from vatt.media.clip import Clip, probe
from vatt.media.folder import names_media
from vatt.media.pictures import scaled_size
from vatt.media.source import FileRange, MediaSource, source_name
from vatt.media.streams import TIME_TOLERANCE_SECONDS
from vatt.preprocess.view import cut_view

MAX_CHANNELS = 8  # 7.1; more rows than that are clips, or samples before channels
WAV_HEADER_BYTES = 44
MAX_WAV_BYTES = 2**32 - 1  # its sizes are 32-bit numbers
MOST_AXES = {"video": 4, "audio": 2, "text": 0}  # of one array; more are a batch
Source = MediaSource | Tensor | NDArray[Any]


@dataclass(frozen=True)
class Frames:
    """Pictures in memory.

    Args:
        pictures: uint8 `[T, H, W, 3]`.
        frame_rate: Frames per second; irrelevant for a single picture, which is a still image.
    """

    pictures: Tensor
    frame_rate: float

    @property
    def duration_seconds(self) -> float:
        """Length in seconds; 0 for a still image, as for files."""
        return 0.0 if len(self.pictures) == 1 else len(self.pictures) / self.frame_rate

    def read(self, start_seconds: float, video: VideoGeometry) -> Clip:
        """Reads a window; as in files, the last frame at or before each time is used."""
        order = torch.arange(video.num_frames, dtype=torch.float64)  # float32 is too coarse
        times = start_seconds + order / video.frame_rate
        places = ((times + TIME_TOLERANCE_SECONDS) * self.frame_rate).floor().long()
        still = len(self.pictures) == 1
        covered = 1.0 if still else float((places < len(self.pictures)).float().mean())
        chosen, where = places.clamp(max=len(self.pictures) - 1).unique(return_inverse=True)
        frames = self.pictures[chosen]
        if video.image_size is not None:
            frames = cut_view(_scaled(frames, video.image_size), video.image_size)
        return Clip(
            video=frames[where],
            audio=None,
            video_coverage=covered,
            audio_coverage=0.0,
            start_seconds=start_seconds,
        )


@dataclass(frozen=True)
class Dubbed:
    """A video whose sound is in another file.

    Args:
        video: Media of the picture.
        audio: Media of the sound, which begins with the picture.
    """

    video: "Media"
    audio: "Media"


Media = MediaSource | Frames | Dubbed


def read_duration(media: Media) -> float:
    """Length of media in seconds; 0 for a still image.

    Raises:
        MediaError: the file is unreadable, or has neither picture nor sound.
    """
    if isinstance(media, Dubbed):
        return max(read_duration(media.video), read_duration(media.audio))
    return media.duration_seconds if isinstance(media, Frames) else probe(media).duration_seconds


def each_source(sources: Any, modality: str) -> Iterable[Any]:
    """Iterator over the sources in an argument.

    Args:
        sources: One source, a list or generator of sources, or a batch of arrays.
        modality: `video`, `audio` or `text`.

    Raises:
        TypeError: the argument is neither a source nor several sources.
    """
    if is_one_source(sources, modality):
        return [sources]
    if isinstance(sources, Iterable) and not isinstance(sources, dict):
        return sources
    kinds = "str" if modality == "text" else "paths, URLs, bytes, files, arrays"
    what = "texts" if modality == "text" else "sources"
    raise TypeError(f"{what} are {kinds} or a list of these, got {type(sources).__name__}")


def is_one_source(sources: Any, modality: str) -> bool:
    """Whether an argument is one source of a modality, not a list, a generator or a batch."""
    if isinstance(sources, Tensor | np.ndarray):
        return sources.ndim <= MOST_AXES[modality]
    return _is_media(sources) or is_pair(sources)


def modality_of(
    source: Any, modalities: Sequence[str], frame_rate: float | None, sample_rate: float | None
) -> str:
    """Modality by which a model encodes a source whose modality is not named.

    Args:
        source: Text, media, array, or sound with its sample rate. A str is a text unless it is a
            URL, or names a file or something with the extension of a media file.
        modalities: `video` and `audio`, as far as the model has them, the preferred one first.
        frame_rate: Frames per second of arrays of pictures; None: there are none.
        sample_rate: Sample rate of arrays of sound in Hz; None: there are none.

    Returns:
        `text`, or that part of the file which the model takes: its picture before its sound.

    Raises:
        UserError: an array may be of either modality.
        TypeError: the argument is no source.
    """
    if isinstance(source, Tensor | np.ndarray):
        if (frame_rate is None) == (sample_rate is None):
            raise UserError(
                'an array may be pictures or sound: add modality="video" or modality="audio"'
            )
        return "audio" if frame_rate is None else "video"
    if is_pair(source):
        return "audio"
    _expect_media(source)
    if isinstance(source, str) and not names_media(source):
        return "text"
    try:
        info = probe(source, quick=True)
    except MediaError:  # which encoding will report
        return next(iter(modalities), "video")
    has = {"video": info.has_video, "audio": info.has_audio}
    known = [modality for modality in modalities if has[modality]]
    return next(iter(known), "video" if info.has_video else "audio")


def _is_media(source: Any) -> bool:
    media = isinstance(source, str | bytes | os.PathLike | FileRange)
    return media or hasattr(source, "read")


def _expect_media(source: Any) -> None:
    if not _is_media(source):
        raise TypeError(
            f"a source is a path, URL, bytes, file or array, got {type(source).__name__}"
        )


def is_pair(source: Any) -> bool:
    """Whether a source is sound as torchaudio loads it, or as Gradio gives it."""
    if not isinstance(source, tuple) or len(source) != 2:
        return False
    return any(isinstance(one, Tensor | np.ndarray) for one in source) and any(
        isinstance(one, int) for one in source
    )


def clip_of_pictures(sources: Any, frame_rate: float | None) -> Any:
    """The sources, or one video `[T, H, W, 3]` if they are a list of pictures with a frame rate.

    Raises:
        UserError: the pictures have several shapes.
    """
    is_list = isinstance(sources, list | tuple) and frame_rate is not None and len(sources) > 0
    if not is_list or any(getattr(picture, "ndim", 0) != 3 for picture in sources):
        return sources
    pictures = [torch.as_tensor(picture) for picture in sources]
    shapes = sorted({tuple(picture.shape) for picture in pictures})
    if len(shapes) > 1:
        raise UserError(
            f"the pictures of one video must have one shape, got {shapes[0]} and {shapes[1]}; "
            "still images have no frame_rate="
        )
    return torch.stack(pictures)


def video_media(source: Source, frame_rate: float | None) -> Media:
    """Media from which windows of video are read.

    Args:
        source: Media, or uint8 `[T, H, W, 3]`, or `[H, W, 3]` for an image.
        frame_rate: Frames per second of an array `[T, H, W, 3]`.

    Raises:
        UserError: the array is not a video, or its frame rate is missing.
    """
    if not isinstance(source, Tensor | np.ndarray):
        return rewindable(source)
    array = torch.as_tensor(source).detach().cpu()
    if array.dtype != torch.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise UserError(
            "a video array is uint8 [T, H, W, 3] in 0…255, an image [H, W, 3], got "
            f"{described(array)}: convert it, or permute its axes"
        )
    if not array.numel():
        raise UserError(f"a video array needs at least one picture, got {described(array)}")
    if array.ndim == 3:
        return Frames(array[None], 1.0)
    if frame_rate is None or not 0 < frame_rate < math.inf:
        raise UserError(
            "a video array needs frame_rate=, its frames per second as a positive number, got "
            f"{frame_rate}"
        )
    return Frames(array, float(frame_rate))


def audio_media(source: Source, sample_rate: float | None) -> Media:
    """Media from which windows of audio are read; an array becomes a WAV file in memory.

    The array then goes through the reader and resampler of files, so its windows are identical to
    those of a file; the phase of the resampler depends on the start of a window.

    Args:
        source: Media, or float `[S]` or `[channels, S]` in [-1, 1]; channels are averaged. A pair
            of an array and its sample rate, in either order, is also accepted.
        sample_rate: Sample rate of an array in Hz.

    Raises:
        UserError: the array is not a waveform, or its sample rate is missing.
        MediaError: the array has values that are not finite.
    """
    pair: Any = source
    if is_pair(pair):
        source, sample_rate = pair if isinstance(pair[1], int) else pair[::-1]
    if not isinstance(source, Tensor | np.ndarray):
        return rewindable(source)
    array = torch.as_tensor(source).detach().cpu()
    axes_fit = array.ndim == 1 or (array.ndim == 2 and 0 < len(array) <= MAX_CHANNELS)
    if not array.is_floating_point() or not axes_fit or not array.numel():
        raise UserError(
            f"an audio array is float [S] or [channels ≤ {MAX_CHANNELS}, S] in [-1, 1], got "
            f"{described(array)}: scale whole numbers, transpose, or give several as a list"
        )
    if sample_rate is None or sample_rate < 1 or sample_rate != int(sample_rate):
        raise UserError(
            "an audio array needs sample_rate=, its samples per second as a whole number, got "
            f"{sample_rate}"
        )
    if not bool(array.isfinite().all()):
        reason = "holds NaN or infinite values: find out where they come from, or leave it out"
        raise MediaError(f"<{described(array)}>", reason)
    return _wav(array.float().mean(dim=0) if array.ndim == 2 else array.float(), int(sample_rate))


def _wav(waveform: Tensor, sample_rate: int) -> bytes:
    """A mono file of 32-bit floats."""
    size = 4 * len(waveform)
    if size + WAV_HEADER_BYTES > MAX_WAV_BYTES:
        raise UserError(f"an audio array of {len(waveform)} samples is too long: give it as file")
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", WAV_HEADER_BYTES - 8 + size, b"WAVE"),
        *(b"fmt ", 16, 3, 1, sample_rate, 4 * sample_rate, 4, 32),  # 3: floats; 1 channel
        *(b"data", size),
    )
    return header + waveform.numpy().astype("<f4").tobytes()


def rewindable(source: Any) -> MediaSource:
    """The source, or the content of a stream that can be read only once.

    Raises:
        TypeError: the argument is no source.
    """
    _expect_media(source)
    if hasattr(source, "read") and not getattr(source, "seekable", lambda: True)():
        return source.read()
    return source


def _scaled(frames: Tensor, image_size: int) -> Tensor:
    """Pictures with this shorter side, scaled by FFmpeg like those of files."""
    height, width = frames.shape[1:3]
    if min(height, width) == image_size:
        return frames
    to_width, to_height = scaled_size(width, height, image_size)
    scaler = VideoReformatter()
    scaled = [
        scaler.reformat(
            VideoFrame.from_ndarray(frame, format="rgb24"),
            *(to_width, to_height, "rgb24"),
            interpolation=Interpolation.AREA,
            threads=1,
        ).to_ndarray()
        for frame in frames.contiguous().numpy()
    ]
    return torch.from_numpy(np.stack(scaled))


def name_of(source: Source | Media) -> str:
    """Name of a source in messages."""
    if isinstance(source, Dubbed):
        return name_of(source.video)
    pair: Any = source.pictures if isinstance(source, Frames) else source
    array = (pair[0] if isinstance(pair[1], int) else pair[1]) if is_pair(pair) else pair
    if isinstance(array, Tensor | np.ndarray):
        return f"<{described(torch.as_tensor(array))}>"
    return source_name(array)
