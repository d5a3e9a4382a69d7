"""A small labelled set: colours to see and tones to hear, with an annotation file of each kind."""

import csv
import wave
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vatt.media.write_mp4 import write_mp4

COLORS = {"blue": (40, 60, 220), "green": (30, 200, 60), "red": (220, 50, 40)}
HERTZ = {"blue": 300.0, "green": 900.0, "red": 2_000.0}
FRAME_RATE, SAMPLE_RATE = 10.0, 8_000


def write_videos(folder: Path, per_class: int, *, seconds: float = 1.5) -> list[tuple[str, str]]:
    """Writes clips of each colour with its tone; file and label of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for label, color in COLORS.items():
        for number in range(per_class):
            name = f"{label}-{number}.mp4"
            draw = np.random.default_rng(len(rows))
            frames = np.empty((round(seconds * FRAME_RATE), 40, 48, 3), np.uint8)
            frames[:] = np.clip(np.array(color) + draw.integers(-25, 25, 3), 0, 255)
            sound = tone(label, seconds)
            write_mp4(folder / name, frames, FRAME_RATE, waveform=sound, sample_rate=SAMPLE_RATE)
            rows.append((name, label))
    return rows


def write_sounds(folder: Path, per_class: int, *, seconds: float = 1.0) -> list[tuple[str, str]]:
    """Writes tones; file and label of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for label in HERTZ:
        for number in range(per_class):
            name = f"{label}-{number}.wav"
            with wave.open(str(folder / name), "wb") as file:
                file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
                file.writeframes((tone(label, seconds) * 32_767).astype("<i2").tobytes())
            rows.append((name, label))
    return rows


def tone(label: str, seconds: float) -> np.ndarray:
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * HERTZ[label] * times)).astype(np.float32)


def write_csv(path: Path, header: Sequence[str] | None, rows: Iterable[Sequence[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        if header is not None:
            writer.writerow(header)
        writer.writerows(rows)
    return path
