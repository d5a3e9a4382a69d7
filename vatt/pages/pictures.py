"""Pictures, sound and points for the report, as data URIs and plain lists."""

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
import torch

from vatt.media.clip import MediaInfo, read_frames, read_waveform
from vatt.media.source import MediaSource
from vatt.pages.templates import data_uri

POSTER_SHORT_SIDE = 96  # pixels; 2–5 kB of JPEG
POSTER_QUANTISER = 4  # of JPEG: 2 is the best, 31 the worst
SPECTROGRAM_SIZE = (40, 128)  # bands, columns
SPECTROGRAM_RATE = 16_000  # Hz: up to 8 kHz
SPECTROGRAM_LOWEST = 80.0  # Hz
SPECTROGRAM_RANGE = 4.0  # natural logarithms below the loudest that still show: 35 dB
SILENCE = math.log(1e-2)  # logarithm of a spectrum's value: some 90 dB below the loudest tone
WINDOW = 1024  # samples, 64 ms: bands of 16 Hz

SOUND_SCALE = 2  # pixels for each band and column of a painted spectrogram

# Dark to light, in order without colours, too. Source: five points of matplotlib's viridis.
DARK_TO_LIGHT = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64
)

# Light to dark, one hue: the overlay of attention weights.
HEAT = np.array([(255, 196, 61), (255, 122, 26), (229, 38, 62)], dtype=np.float64)


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG file of uint8 pixels `[H, W, C]`, C = 3 for RGB, 4 for RGBA."""
    name = {3: "rgb24", 4: "rgba"}[pixels.shape[2]]
    return _encode(pixels, name, av.CodecContext.create("png", "w"), name)


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """JPEG file of uint8 RGB pixels `[H, W, 3]`."""
    encoder: Any = av.CodecContext.create("mjpeg", "w")
    encoder.qmin = encoder.qmax = POSTER_QUANTISER
    return _encode(pixels, "rgb24", encoder, "yuvj420p")  # with JPEG's own range of values


def _encode(pixels: np.ndarray, pixel_format: str, encoder: Any, encoded_format: str) -> bytes:
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt = encoded_format
    encoder.time_base = Fraction(1, 25)  # required, without meaning for a picture
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=pixel_format)
    packets = [*encoder.encode(frame.reformat(format=encoded_format)), *encoder.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def read_poster(source: MediaSource, info: MediaInfo) -> str:
    """Reads the frame at one third of a clip, as a JPEG data URI.

    Raises:
        MediaError: no frame can be read.
    """
    start = info.duration_seconds / 3
    frames, _ = read_frames(
        source, start_seconds=start, num_frames=1, frame_rate=1.0, short_side=POSTER_SHORT_SIDE
    )
    return data_uri(encode_jpeg(frames[0].numpy()), "image/jpeg")


def read_spectrogram(source: MediaSource, info: MediaInfo) -> str:
    """Reads the spectrogram of a clip as a PNG mask; alpha is loudness, bottom is low frequency.

    Raises:
        MediaError: no sound can be read.
    """
    num_samples = max(WINDOW, int(info.duration_seconds * SPECTROGRAM_RATE))
    waveform, _ = read_waveform(
        source, start_seconds=0.0, num_samples=num_samples, sample_rate=SPECTROGRAM_RATE
    )
    alpha = (255 * loudness(waveform)).astype(np.uint8)
    black = np.zeros_like(alpha)
    return data_uri(encode_png(np.stack([black, black, black, alpha], axis=-1)), "image/png")


def loudness(waveform: torch.Tensor, sample_rate: int = SPECTROGRAM_RATE) -> np.ndarray:
    """Spectrogram of a sound: 40 bands by up to 128 columns, the highest band first.

    Bands have equal widths in octaves. Values are in [0, 1], relative to the loudest.

    Args:
        waveform: float32 `[S]`.
        sample_rate: Hz.

    Returns:
        float32 `[bands, columns]`.
    """
    bands, columns = SPECTROGRAM_SIZE
    hop = max(1, math.ceil(len(waveform) / columns))
    padded = torch.nn.functional.pad(waveform, (0, max(0, WINDOW - len(waveform))))
    window = torch.hann_window(WINDOW)
    spectrum = torch.stft(padded, WINDOW, hop, window=window, return_complex=True).abs()
    nyquist = sample_rate / 2
    edges = np.geomspace(SPECTROGRAM_LOWEST, nyquist, bands + 1) / nyquist * (len(spectrum) - 1)
    rows = [
        spectrum[math.floor(low) : max(math.floor(low) + 1, math.ceil(high))].amax(dim=0)
        for low, high in pairwise(edges)
    ]
    level = (torch.stack(rows[::-1])[:, :columns] + 1e-6).log()
    loudest = level.max().clamp_min(SILENCE)
    return ((level - loudest) / SPECTROGRAM_RANGE + 1).clamp(0, 1).numpy()


def paint_sound(sound: torch.Tensor, sample_rate: int) -> np.ndarray:
    """Paints a spectrogram: low frequencies at the bottom, loud sounds light.

    Args:
        sound: Waveform float `[S]`, or log-mel spectrogram `[M, F]` in [0, 1].
        sample_rate: Sample rate of a waveform in Hz.

    Returns:
        uint8 `[height, width, 3]`.
    """
    if sound.ndim == 1:
        levels = loudness(sound.float(), sample_rate)
    else:
        levels = sound.float().T.flip(0).clamp(0, 1).numpy()
    return paint_shares(levels, SOUND_SCALE)


def paint_shares(shares: np.ndarray, scale: int) -> np.ndarray:
    """Paints each value as a square, dark to light: uint8 `[scale * n, scale * m, 3]`.

    Args:
        shares: float `[n, m]` in [0, 1].
        scale: Side of a square in pixels.
    """
    pixels = _colour(shares, DARK_TO_LIGHT).round().astype(np.uint8)
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _colour(shares: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours `[…, 3]` of shares in [0, 1] on a scale of evenly spaced colours `[points, 3]`."""
    points = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(shares, points, channel) for channel in colours.T], axis=-1)


def overlay_heat(attention: np.ndarray) -> list[str]:
    """Paints one small RGBA picture per time step, as data URIs, which the browser enlarges.

    Args:
        attention: float `[T, H, W]`, not negative.
    """
    strength = attention / max(float(attention.max()), 1e-12)
    alpha = 255 * strength[..., None] ** 0.8
    rgba = np.concatenate([_colour(strength, HEAT), alpha], axis=-1)
    return [data_uri(encode_png(picture), "image/png") for picture in rgba.round().astype(np.uint8)]


def project_to_plane(points: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """First two principal components of points, and the share of the variance in each.

    Args:
        points: float `[M, D]`, D ≥ 2.

    Returns:
        float64 `[M, 2]`, scaled by one factor so that the largest coordinate is 1, and two shares.
    """
    centred = torch.as_tensor(points, dtype=torch.float64)
    centred = centred - centred.mean(dim=0)
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    # A component's sign is arbitrary: with the largest weight positive, runs look alike.
    signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    plane = (centred @ (axes * signs)[:2].T).numpy()
    variance = (singular**2 / (singular**2).sum().clamp_min(1e-12)).tolist()
    return plane / max(float(np.abs(plane).max()), 1e-12), (variance[0], variance[1])
