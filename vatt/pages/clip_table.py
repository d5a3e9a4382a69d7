"""Clips and the captions found for them: pictures, a CSV file, and a page that shows both."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vatt.media.write_mp4 import AAC_SAMPLE_RATES, write_mp4
from vatt.pages.pictures import colour, encode_png, loudness
from vatt.system.files import write_atomically

NUM_RETRIEVED = 5  # captions shown for a clip
STRIP_FRAMES = 8
STRIP_HEIGHT = 96  # pixels, or nearly
SOUND_SCALE = 2  # pixels for each band and column of a spectrogram
MAP_PIXELS = 512  # of a heat map, or nearly
GAP = 2  # white pixels between frames
COLUMNS = (
    *("clip", "caption", "frames", "video", "sound", "place"),
    *(f"{what} {n}" for n in range(1, NUM_RETRIEVED + 1) for what in ("found", "score")),
)

# Dark to light, in order without colours, too. Source: five points of matplotlib's viridis.
COLOURS = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=np.float64
)

Cell = str | int | float | Path | None


@dataclass(frozen=True, kw_only=True)
class MediaRow:
    """A clip as the model gets it, and the captions that the model finds for its picture.

    Args:
        key: Name of the clip.
        frames: uint8 `[T, H, W, 3]` on the CPU; None: the clip has no picture.
        sound: float `[S]` in [-1, 1], or a log-mel spectrogram in [0, 1] `[M, F]`; None: no sound.
        caption: First caption of the clip; None: it has none.
        found: Captions and their similarities, best first; empty: nothing was searched.
        place: Rank of the clip's caption, from 1; None: it has none, or nothing was searched.
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
        rows: The clips.
        maps: Similarities by title, float `[n, m]`; the right answers are on the diagonal.
        frame_rate: Frames per second.
        sample_rate: Hz, of the waveforms.

    Returns:
        The cells of the table, under `COLUMNS`, and the heat maps by title.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = [
        _write_row(folder, number, row, frame_rate, sample_rate) for number, row in enumerate(rows)
    ]
    pictures = {}
    for title, similarity in maps.items():
        pictures[title] = folder / f"{title.replace(' ', '-')}.png"
        write_atomically(pictures[title], encode_png(paint_map(similarity)))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(COLUMNS)
    writer.writerows([[c.name if isinstance(c, Path) else c for c in line] for line in cells])
    write_atomically(folder / "clips.csv", table.getvalue().encode())
    write_atomically(folder / "index.html", _page(cells, pictures, maps).encode())
    return cells, pictures


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


def paint_sound(sound: Tensor, sample_rate: int) -> np.ndarray:
    """Paints a spectrogram, low notes below, the louder the lighter.

    Args:
        sound: float `[S]`, or a log-mel spectrogram in [0, 1] `[M, F]`.
        sample_rate: Hz, of a waveform.

    Returns:
        uint8 `[height, width, 3]`.
    """
    if sound.ndim == 1:
        levels = loudness(sound.float(), sample_rate)
    else:
        levels = sound.float().T.flip(0).clamp(0, 1).numpy()
    return _paint(levels, SOUND_SCALE)


def paint_map(similarity: Tensor) -> np.ndarray:
    """Paints a heat map, the lowest value dark, the highest light.

    Args:
        similarity: float `[n, m]`.

    Returns:
        uint8 `[height, width, 3]`.
    """
    low, high = similarity.min(), similarity.max()
    share = (similarity - low) / (high - low).clamp_min(1e-12)
    return _paint(share.numpy(), max(1, MAP_PIXELS // max(similarity.shape)))


def _paint(shares: np.ndarray, scale: int) -> np.ndarray:
    pixels = colour(shares, COLOURS).round().astype(np.uint8)
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def _write_row(
    folder: Path, number: int, row: MediaRow, frame_rate: float, sample_rate: int
) -> list[Cell]:
    strip = video = sound = None
    if row.frames is not None:
        strip, video = folder / f"clip-{number}-frames.png", folder / f"clip-{number}.mp4"
        write_atomically(strip, encode_png(paint_strip(row.frames)))
        _write_video(video, row, frame_rate, sample_rate)
    if row.sound is not None:
        sound = folder / f"clip-{number}-sound.png"
        write_atomically(sound, encode_png(paint_sound(row.sound, sample_rate)))
    found: list[Cell] = [value for pair in row.found for value in pair]
    found += [None] * (2 * NUM_RETRIEVED - len(found))
    return [row.key, row.caption, strip, video, sound, row.place, *found]


def _write_video(path: Path, row: MediaRow, frame_rate: float, sample_rate: int) -> None:
    """Writes the frames, with the sound if the format can carry it."""
    assert row.frames is not None
    height, width = (size // 2 * 2 for size in row.frames.shape[1:3])  # H.264 needs even sizes
    waveform = None
    if row.sound is not None and row.sound.ndim == 1 and sample_rate in AAC_SAMPLE_RATES:
        waveform = row.sound.float()
    frames = row.frames[:, :height, :width]
    write_mp4(path, frames, frame_rate, waveform=waveform, sample_rate=sample_rate)


def _page(
    cells: Sequence[Sequence[Cell]],
    pictures: Mapping[str, Path],
    maps: Mapping[str, Tensor],
) -> str:
    columns = [c for c in COLUMNS if not c.startswith("score")]
    head = "".join(f"<th>{column}" for column in columns)
    lines = "".join(f"<tr>{_page_row(dict(zip(COLUMNS, line, strict=True)))}" for line in cells)
    figures = "".join(
        f"<figure><figcaption>{title}: cosine {maps[title].min():.2f} (dark) to "
        f"{maps[title].max():.2f} (light), the right answers on the diagonal</figcaption>"
        f'<img alt="" src="{path.name}"></figure>'
        for title, path in pictures.items()
    )
    style = (
        "body{font:14px sans-serif;margin:1em}th,td{text-align:left;padding:.4em;"
        "border-bottom:1px solid #ccc;vertical-align:top}video{height:96px}figure{margin:2em 0}"
        "figcaption{margin:.4em 0}"
    )
    return (
        '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="'
        'width=device-width"><title>Validation clips</title>'
        f"<style>{style}</style><table><tr>{head}{lines}</table>{figures}</html>\n"
    )


def _page_row(cells: Mapping[str, Cell]) -> str:
    shown = []
    for name, cell in cells.items():
        if isinstance(cell, Path):
            tag = "video controls loop" if cell.suffix == ".mp4" else "img alt=''"
            shown.append(f'<td><{tag} src="{cell.name}">{"</video>" if "video" in tag else ""}')
        elif name.startswith("score"):
            shown[-1] += "" if cell is None else f"<br>{cell:.2f}"
        else:
            shown.append(f"<td>{'' if cell is None else escape(str(cell))}")
    return "".join(shown)
