"""Checks of a model's raw inputs; each error says what was expected and what was found."""

import warnings

import torch
from torch import Tensor

from vatt.batch import described

RANGE_TOLERANCE = 0.01  # rounding of bfloat16


def expect_video(video: Tensor, patch_size: tuple[int, ...]) -> None:
    """Raises ValueError unless `video` is `[B, T, H, W, 3]` and patches divide it exactly."""
    expect_tensor("video", video)
    wanted = "video must be uint8 or float [B, T, H, W, 3]"
    if video.ndim != 5 or video.shape[-1] != 3 or not is_raw(video, torch.uint8):
        raise ValueError(f"{wanted}, got {described(video)}")
    if any(size == 0 or size % p for size, p in zip(video.shape[1:4], patch_size, strict=True)):
        raise ValueError(
            f"{wanted} with T, H, W multiples of the patch {patch_size}, got {described(video)}"
        )


def expect_range(video: Tensor, training: bool) -> None:
    """Refuses float pictures outside [-1, 1], and warns of those that seem to be in [0, 1].

    Values are always read on the CPU, on other devices, which this makes wait, in evaluation only,
    and never in a trace or a captured graph.

    Args:
        video: Pictures of any shape.
        training: Whether the model is in training mode.

    Raises:
        ValueError: floats are outside [-1, 1].
    """
    if not isinstance(video, Tensor) or not video.is_floating_point() or not _is_readable(video):
        return
    if training and video.device.type != "cpu":
        return
    low, high = (float(value) for value in video.detach().aminmax())
    if low < -1 - RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"float video must be in [-1, 1], got {low:g} to {high:g}: give uint8 pictures, or "
            "scale, video / 127.5 - 1 from 0…255 (after resizing also .clamp(-1, 1))"
        )
    if low >= 0 and high > 0:
        warnings.warn(
            "float video is expected in [-1, 1], got values in [0, 1] only: scale them, "
            "video * 2 - 1, or give uint8 pictures",
            stacklevel=3,  # the caller of encode_video
        )


def _is_readable(value: Tensor) -> bool:
    """Whether a tensor has values now: it is not of a trace, a graph or the meta device."""
    if type(value) not in (Tensor, torch.nn.Parameter) or value.is_meta or not value.numel():
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False
    return not (value.is_cuda and torch.cuda.is_current_stream_capturing())


def expect_image(image: Tensor) -> None:
    """Raises ValueError unless `image` is `[B, H, W, 3]`."""
    expect_tensor("image", image)
    if image.ndim != 4 or image.shape[-1] != 3 or not is_raw(image, torch.uint8):
        raise ValueError(f"image must be uint8 or float [B, H, W, 3], got {described(image)}")


def expect_waveform(audio: Tensor, patch_size: int) -> None:
    """Raises ValueError unless `audio` is `[B, S]` and patches divide it exactly."""
    expect_tensor("audio", audio)
    if audio.ndim != 2 or not is_raw(audio) or audio.shape[1] == 0 or audio.shape[1] % patch_size:
        raise ValueError(
            f"audio must be float [B, S] with S a multiple of the patch {patch_size}, "
            f"got {described(audio)}"
        )


def expect_spectrogram(audio: Tensor, patch_size: tuple[int, ...], hop_samples: int) -> None:
    """Raises ValueError unless `audio` is a waveform or log-mel of at least one patch."""
    expect_tensor("audio", audio)
    waveform_samples = (patch_size[0] - 1) * hop_samples + 1  # the windows of one patch
    smallest = (waveform_samples,) if audio.ndim == 2 else patch_size
    if (
        audio.ndim not in (2, 3)
        or not is_raw(audio)
        or any(size < least for size, least in zip(audio.shape[1:], smallest, strict=True))
    ):
        raise ValueError(
            f"audio must be a float waveform [B, S >= {waveform_samples}] or log-mel spectrogram "
            f"[B, M >= {patch_size[0]}, F >= {patch_size[1]}], got {described(audio)}"
        )


def expect_text(ids_BJ: Tensor, max_words: int) -> None:
    """Raises ValueError unless `ids_BJ` are word ids and not longer than the model's captions."""
    expect_tensor("text", ids_BJ)
    if ids_BJ.ndim != 2 or ids_BJ.dtype != torch.int64 or ids_BJ.shape[1] > max_words:
        raise ValueError(f"text must be int64 [B, J ≤ {max_words}], got {described(ids_BJ)}")


def expect_ids(lowest: int, highest: int, vocab_size: int) -> None:
    """Raises ValueError unless the vocabulary has all ids from `lowest` to `highest`."""
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"text id {wrong} is outside the vocabulary of {vocab_size}")


def is_raw(value: Tensor, *also: torch.dtype) -> bool:
    """Whether a tensor has a valid dtype: floating point, or one of `also`."""
    return value.is_floating_point() or value.dtype in also


def expect_tensor(name: str, value: object) -> None:
    """Raises ValueError unless `value` is a tensor."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
