"""Windows and crops of evaluation, against loops that say what the reference does."""

import io
import wave

import numpy as np
import pytest
import torch

from vatt.config.geometry import AudioConfig, AudioWindow, VideoConfig, VideoWindow
from vatt.errors import MediaError
from vatt.media.clip import probe, read_frames
from vatt.media.pictures import own_size
from vatt.media.write_mp4 import write_mp4
from vatt.preprocess.evaluation_views import (
    evaluation_crops,
    read_audio_views,
    read_video_views,
)
from vatt.preprocess.view import evaluation_size
from vatt.preprocess.windows import WindowPlan, evaluation_windows, looped

VIDEO = VideoConfig(num_frames=4, frame_rate=12.5, image_size=32, patch_size=(2, 8, 8))
AUDIO = AudioConfig(sample_rate=8_000, num_samples=1_024, patch_size=128)


@pytest.mark.parametrize("window", [1, 64])
def test_windows_are_those_of_a_loop_over_evenly_spread_starts(window):
    for available in range(1, 300):
        slack = max(0, available - window)
        assert evaluation_windows(available, window, 1) == [slack // 2]
        for count in range(2, 6):  # so few that float32 rounds no whole number down
            starts = [place * slack // (count - 1) for place in range(count)]
            assert evaluation_windows(available, window, count) == starts
        for count in (8, 10, 30):
            step, starts = np.float32(slack) / np.float32(count - 1), []
            for place in range(count - 1):
                starts.append(int(np.float32(place) * step))
            assert evaluation_windows(available, window, count) == [*starts, slack]


def test_windows_of_a_kinetics_clip_and_of_its_sound():
    assert evaluation_windows(250, 64, 4) == [0, 62, 124, 186]
    assert evaluation_windows(250, 64, 1) == [93]
    assert evaluation_windows(40, 64, 4) == [0, 0, 0, 0]
    assert evaluation_windows(480_000, 153_600, 4) == [0, 108_800, 217_600, 326_400]
    hours = evaluation_windows(2**25 + 3, 1, 3)  # more samples than float32 can count
    assert hours[-1] == 2**25 + 2
    video = VideoConfig(num_frames=64, frame_rate=25.0)
    plan = WindowPlan(video=video, audio=None, window_seconds=2.56, hop_seconds=2.56)
    assert plan.spread_starts(10.0, 4) == [0.0, 2.48, 4.96, 7.44]
    assert plan.spread_starts(0.0, 2) == [0.0]  # an image


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_windows_of_nothing_are_refused(numbers):
    with pytest.raises(ValueError, match="must be at least 1, got"):
        evaluation_windows(*numbers)


def test_a_short_sequence_is_looped_from_its_start():
    assert looped(5, 8, stride=2).tolist() == [0, 2, 4, 1, 3, 0, 2, 4]


def test_crops_are_start_middle_and_end_of_the_longer_side():
    for size in (7, 8, 32):
        for length in range(size, 3 * size):
            middle = length / 2 - size // 2
            middle = int(np.rint(np.float32(middle)))  # half to even
            along = [0, middle, length - size]
            assert evaluation_crops(size, length, size, 3) == [(0, left) for left in along]
            assert evaluation_crops(length, size, size, 3) == [(top, 0) for top in along]
            assert evaluation_crops(size, length, size, 1) == [(0, (length - size) // 2)]
    with pytest.raises(ValueError, match="1 or 3 crops, got 2"):
        evaluation_crops(32, 32, 32, 2)
    with pytest.raises(ValueError, match="shorter side, got 30×64"):
        evaluation_crops(30, 64, 32, 3)


def test_the_longer_side_is_rounded_down():
    assert evaluation_size(340, 256, 224) == (297, 224)
    assert evaluation_size(256, 340, 224) == (224, 297)
    assert evaluation_size(300, 300, 224) == (224, 224)


def steps_video(path, num_frames, sides=(48, 32)):
    """Frame n of 25 a second is of grey 20 + 4n, with a white edge along one of its short sides."""
    height, width = sides
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = (20 + 4 * np.arange(num_frames))[:, None, None, None]
    frames[:, -8:] = 255
    write_mp4(path, frames, 25)
    return path


def grey_steps(views):
    """Numbers of the frames that are shown, from their upper half."""
    greys = views[:, :, :8].float().mean(dim=(2, 3, 4))
    return ((greys - 20) / 4).round().int().tolist()


def test_video_views_show_the_frames_of_their_windows_in_all_crops(tmp_path):
    path = steps_video(tmp_path / "clip.mp4", 50)
    views = read_video_views(path, VIDEO, num_windows=3, num_crops=3, stride=2)
    assert views.shape == (9, 4, 32, 32, 3)
    assert views.dtype == torch.uint8
    for row, start in enumerate(evaluation_windows(50, 8, 3)):
        frames = [start, start + 2, start + 4, start + 6]
        assert grey_steps(views[3 * row : 3 * row + 1]) == [frames]
    white = (views[:3, 0, :, :, 0] > 240).float().mean(dim=(1, 2))
    assert white.tolist() == pytest.approx([0.0, 0.0, 0.25], abs=0.04)  # 48 rows: 0…, 8…, 16…
    middle = read_video_views(path, VIDEO, num_windows=1, num_crops=1, stride=2)
    asked = {"start_seconds": 21 / 25, "num_frames": 4, "frame_rate": 12.5}
    frames, _ = read_frames(path, **asked, size_rule=lambda *_: (32, 48))
    assert torch.equal(middle[0], frames[:, 8:40])
    with pytest.raises(ValueError, match="give short_side or size_rule"):
        read_frames(path, **asked)


def test_a_video_shorter_than_a_window_is_looped_from_its_start(tmp_path):
    path = steps_video(tmp_path / "clip.mp4", 5)
    views = read_video_views(path, VIDEO, num_windows=2, num_crops=1, stride=2)
    assert grey_steps(views) == [[0, 2, 4, 1]] * 2


def test_a_model_without_a_picture_size_gets_whole_pictures_of_the_same_windows(tmp_path):
    path = steps_video(tmp_path / "clip.mp4", 50)
    window, info = VideoWindow(num_frames=4, frame_rate=12.5), probe(path)
    views = read_video_views(path, window, num_windows=3)
    assert views.shape == (3, 4, info.height, info.width, 3)
    asked = {"start_seconds": 21 / 25, "num_frames": 4, "frame_rate": 12.5, "size_rule": own_size}
    assert torch.equal(views[1], read_frames(path, **asked)[0])
    assert grey_steps(views) == grey_steps(
        read_video_views(path, VIDEO, num_windows=3, num_crops=1)
    )
    short = steps_video(tmp_path / "short.mp4", 5)
    assert grey_steps(read_video_views(short, window, num_windows=2)) == [[0, 2, 4, 1]] * 2


def test_sound_views_are_the_windows_and_a_short_sound_is_looped():
    def sound(num_samples):
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setparams((1, 2, 8_000, 0, "NONE", ""))
            writer.writeframes(np.arange(num_samples, dtype="<i2").tobytes())
        return file.getvalue()

    views = read_audio_views(sound(8_000), AUDIO, num_windows=3)
    expected = np.stack([np.arange(start, start + 1_024) for start in (0, 3_488, 6_976)])
    assert np.abs(views.numpy() * 32_768 - expected).max() < 0.01
    short = read_audio_views(sound(400), AUDIO, num_windows=2)
    assert np.abs(short.numpy() * 32_768 - np.arange(1_024) % 400).max() < 0.01
    assert short.shape == (2, 1_024)
    fills_itself = AudioWindow(num_samples=1_024, sample_rate=8_000, is_padded=False)
    assert read_audio_views(sound(400), fills_itself, num_windows=2).equal(short[:, :400])
    assert read_audio_views(sound(8_000), fills_itself, num_windows=3).equal(views)
    with pytest.raises(MediaError, match="no picture"):
        read_video_views(sound(8_000), VIDEO)
