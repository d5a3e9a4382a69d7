"""Views, colours, noise: what is done to pictures and sound between file and network."""

import pytest
import torch

from vatt.preprocess import View, cut_view, normalize_video
from vatt.transforms import AugmentConfig, add_audio_noise, crop, jitter_color


def test_a_view_cuts_the_same_square_from_every_picture():
    frames = torch.arange(2 * 4 * 6 * 1).view(2, 4, 6, 1)
    assert torch.equal(cut_view(frames, 4), frames[:, :, 1:5])
    corner = cut_view(frames, 3, View(vertical=1.0, horizontal=0.0))
    assert torch.equal(corner, frames[:, 1:, :3])
    assert torch.equal(cut_view(frames, 4, View(flip=True)), frames[:, :, 1:5].flip(2))
    with pytest.raises(ValueError, match="cannot cut 5×5 pixels from pictures of 4×6"):
        crop(frames, 5)


def test_pictures_become_numbers_from_minus_one_to_one():
    values = normalize_video(torch.tensor([0, 127, 128, 255], dtype=torch.uint8))
    assert values.tolist() == pytest.approx([-1.0, -1 / 255, 1 / 255, 1.0], abs=1e-6)
    with pytest.raises(ValueError, match="takes uint8"):
        normalize_video(torch.zeros(3))


def test_colour_jitter_changes_a_share_of_the_clips_and_keeps_motion_and_range():
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(200, 3, 4, 4, 3, generator=generator) * 2 - 1
    video[:, 2] = video[:, 0]
    changed = jitter_color(video, 0.8, generator)
    share = (changed != video).flatten(1).any(dim=1).float().mean()
    assert 0.7 < share < 0.9
    assert torch.equal(changed[:, 2], changed[:, 0])
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.equal(jitter_color(video, 0.0, generator), video)


def test_colour_jitter_leaves_grey_clips_grey():
    generator = torch.Generator().manual_seed(1)
    video = (torch.rand(50, 2, 4, 4, 1, generator=generator) - 0.5).repeat(1, 1, 1, 1, 3)
    changed = jitter_color(video, 1.0, generator)
    assert (changed.amax(dim=-1) - changed.amin(dim=-1)).max() < 1e-3
    means = changed.mean(dim=(1, 2, 3, 4)) - video.mean(dim=(1, 2, 3, 4))
    assert 0.15 < means.abs().max() < 2 * 32 / 255 + 0.02  # brightness alone moves the mean


def test_audio_noise_follows_the_loudness_and_leaves_silence_silent():
    audio = torch.stack([torch.full((4_000,), 0.5), torch.full((4_000,), -0.1), torch.zeros(4_000)])
    noise = add_audio_noise(audio, 0.01, torch.Generator().manual_seed(0)) - audio
    assert noise.std(dim=1).tolist() == pytest.approx([0.005, 0.001, 0.0], rel=0.1)


@pytest.mark.parametrize(
    "values",
    [{"scale_range": (0.5, 1.0)}, {"flip_rate": 2.0}, {"audio_noise": -1.0}],
)
def test_augmentation_out_of_range_is_refused_by_name(values):
    with pytest.raises(ValueError, match=f"augment.{next(iter(values))}"):
        AugmentConfig(**values)
