"""Views, colours, noise: what is done to pictures and sound between file and network."""

import numpy as np
import pytest
import torch

from datamodules import order
from vatt.draws import draw_normals, draw_uniforms
from vatt.preprocess import View, cut_view, normalize_video
from vatt.transforms import AugmentConfig, add_audio_noise, crop, jitter_color


def seeds_of(count, generator):
    return torch.randint(2**63 - 1, (count,), generator=generator)


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
    changed = jitter_color(video, 0.8, seeds_of(200, generator))
    share = (changed != video).flatten(1).any(dim=1).float().mean()
    assert 0.7 < share < 0.9
    assert torch.equal(changed[:, 2], changed[:, 0])
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert torch.equal(jitter_color(video, 0.0, seeds_of(200, generator)), video)


def test_colour_jitter_leaves_grey_clips_grey():
    generator = torch.Generator().manual_seed(1)
    video = (torch.rand(50, 2, 4, 4, 1, generator=generator) - 0.5).repeat(1, 1, 1, 1, 3)
    changed = jitter_color(video, 1.0, seeds_of(50, generator))
    assert (changed.amax(dim=-1) - changed.amin(dim=-1)).max() < 1e-3
    means = changed.mean(dim=(1, 2, 3, 4)) - video.mean(dim=(1, 2, 3, 4))
    assert 0.15 < means.abs().max() < 2 * 32 / 255 + 0.02  # brightness alone moves the mean


def test_the_same_seed_changes_a_clip_alike_in_every_batch():
    generator = torch.Generator().manual_seed(2)
    video = torch.rand(6, 2, 8, 8, 3, generator=generator) * 2 - 1
    audio, seeds = torch.randn(6, 501, generator=generator), seeds_of(6, generator)
    rows = torch.tensor([4, 0, 5])
    colored, noisy = jitter_color(video, 1.0, seeds), add_audio_noise(audio, 0.1, seeds)
    assert torch.equal(add_audio_noise(audio[rows], 0.1, seeds[rows]), noisy[rows])
    alone = jitter_color(video[rows], 1.0, seeds[rows])
    torch.testing.assert_close(alone, colored[rows], rtol=0, atol=1e-6)
    other = jitter_color(video[rows], 1.0, seeds[rows] + 1)
    assert ((other - alone).abs().flatten(1).amax(dim=1) > 0.01).all()


def test_uniform_numbers_are_those_of_the_order_of_samples():
    seeds = torch.tensor([0, 1, 2**62 + 12345, 2**63 - 1])
    ours = draw_uniforms(seeds, 7, 100)
    theirs = order.draw_uniforms(seeds.numpy()[:, None], 7, np.arange(100))
    assert ours.dtype == torch.float32
    assert 0 <= ours.min() <= ours.max() < 1
    assert np.abs(ours.numpy() - theirs).max() < 2.0**-24


def test_normal_numbers_are_normal_and_independent_of_those_of_other_seeds():
    count = 40_001
    seeds = torch.cat([torch.arange(8), torch.arange(1, 8) << 32, torch.tensor([2**63 - 1])])
    drawn = draw_normals(seeds, 3, count)
    assert drawn.shape == (16, count)
    assert torch.equal(drawn[3:5], draw_normals(seeds[3:5], 3, count))
    assert torch.equal(drawn[:, :99], draw_normals(seeds, 3, count)[:, :99])
    rounding = 5 / count**0.5
    assert drawn.mean(dim=1).abs().max() < rounding
    assert ((drawn**2).mean(dim=1) - 1).abs().max() < 2**0.5 * rounding
    assert ((drawn**4).mean(dim=1) - 3).abs().max() < 96**0.5 * rounding
    assert torch.corrcoef(drawn).fill_diagonal_(0).abs().max() < rounding
    shifted = torch.stack([drawn[0, place : place + 30_000] for place in (0, 1, 2, 64, 8_192)])
    assert torch.corrcoef(shifted).fill_diagonal_(0).abs().max() < rounding * 1.2
    assert not torch.equal(drawn, draw_normals(seeds, 4, count))


def test_audio_noise_follows_the_loudness_and_leaves_silence_silent():
    audio = torch.stack([torch.full((4_000,), 0.5), torch.full((4_000,), -0.1), torch.zeros(4_000)])
    noise = add_audio_noise(audio, 0.01, torch.arange(3)) - audio
    assert noise.std(dim=1).tolist() == pytest.approx([0.005, 0.001, 0.0], rel=0.1)


@pytest.mark.parametrize(
    "values",
    [{"scale_range": (0.5, 1.0)}, {"flip_rate": 2.0}, {"audio_noise": -1.0}],
)
def test_augmentation_out_of_range_is_refused_by_name(values):
    with pytest.raises(ValueError, match=f"augment.{next(iter(values))}"):
        AugmentConfig(**values)
