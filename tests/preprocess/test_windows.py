"""Windows of files for models whose own processors prepare them."""

from pathlib import Path

import pytest
import torch
from media_files import HEIGHT, KINDS, WIDTH, make_file

from vatt.config.geometry import AudioWindow, VideoWindow
from vatt.media.clip import Clip
from vatt.preprocess.arrays import Dubbed
from vatt.preprocess.view import read_view
from vatt.preprocess.windows import WindowPlan

AUDIO = AudioWindow(num_samples=8_000, sample_rate=4_000, is_padded=False)  # 2 s


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of 3 s; the sound of one begins after a second."""
    path = tmp_path_factory.mktemp("media")
    for name in ("plain.mp4", "late_sound.mp4", "sound.m4a"):
        make_file(path / name, KINDS[name])
    return path


def read(media: object, start_seconds: float, *, is_padded: bool, evenly: bool = False) -> Clip:
    """The window of 2 s from a start, at 4 frames per second."""
    video = VideoWindow(num_frames=8, frame_rate=4.0, has_fixed_count=evenly, is_padded=is_padded)
    plan = WindowPlan(video=video, audio=AUDIO, window_seconds=2.0, hop_seconds=2.0)
    return plan.read(media, start_seconds)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["plain.mp4", "late_sound.mp4"])
def test_the_last_window_ends_with_the_file_for_models_that_take_any_length(
    name: str, folder: Path
) -> None:
    file = str(folder / name)
    whole, last = (read(file, start, is_padded=False) for start in (0.0, 2.0))
    assert whole.video.shape == (8, HEIGHT, WIDTH, 3)
    assert last.video.shape == (4, HEIGHT, WIDTH, 3)
    padded = read(file, 2.0, is_padded=True)
    torch.testing.assert_close(last.video, padded.video[:4])
    assert (last.video_coverage, last.audio_coverage) == (
        padded.video_coverage,
        padded.audio_coverage,
    )
    # picture and sound have one length, even where the sound begins late
    for clip, seconds in ((whole, 2.0), (last, 1.0)):
        assert len(clip.audio) == pytest.approx(4_000 * seconds, abs=100)  # AAC's last block


def test_a_fixed_number_of_frames_is_spread_over_the_rest_of_the_file(folder: Path) -> None:
    file = str(folder / "plain.mp4")
    last = read(file, 2.0, is_padded=False, evenly=True)
    expected = read_view(
        file, start_seconds=2.0, video=VideoWindow(num_frames=8, frame_rate=8.0), audio=None
    )
    assert len(last.audio) == pytest.approx(4_000, abs=100)
    difference = (last.video.float() - expected.video.float()).abs().mean()
    assert difference < 2  # of 255: times differ by the length of AAC's last block
    assert (last.video[1:] != last.video[:-1]).flatten(1).any(dim=1).all()


def test_a_video_with_sound_of_another_file_ends_with_the_longer_of_them(folder: Path) -> None:
    media = Dubbed(str(folder / "plain.mp4"), str(folder / "sound.m4a"))
    last = read(media, 2.0, is_padded=False)
    assert len(last.video) == 4
    assert len(last.audio) == pytest.approx(4_000, abs=100)


def test_a_still_image_has_a_whole_window(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (20, 10)).save(tmp_path / "still.png")
    video = VideoWindow(num_frames=8, frame_rate=4.0, is_padded=False)
    plan = WindowPlan(video=video, audio=None, window_seconds=2.0, hop_seconds=2.0)
    assert plan.read(str(tmp_path / "still.png"), 0.0).video.shape == (8, 10, 20, 3)
