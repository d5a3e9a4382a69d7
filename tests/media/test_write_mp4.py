from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vatt.media.write_mp4 import write_mp4

NUM_FRAMES, HEIGHT, WIDTH = 30, 48, 64


def moving_bar() -> np.ndarray:
    """A white bar that goes right by one pixel a frame: uint8 [T, H, W, C]."""
    frames = np.full((NUM_FRAMES, HEIGHT, WIDTH, 3), 60, np.uint8)
    for t in range(NUM_FRAMES):
        frames[t, :, t : t + 8] = 220
    return frames


def decode_frames(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def decode_sound(path: Path) -> tuple[np.ndarray, float]:
    """Waveform [S] and the time of its first sample in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].time is not None
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].time


def test_a_written_file_shows_the_same_frames_at_the_same_times(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(), 25)
    decoded = decode_frames(tmp_path / "a.mp4")
    assert [frame.time for frame in decoded] == [t / 25 for t in range(NUM_FRAMES)]
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in decoded])
    assert np.abs(pictures.astype(float) - moving_bar()).mean() < 3


def test_a_fractional_frame_rate_is_kept(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(), 30000 / 1001)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    sound = np.sin(np.arange(19_200) * 0.05).astype(np.float32)
    path, contents = tmp_path / "a.mp4", set()
    for _ in range(25):  # x264's default settings fail this about once in three times
        write_mp4(path, moving_bar(), 25, waveform=sound, sample_rate=16_000)
        contents.add(path.read_bytes())
    assert len(contents) == 1


def test_tensors_are_written_as_arrays_are(tmp_path: Path) -> None:
    sound = np.zeros(16_000, np.float32)
    write_mp4(tmp_path / "a", moving_bar(), 25, waveform=sound, sample_rate=16_000)
    tensors = torch.from_numpy(moving_bar()), torch.from_numpy(sound)
    write_mp4(tmp_path / "b", tensors[0], 25, waveform=tensors[1], sample_rate=16_000)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("distance", [6, 12])
def test_key_frames_are_no_further_apart_than_asked(tmp_path: Path, distance: int) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(), 25, key_frame_distance=distance)
    keys = [t for t, frame in enumerate(decode_frames(tmp_path / "a.mp4")) if frame.key_frame]
    assert max(np.diff([*keys, NUM_FRAMES])) <= distance


def test_a_better_quality_makes_a_larger_file(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for quality in (18, 40):
        write_mp4(tmp_path / f"{quality}", noise, 25, quality=quality)
    assert (tmp_path / "18").stat().st_size > 2 * (tmp_path / "40").stat().st_size


@pytest.mark.parametrize("sample_rate", [16_000, 22_050, 32_000, 44_100])
def test_sound_is_heard_at_the_sample_where_it_was_put(tmp_path: Path, sample_rate: int) -> None:
    waveform = np.random.default_rng(0).normal(0, 0.003, sample_rate).astype(np.float32)
    burst = np.sin(np.arange(sample_rate // 10) * 2 * np.pi * 900 / sample_rate) * 0.5
    waveform[sample_rate // 2 :][: burst.size] += burst.astype(np.float32)
    path = tmp_path / "a.mp4"
    write_mp4(path, moving_bar(), 25, waveform=waveform, sample_rate=sample_rate)
    decoded, start_seconds = decode_sound(path)
    lags = np.arange(-1500, 1500)
    match = [np.dot(decoded[sample_rate // 2 + lag :][: burst.size], burst) for lag in lags]
    assert lags[np.argmax(match)] + round(start_seconds * sample_rate) == 0


def test_a_file_without_sound_has_no_sound_stream(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", moving_bar(), 25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert not container.streams.audio


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.zeros((4, 48, 64, 3), np.float32)}, r"frames must be uint8 .* float32"),
        ({"frames": np.zeros((4, 48, 64), np.uint8)}, r"frames must be .* \(4, 48, 64\)"),
        ({"frames": np.zeros((0, 48, 64, 3), np.uint8)}, r"frames must be .* \(0, 48, 64, 3\)"),
        ({"frames": np.zeros((4, 47, 64, 3), np.uint8)}, "even .* 47×64"),
        ({"waveform": np.zeros((2, 900), np.float32)}, r"waveform must be .* \(2, 900\)"),
        ({"waveform": np.zeros(900, np.int16)}, "waveform must be float .* int16"),
        ({"waveform": np.zeros(900, np.float32), "sample_rate": None}, "sample_rate .* None"),
        ({"waveform": np.zeros(900, np.float32), "sample_rate": 1234}, "sample_rate .* 1234"),
    ],
)
def test_what_cannot_be_encoded_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    arguments = {"frames": moving_bar(), "frame_rate": 25, "sample_rate": 16_000, **changes}
    with pytest.raises(ValueError, match=message):
        write_mp4(tmp_path / "a.mp4", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "a.mp4"
    with pytest.raises(FileNotFoundError) as caught:
        write_mp4(path, moving_bar(), 25)
    assert str(path) in str(caught.value)
