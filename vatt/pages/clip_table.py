"""Clips and the captions found for them, as files, a csv table and a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vatt.media.write_mp4 import AAC_SAMPLE_RATES, write_mp4
from vatt.pages.pictures import encode_png, paint_shares, paint_sound
from vatt.pages.templates import Tile, write_html
from vatt.system.csv_rows import write_rows
from vatt.system.files import write_atomically

NUM_RETRIEVED = 5  # captions shown for a clip
STRIP_FRAMES = 8
STRIP_HEIGHT = 96  # pixels, or nearly
MAP_PIXELS = 512  # of a heat map, or nearly
GAP = 2  # white pixels between frames
COLUMNS = (
    *("clip", "caption", "frames", "video", "sound", "place"),
    *(f"{what} {n}" for n in range(1, NUM_RETRIEVED + 1) for what in ("found", "score")),
)

Cell = str | int | float | Path | None


@dataclass(frozen=True, kw_only=True)
class MediaRow:
    """Clip as the model gets it, with the captions that the model finds for its picture.

    Args:
        key: Name of the clip.
        frames: uint8 `[T, H, W, 3]` on the CPU. None: the clip has no picture.
        sound: float `[S]` in [-1, 1], or a log-mel spectrogram in [0, 1] `[M, F]`; None: no sound.
        caption: First caption of the clip; None: it has none.
        found: Found captions with similarities, best first; empty if nothing was searched.
        place: Rank of the clip's caption, from 1. None: it has no caption, or nothing was searched.
    """

    key: str
    frames: Tensor | None
    sound: Tensor | None
    caption: str | None
    found: tuple[tuple[str, float], ...] = ()
    place: int | None = None


def write_media(
    folder: Path,
    rows: Sequence[MediaRow],
    maps: Mapping[str, Tensor],
    *,
    frame_rate: float,
    sample_rate: int,
) -> tuple[list[list[Cell]], dict[str, Path]]:
    """Writes `clips.csv`, `index.html` and the pictures that they name.

    Args:
        folder: Created if missing.
        rows: Clips.
        maps: Similarities by title, float `[n, m]`; matches are on the diagonal.
        frame_rate: Frames per second.
        sample_rate: Sample rate of waveforms in Hz.

    Returns:
        Cells of the table, with the columns `COLUMNS`, and heat maps by title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        _write_row(folder, number, row, frame_rate, sample_rate) for number, row in enumerate(rows)
    ]
    pictures, figures = {}, []
    for title, similarity in maps.items():
        pictures[title] = folder / f"{title.replace(' ', '-')}.png"
        write_atomically(pictures[title], encode_png(paint_map(similarity)))
        span = f"cosine {similarity.min():.2f} (dark) to {similarity.max():.2f} (light)"
        note = f"{title}: {span}, the right answers on the diagonal"
        figures.append((note, pictures[title].name))
    lines = [[c.name if isinstance(c, Path) else c for c in line] for line in cells]
    write_rows(folder / "clips.csv", [COLUMNS, *lines])
    write_html(
        folder / "index.html",
        "clips.html",
        title="Validation clips",
        about="The captions found for each clip's picture, and the rank of its own.",
        policy=None,  # the pictures are files beside the page
        width=34,
        query=None,
        clips=[_tile(*line) for line in lines],
        figures=figures,
    )
    return cells, pictures


def _tile(
    key: Any, caption: Any, strip: Any, video: Any, sound: Any, place: Any, *found: Any
) -> Tile:
    pairs = zip(found[::2], found[1::2], strict=True)
    lines = [(text, f"{score:.2f}") for text, score in pairs if text is not None]
    if caption is not None:
        lines.insert(0, (f"“{caption}”", ""))
    return Tile(
        name=key,
        value="" if place is None else f"rank {place}",
        video=video or "",
        pictures=[picture for picture in (strip, sound) if picture],
        lines=lines,
    )


def paint_strip(frames: Tensor) -> np.ndarray:
    """Paints up to 8 frames side by side.

    Args:
        frames: uint8 `[T, H, W, 3]`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    chosen = torch.linspace(0, len(frames) - 1, min(len(frames), STRIP_FRAMES)).round().long()
    pixels = frames[chosen].permute(0, 3, 1, 2).float()
    scale = STRIP_HEIGHT / frames.shape[1]
    mode = "area" if scale < 1 else "nearest-exact"
    scaled = functional.interpolate(pixels, scale_factor=scale, mode=mode)
    framed = functional.pad(scaled, (0, GAP), value=255.0).permute(2, 0, 3, 1)
    strip = framed.reshape(framed.shape[0], -1, 3)[:, :-GAP]
    return strip.round().to(torch.uint8).numpy()


def paint_map(similarity: Tensor) -> np.ndarray:
    """Paints a heat map: low values dark, high values light.

    Args:
        similarity: float `[n, m]`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    low, high = similarity.min(), similarity.max()
    share = (similarity - low) / (high - low).clamp_min(1e-12)
    return paint_shares(share.numpy(), max(1, MAP_PIXELS // max(similarity.shape)))


def _write_row(
    folder: Path, number: int, row: MediaRow, frame_rate: float, sample_rate: int
) -> list[Cell]:
    strip = video = sound = None
    if row.frames is not None:
        strip, video = folder / f"clip-{number}-frames.png", folder / f"clip-{number}.mp4"
        write_atomically(strip, encode_png(paint_strip(row.frames)))
        height, width = (size // 2 * 2 for size in row.frames.shape[1:3])  # as H.264 wants them
        waveform = None  # where the format cannot carry it
        if row.sound is not None and row.sound.ndim == 1 and sample_rate in AAC_SAMPLE_RATES:
            waveform = row.sound.float()
        pixels = row.frames[:, :height, :width]
        write_mp4(video, pixels, frame_rate, waveform=waveform, sample_rate=sample_rate)
    if row.sound is not None:
        sound = folder / f"clip-{number}-sound.png"
        write_atomically(sound, encode_png(paint_sound(row.sound, sample_rate)))
    found: list[Cell] = [value for pair in row.found for value in pair]
    found += [None] * (2 * NUM_RETRIEVED - len(found))
    return [row.key, row.caption, strip, video, sound, row.place, *found]
