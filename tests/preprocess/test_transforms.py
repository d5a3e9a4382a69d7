"""Views, colours, noise: what is done to pictures and sound between file and network."""

import numpy as np
import pytest
import torch

from vatt.config.augment import AugmentConfig
from vatt.config.geometry import VideoConfig
from vatt.data import draws as data_draws
from vatt.media.write_mp4 import write_mp4
from vatt.network.tokens import normalize_video
from vatt.preprocess.draws import _normals, draw_normals, draw_uniforms
from vatt.preprocess.transforms import (
    _color_maps,
    _draw_beta,
    add_audio_noise,
    crop,
    jitter_color,
    mask_spectrogram,
    mixup,
    stretch,
)
from vatt.preprocess.view import Piece, PieceFit, View, cut_view, read_view, stretched_size


def seeds_of(count, generator):
    return torch.randint(2**63 - 1, (count,), generator=generator)


def test_a_view_cuts_the_same_square_from_every_picture():
    frames = torch.arange(2 * 4 * 6 * 1).view(2, 4, 6, 1)
    assert torch.equal(cut_view(frames, 4), frames[:, :, 1:5])
    corner = cut_view(frames, 3, View(vertical=1.0, horizontal=0.0))
    assert torch.equal(corner, frames[:, 1:, :3])
    assert torch.equal(cut_view(frames, 4, View(flip=True)), frames[:, :, 1:5].flip(2))
    with pytest.raises(ValueError, match="cannot cut 5×5 pixels from pictures of 4×6"):
        crop(frames, (5, 5))


def test_a_piece_lies_in_the_picture_and_has_its_aspect_and_area():
    whole = Piece(aspect=4 / 3, extent=1.0, area_range=(0.08, 1.0))
    assert whole.shares(640, 480) == pytest.approx((1, 1))
    for aspect, extent in ((0.5, 0.0), (2.0, 0.0), (1.0, 0.5), (2.0, 1.0), (0.5, 1.0)):
        across, down = Piece(aspect=aspect, extent=extent, area_range=(0.08, 1.0)).shares(640, 480)
        assert 0 < across <= 1
        assert 0 < down <= 1
        assert across * 640 / (down * 480) == pytest.approx(aspect)
        if extent == 0:
            assert across * down == pytest.approx(0.08)
        if extent == 1:
            assert max(across, down) == pytest.approx(1)
    # a strip in which no piece of the aspect has the smallest area
    strip = Piece(aspect=0.5, extent=0.3, area_range=(0.5, 1.0)).shares(1_000, 10)
    assert strip == pytest.approx((0.005, 1))


@pytest.mark.parametrize(
    ("sides", "factors", "expected"),
    [  # by hand: 1.2 · 640 = 768, 0.8 · 480 = 384; 768 · 224 // 384 = 448
        ((640, 480), (1.2, 0.8), (448, 224)),
        ((640, 480), (0.8, 1.2), (224, 252)),  # 512 × 576; 576 · 224 // 512
        ((640, 480), (1.0, 1.0), (298, 224)),  # 298.67 rounded down
        ((480, 640), (1.0, 1.0), (224, 298)),
        ((333, 225), (0.83, 1.11), (248, 224)),  # 276.39 → 276, 249.75 → 249; 248.29
        ((320, 240), (0.9, 1.2), (224, 224)),  # 288 × 288
        ((100, 100), (1.1, 1.0), (246, 224)),  # smaller than the square: enlarged
    ],
)
def test_a_picture_is_stretched_to_the_size_that_the_official_code_gives_it(
    sides, factors, expected
):
    assert stretched_size(*sides, factors=factors, size=224) == expected


@pytest.mark.parametrize("factors", [(1.2, 0.8), (0.8, 1.2), (1.0, 1.0)])
@pytest.mark.parametrize("sides", [(96, 160), (24, 20)])  # larger and smaller than the square
def test_a_square_of_the_stretched_picture_is_read(tmp_path, sides, factors):
    height, width = sides
    clip = read_view(
        ramps(tmp_path / "ramps.mp4", height, width),
        start_seconds=0,
        video=VideoConfig(num_frames=4, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8)),
        audio=None,
        view=View(factors=factors, vertical=1.0, horizontal=0.0),
    )
    assert clip.video.shape == (4, 32, 32, 3)
    columns, rows = stretched_size(width, height, factors=factors, size=32)
    red = 20 + 210 * (torch.arange(32) + 0.5) / columns  # from the left
    green = 230 - 210 * (31.5 - torch.arange(32)) / rows  # up from the bottom
    for channel, axis, expected in ((0, 1, red), (1, 2, green)):
        error = clip.video[..., channel].float().mean(axis) - expected
        assert error[:, 3:-3].abs().max() < 12


def ramps(path, height, width):
    """Red grows from left to right, green from top to bottom."""
    red, green = np.meshgrid(np.linspace(20, 230, width), np.linspace(20, 230, height))
    picture = np.stack([red, green, np.full_like(red, 128)], axis=-1)
    write_mp4(path, np.broadcast_to(picture, (6, *picture.shape)).astype(np.uint8), 5)
    return path


@pytest.mark.parametrize("extent", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("aspect", [0.5, 1.3, 2.0])
@pytest.mark.parametrize("sides", [(96, 160), (48, 32)])  # larger and smaller than the piece
def test_a_piece_of_the_picture_fills_the_square_in_every_frame(tmp_path, sides, aspect, extent):
    height, width = sides
    piece = Piece(aspect=aspect, extent=extent, area_range=(0.08, 1.0))
    view = View(piece=piece, vertical=0.25, horizontal=1.0)
    clip = read_view(
        ramps(tmp_path / "ramps.mp4", height, width),
        start_seconds=0,
        video=VideoConfig(num_frames=4, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8)),
        audio=None,
        view=view,
    )
    assert clip.video.shape == (4, 32, 32, 3)
    across, down = piece.shares(width, height)
    left, top = 1.0 * (1 - across), 0.25 * (1 - down)
    centres = (torch.arange(32) + 0.5) / 32
    red = 20 + 210 * (left + across * centres)
    green = 20 + 210 * (top + down * centres)
    inner = slice(3, -3)  # where the ramp ends the picture repeats its border
    for channel, axis, expected in ((0, 1, red), (1, 2, green)):
        error = clip.video[..., channel].float().mean(axis) - expected
        assert error[:, inner].abs().max() < 12  # 2 pixels, and colours have half of those


@pytest.mark.parametrize("extent", [0.0, 0.4, 1.0])
def test_pictures_are_decoded_so_that_the_piece_is_the_square_and_never_enlarged(extent):
    piece = Piece(aspect=2.0, extent=extent, area_range=(0.08, 1.0))
    fit = PieceFit(piece, 32)
    for width, height in ((640, 480), (480, 640)):
        across, down = piece.shares(width, height)
        columns, rows = fit(width, height)
        assert (round(columns * across), round(rows * down)) == (32, 32)
        square = cut_view(
            torch.zeros(2, rows, columns, 3, dtype=torch.uint8), 32, View(), fit.shares
        )
        assert square.shape == (2, 32, 32, 3)
    assert fit(20, 12) == (20, 12)


def test_stretching_takes_the_mean_where_pictures_become_smaller():
    stripes = torch.tensor([0, 200], dtype=torch.uint8).repeat(32)[None, None, :, None]
    stripes = stripes.expand(2, 64, 64, 3)
    small = stretch(stripes, 8)
    assert small.shape == (2, 8, 8, 3)
    assert small.dtype == torch.uint8
    assert (small.float() - 100).abs().max() < 15
    assert stretch(stripes, 64) is stripes


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


@pytest.mark.parametrize(("share", "sign"), [(0.0, -1), (1.0, 1), (0.75, 0.5)])
def test_colours_change_by_as_much_as_the_published_ranges_say(share, sign):
    color = torch.tensor([0.3, -0.2, 0.1])
    luminance = torch.tensor([0.299, 0.587, 0.114]) @ color

    def changed(column, mean=(0.0, 0.0, 0.0)):
        draws = torch.full((1, 4), 0.5)  # the middle of every range: no change
        if column is not None:
            draws[0, column] = share
        matrix, offset = _color_maps(draws, torch.tensor([mean]))
        return matrix[0] @ color + offset[0]

    assert changed(None).tolist() == pytest.approx(color.tolist(), abs=1e-6)
    brighter = color + sign * 2 * 32 / 255  # on -1…1
    assert changed(0).tolist() == pytest.approx(brighter.tolist(), abs=1e-6)
    mean = torch.tensor([0.5, 0.0, -0.5])
    steeper = mean + (1 + 0.4 * sign) * (color - mean)
    assert changed(1, mean.tolist()).tolist() == pytest.approx(steeper.tolist(), abs=1e-6)
    stronger = luminance + (1 + 0.4 * sign) * (color - luminance)
    assert changed(2).tolist() == pytest.approx(stronger.tolist(), abs=1e-3)
    yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]
    )
    before, after = yiq @ color, yiq @ changed(3)
    turn = (torch.atan2(after[2], after[1]) - torch.atan2(before[2], before[1])) / (2 * torch.pi)
    assert (float(turn) - 0.2 * sign + 0.5) % 1 - 0.5 == pytest.approx(0, abs=1e-5)
    assert float(after[0]) == pytest.approx(float(before[0]), abs=1e-6)
    assert float(after[1:].norm()) == pytest.approx(float(before[1:].norm()), rel=1e-5)


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
    theirs = data_draws.draw_uniforms(seeds.numpy()[:, None], 7, np.arange(100))
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
    high = torch.tensor([0, 0x12345678, 0x5EED5EED, 0x1BADCAFE]) << 32
    close = _normals(high + 5, count)  # the rare keys whose other half is the same
    assert torch.corrcoef(close).fill_diagonal_(0).abs().max() < rounding


def test_audio_noise_follows_the_loudness_and_leaves_silence_silent():
    audio = torch.stack([torch.full((4_000,), 0.5), torch.full((4_000,), -0.1), torch.zeros(4_000)])
    noise = add_audio_noise(audio, 0.01, torch.arange(3)) - audio
    assert noise.std(dim=1).tolist() == pytest.approx([0.005, 0.001, 0.0], rel=0.1)


def test_masks_blank_stretches_of_time_and_mel_bins_clip_by_clip():
    seeds = seeds_of(400, torch.Generator().manual_seed(3))
    log_mel = torch.rand(400, 50, 20, generator=torch.Generator().manual_seed(4)) + 0.001
    augment = AugmentConfig(num_time_masks=1, largest_time_mask=0.2, num_mel_masks=0)
    masked = mask_spectrogram(log_mel, augment, seeds) == 0
    assert torch.equal(masked.any(dim=2), masked.all(dim=2))  # all bins of a window or none
    windows = masked[:, :, 0].int()
    assert (windows.diff(dim=1, prepend=torch.zeros(400, 1)).clamp(min=0).sum(1) <= 1).all()
    assert set(windows.sum(dim=1).tolist()) == set(range(11))  # 0 … 0.2 · 50, all of them
    assert windows.sum(dim=0).min() > 0  # anywhere, ends included
    both = AugmentConfig(num_time_masks=2, num_mel_masks=2, largest_mel_mask=0.5)
    masked = mask_spectrogram(log_mel, both, seeds)
    assert (masked == 0).all(dim=1).any(dim=1).float().mean() > 0.8
    assert torch.equal(masked[masked != 0], log_mel[masked != 0])
    rows = torch.tensor([7, 2])
    assert torch.equal(mask_spectrogram(log_mel[rows], both, seeds[rows]), masked[rows])
    assert torch.equal(mask_spectrogram(log_mel, AugmentConfig(), seeds), log_mel)


def test_mixup_mixes_inputs_and_targets_of_two_clips_in_the_same_proportion():
    seeds = seeds_of(6, torch.Generator().manual_seed(5))
    targets = torch.eye(6)
    inputs = (targets * 10).view(6, 2, 3)
    mixed, labels = mixup(inputs, targets, seeds, alpha=5.0)
    assert torch.equal(mixed.view(6, 6), labels * 10)
    assert labels.sum(dim=1).tolist() == pytest.approx([1.0] * 6)
    assert (labels > 0).sum(dim=1).tolist() == [2] * 6  # itself and one other
    assert (labels > 0).sum(dim=0).tolist() == [2] * 6  # which is another's partner once
    again, _ = mixup(inputs.flip(0), targets.flip(0), seeds.flip(0), alpha=5.0)
    assert torch.equal(again.flip(0), mixed)
    own = mixup(inputs[:3], targets[:3], seeds[:3], alpha=5.0)[1].diagonal()
    assert own.tolist() == pytest.approx(labels.diagonal()[:3].tolist())


@pytest.mark.parametrize("alpha", [5.0, 0.4, 1.0])
def test_shares_of_mixup_are_of_the_beta_distribution(alpha):
    seeds = seeds_of(40_000, torch.Generator().manual_seed(6))
    share = _draw_beta(seeds, alpha)
    expected = torch.distributions.Beta(alpha, alpha)
    assert 0 <= share.min() <= share.max() <= 1
    assert float(share.mean()) == pytest.approx(float(expected.mean), abs=0.008)
    assert float(share.var()) == pytest.approx(float(expected.variance), rel=0.03)
    torch.manual_seed(0)
    theirs = expected.sample((40_000,)).quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    ours = share.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    assert (ours - theirs).abs().max() < 0.015


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": torch.tensor([0, 1])}, "one-hot instead of a class number"),
        ({"inputs": torch.zeros(3, 4)}, r"\(3, 2, 2\)"),
        ({"alpha": 0.0}, "above 0, got 0.0"),
    ],
)
def test_mixup_refuses_what_it_cannot_mix(values, message):
    given = {"inputs": torch.zeros(2, 4), "targets": torch.eye(2), "alpha": 5.0} | values
    with pytest.raises(ValueError, match=message):
        mixup(**given, seeds=torch.arange(2))


@pytest.mark.parametrize(
    "values",
    [
        {"num_time_masks": -1},
        {"largest_mel_mask": 1.5},
        {"scale_range": (0.5, 1.0)},
        {"flip_rate": 2.0},
        {"audio_noise": -1.0},
        {"crop": "square"},
        {"crop": "paper", "area_range": (0.2, 1.0)},
        {"area_range": (0.0, 1.0)},
        {"area_range": (0.5, 1.5)},
        {"aspect_range": (2.0, 0.5)},
    ],
)
def test_augmentation_out_of_range_is_refused_by_name(values):
    with pytest.raises(ValueError, match=f"augment.{next(iter(values))}"):
        AugmentConfig(**values)
