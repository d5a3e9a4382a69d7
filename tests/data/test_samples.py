"""Training samples. The corpus tells the time: in second n the picture has grey GREYS[n]."""

import dataclasses
import itertools
import math
import re
import shutil

import numpy as np
import pytest
import torch

from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig, TextConfig, VideoConfig
from vatt.data.cache import ClipCache, warm_up
from vatt.data.clips import Geometry, nearest_segments, place_window, read_duration
from vatt.data.draws import SampleRef, draw_captions, draw_view
from vatt.data.failures import ReadCounts, TooManyFailuresError
from vatt.data.loader import PositionedLoader
from vatt.data.order import GlobalOrder
from vatt.data.samples import ClipSamples
from vatt.errors import MediaError, UserError
from vatt.media.write_mp4 import write_mp4
from vatt.preprocess.tokenizer import Tokenizer
from vatt.preprocess.view import View, stretched_size
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet
from vatt.shards.writer import ShardWriter

WORDS = ("zero", "one", "two", "three", "four", "five")
GREYS = np.array([20, 60, 100, 140, 180, 220])
GEOMETRY = Geometry(
    video=VideoConfig(num_frames=4, frame_rate=10.0, image_size=32, patch_size=(2, 8, 8)),
    audio=AudioConfig(sample_rate=8_000, num_samples=3_200, patch_size=128),
    text=TextConfig(vocab_size=16, max_words=4),
    num_candidates=3,
)
PLAIN = AugmentConfig(scale_range=(1.0, 1.0), flip_rate=0.0, color_jitter_rate=0.0, audio_noise=0.0)


def seconds_video(path, *, sound=True):
    frames = np.empty((60, 32, 48, 3), dtype=np.uint8)
    frames[:] = GREYS.repeat(10)[:, None, None, None]
    time = np.arange(48_000) / 8_000
    waveform = (0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32) if sound else None
    write_mp4(path, frames, 10, waveform=waveform, sample_rate=8_000 if sound else None)
    return path.read_bytes()


CAPTIONS = [Segment(second, second + 1, word) for second, word in enumerate(WORDS)]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    good = seconds_video(folder / "good.mp4")
    return {
        "good": (good, CAPTIONS),
        "silent": (seconds_video(folder / "silent.mp4", sound=False), CAPTIONS),
        "wordless": (good, []),
        "damaged": (good[:200] + bytes(len(good) - 200), CAPTIONS),
        "missing": (None, CAPTIONS),
    }


def write_set(folder, media, *names):
    folder.mkdir()
    for shard in range(0, len(names), 4):
        with ShardWriter(folder / f"{shard:05d}.tar") as writer:
            for number, name in enumerate(names[shard : shard + 4], start=shard):
                content, segments = media[name]
                writer.add(f"{number}-{name}", content, "mp4", segments=segments)
    return ShardSet(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory, media):
    names = ("good", "silent", "wordless", "good", "good", "silent")
    return write_set(tmp_path_factory.mktemp("sets") / "mixed", media, *names)


def make(*sets, **changes):
    settings = {"seed": 3, "augment": PLAIN} | changes
    tokenizer = Tokenizer.train([" ".join(WORDS)], vocab_size=8)
    return ClipSamples(sets, tokenizer, GEOMETRY, **settings)


def ref(sample_index, epoch=0, set_index=0):
    return SampleRef(set_index, sample_index, epoch, position=0)


def assert_same(first, second):
    assert first.keys == second.keys
    for name in ("video", "text", "video_mask", "audio_mask", "text_mask"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert (first.audio - second.audio).abs().max() < 5e-5  # the cache keeps sound as int16


def test_the_first_caption_speaks_about_the_time_of_the_picture_and_the_next_are_its_neighbours(
    shards,
):
    samples = make(shards)
    seen = set()
    for epoch in range(30):
        sample = samples[ref(0, epoch)]
        words = samples.tokenizer.decode(sample.text)
        own = WORDS.index(words[0])
        assert abs(sample.video.float().mean() - GREYS[own]) < 4
        neighbours = [WORDS.index(word) for word in words[1:]]
        assert sorted(abs(second - own) for second in neighbours) in ([1, 1], [1, 2])
        seen.add(own)
    assert seen == set(range(6))


def test_a_clip_without_captions_lies_anywhere_in_its_file(shards):
    samples = make(shards)
    greys = [float(samples[ref(2, epoch)].video.float().mean()) for epoch in range(40)]
    assert {int(np.abs(GREYS - grey).argmin()) for grey in greys} == set(range(6))


def test_missing_sound_and_missing_text_are_masked_and_zero(shards):
    batch = make(shards).__getitems__([ref(index) for index in range(3)])
    assert batch.keys == ("0-good", "1-silent", "2-wordless")
    assert batch.video_mask.tolist() == [True, True, True]
    assert batch.audio_mask.tolist() == [True, False, True]
    assert batch.text_mask.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    assert batch.video.shape == (3, 4, 32, 32, 3)
    assert batch.audio.abs().amax(dim=1)[1] == 0 < batch.audio.abs().amax(dim=1)[0]
    assert batch.text.shape == (3, 3, 4)


def test_draws_are_named_by_seed_set_sample_and_epoch_alone(shards):
    samples, again = make(shards, shards), make(shards, shards)
    base = samples.__getitems__([ref(0)])
    moved = dataclasses.replace(ref(0), position=77)
    both = again.__getitems__([ref(3), moved])
    assert both.keys[1:] == base.keys
    for name in ("video", "audio", "text"):
        assert torch.equal(getattr(both, name)[1:], getattr(base, name)), name
        assert not torch.equal(getattr(both, name)[:1], getattr(base, name)), name
    others = [
        samples.__getitems__([ref(0, epoch=1)]),
        samples.__getitems__([ref(0, set_index=1)]),
        make(shards, seed=4).__getitems__([ref(0)]),
    ]
    assert all(not torch.equal(one.audio, base.audio) for one in others)


def test_the_seeds_of_random_changes_are_named_by_seed_set_sample_and_epoch_alone(shards):
    samples = make(shards, shards)
    refs = [ref(0), ref(1), ref(0, epoch=1), ref(0, set_index=1)]
    seeds = samples.__getitems__(refs).seeds
    assert seeds.dtype == torch.int64
    assert seeds.min() >= 0
    assert len(set(seeds.tolist())) == 4
    moved = [dataclasses.replace(one, position=77) for one in refs[::-1]]
    cached = open_cache(shards, shards)
    assert cached.__getitems__(moved).seeds.tolist() == seeds.tolist()[::-1]
    assert make(shards, seed=4).__getitems__(refs[:1]).seeds[0] not in seeds


def test_the_draws_of_a_run_without_augmentation_stay_those_that_they_were(shards):
    samples = make(shards)
    bags = [samples.tokenizer.decode(samples[ref(0, epoch)].text) for epoch in range(4)]
    first = (["zero", "one", "two"], ["two", "three", "one"], ["three", "two", "four"])
    assert bags == [*first, first[0]]


def test_the_length_of_a_file_stays_the_same_number_when_it_is_asked_for_again(tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.zeros((61, 32, 48, 3), dtype=np.uint8), 10)  # 6.1 s
    shards = write_set(
        tmp_path / "set", {"clip": ((tmp_path / "clip.mp4").read_bytes(), [])}, "clip"
    )
    samples = make(shards)
    durations = samples._durations[0]
    first = durations.seconds(0, lambda: read_duration(shards[0]))
    again = durations.seconds(0, lambda: pytest.fail("the file was asked twice"))
    assert first == again != float(np.float32(first))


def test_a_picture_that_ended_before_the_sound_is_masked(tmp_path):
    frames, sound = np.full((10, 32, 48, 3), 200, dtype=np.uint8), np.full(24_000, 0.1)
    write_mp4(tmp_path / "clip.mp4", frames, 10, waveform=sound, sample_rate=8_000)
    content = ((tmp_path / "clip.mp4").read_bytes(), [Segment(2.0, 2.5, "two")])
    shards = write_set(tmp_path / "set", {"clip": content}, "clip")
    for samples in (make(shards), open_cache(shards)):
        batch = samples.__getitems__([ref(0)])
        assert (batch.video_mask.item(), batch.audio_mask.item()) == (False, True)
        assert not batch.video.any()


def test_a_damaged_file_is_replaced_by_the_next_sample_and_counted(tmp_path, media):
    samples = make(write_set(tmp_path / "set", media, "good", "damaged", "missing", "silent"))
    batch = samples.__getitems__([ref(1), ref(2), ref(0)])
    assert batch.keys == ("3-silent", "3-silent", "0-good")
    assert (samples.counts.num_failed, samples.counts.num_read) == (2, 4)
    again = make(samples.sets[0]).__getitems__([ref(1)])
    assert torch.equal(again.video[0], batch.video[0])


def test_a_failure_rate_that_is_none_is_refused(shards):
    with pytest.raises(UserError, match=r"data\.max_failure_rate must be in \[0, 1\], got 5"):
        make(shards, max_failure_rate=5)


def test_too_many_damaged_files_stop_the_run_and_are_named(tmp_path, media):
    names = ("damaged", "good") * 10
    samples = make(write_set(tmp_path / "set", media, *names), max_failure_rate=0.3)
    refs = [ref(index % 20) for index in range(40)]
    with pytest.raises(TooManyFailuresError) as caught:
        samples.__getitems__(refs)
    message = str(caught.value)
    assert message.startswith(
        "7 of 20 files could not be read, more than --data.init_args.max_failure_rate 0.3 allows"
    )
    assert f"{samples.sets[0].folder}/00012.tar:12-damaged" in message
    assert "vatt shards check" in message
    assert isinstance(caught.value, UserError)


def test_damaged_file_counts_once_and_three_are_tolerated_in_a_small_set(tmp_path, media, caplog):
    names = ("damaged", *["good"] * 6)
    samples = make(write_set(tmp_path / "one", media, *names, *names), max_failure_rate=0.05)
    for epoch in range(20):  # 40 clips of 300
        samples.__getitems__([ref(index, epoch) for index in (0, 1, 7)])
    assert (samples.counts.num_failed, samples.counts.num_files) == (2, 14)
    assert [line.split(":")[1] for line in caplog.messages[:2]] == [
        f" {samples.sets[0].folder}/{place}.tar" for place in ("00000", "00004")
    ]
    assert len(caplog.messages) == 2
    strict = make(write_set(tmp_path / "four", media, *("damaged", "good") * 4), max_failure_rate=0)
    strict.__getitems__([ref(0), ref(2), ref(4), ref(0)])
    with pytest.raises(TooManyFailuresError, match="4 of 8 files") as caught:
        strict[ref(6)]
    assert str(caught.value).count("0-damaged") == 1
    assert re.search(r"0-damaged: .* \(2 times\)\n", str(caught.value))


def test_large_set_stops_before_all_of_it_is_read():
    counts = ReadCounts(0.05, num_files=1_000_000)
    for file in range(1_000):
        counts.add_read(file)
    for file in range(100):
        counts.add_failure(file, MediaError(str(file), "is damaged"))
    with pytest.raises(TooManyFailuresError, match="101 of the first 1000 files could not"):
        counts.add_failure(100, MediaError("100", "is damaged"))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
def test_damaged_file_is_replaced_alike_for_any_number_of_workers_and_after_a_resume(
    tmp_path, media
):
    shards = write_set(tmp_path / "set", media, "good", "damaged", "silent", "wordless", "good")

    def read(num_workers, num_batches, state=None):
        loader = PositionedLoader(
            make(shards),
            GlobalOrder([[4, 1]], seed=0),
            batch_size=3,
            num_workers=num_workers,
            start_method="fork",
            batches_per_epoch=8,
        )
        if state is not None:
            loader.load_state_dict(state)
        batches = list(itertools.islice(loader, num_batches))
        loader.close()
        return batches, loader.state_dict()

    expected, _ = read(0, 8)
    assert any(len(set(batch.keys)) < 3 for batch in expected)  # one stands for another
    first, state = read(1, 3)
    rest, _ = read(3, 5, state)
    for batches in (read(3, 8)[0], first + rest):
        for one, other in zip(batches, expected, strict=True):
            assert one.keys == other.keys
            for name in ("video", "audio", "text", "seeds"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_set_of_damaged_files_stops_at_once(tmp_path, media):
    samples = make(write_set(tmp_path / "set", media, "damaged", "damaged"), max_failure_rate=1.0)
    with pytest.raises(TooManyFailuresError, match="2 files in a row could not be read") as caught:
        samples[ref(0)]
    assert "max_failure_rate" not in str(caught.value)  # a higher one would not help


def test_failures_in_worker_processes_are_counted_in_the_training_process(tmp_path, media):
    samples = make(write_set(tmp_path / "set", media, "damaged", "good"), max_failure_rate=1.0)
    order = GlobalOrder([[2]], seed=0)
    loader = PositionedLoader(
        samples, order, batch_size=2, num_workers=2, start_method="fork", batches_per_epoch=3
    )
    list(loader)
    assert (samples.counts.num_failed, samples.counts.num_read) == (1, 2)
    loader.close()


@pytest.mark.parametrize(
    ("segment", "duration", "share", "start"),
    [
        (None, 10.0, 0.5, 4.5),  # no caption: anywhere
        ((4.0, 4.4), 10.0, 0.0, 3.4),  # shorter than the window: around it
        ((4.0, 4.4), 10.0, 1.0, 4.0),
        ((2.0, 8.0), 10.0, 1.0, 7.0),  # longer: inside
        ((0.0, 0.2), 10.0, 0.0, 0.0),  # not before the file …
        ((9.8, 10.0), 10.0, 1.0, 9.0),  # … nor past its end
        ((0.0, math.inf), 10.0, 1.0, 9.0),  # about the whole file
        ((20.0, 30.0), 10.0, 0.5, 9.0),  # about nothing that is there
        ((0.0, 5.0), 0.6, 0.7, 0.0),  # a file shorter than the window
        (None, 0.0, 0.9, 0.0),  # a still image
    ],
)
def test_the_window_lies_by_its_caption_and_inside_the_file(segment, duration, share, start):
    segment = None if segment is None else Segment(*segment, "words")
    assert place_window(segment, duration, 1.0, share) == pytest.approx(start)


def test_the_nearest_captions_come_first_and_equally_near_ones_by_their_ties():
    times = [(8, 9), (0, 100), (2, 3), (3.2, 3.8), (4.5, 5.5), (3.2, 3.8)]
    segments = [Segment(start, end, "words") for start, end in times]
    order = nearest_segments(segments, 3.0, 4.0, np.array([0, 0, 0, 9, 0, 2], dtype=np.uint64))
    assert order == [5, 3, 2, 1, 4, 0]
    assert nearest_segments([], 0.0, 1.0, np.array([], dtype=np.uint64)) == []
    whole = [Segment(0.0, math.inf, "words"), Segment(7.0, 8.0, "words")]
    assert nearest_segments(whole, 3.0, 4.0, np.zeros(2, dtype=np.uint64)) == [0, 1]


def test_some_captions_of_each_bag_are_drawn_anew_every_epoch_and_blank_ones_last():
    text = torch.arange(1, 6).view(1, 5, 1).repeat(4, 1, 2)
    text[1, 2:] = 0
    text[2] = 0

    def draw(epoch):
        refs = [ref(index, epoch) for index in range(4)]
        return draw_captions(text, refs, count=2, seed=0)

    drawn = [draw(epoch) for epoch in range(50)]
    assert torch.equal(drawn[7], draw(7))
    for one in drawn:
        assert one.shape == (4, 2, 2)
        assert one[0, 0, 0] != one[0, 1, 0]
        assert sorted(one[1, :, 0].tolist()) == [1, 2]
        assert not one[2].any()
    counts = torch.stack(drawn)[:, [0, 3], :, 0].flatten().bincount()[1:]
    assert (counts - 40).abs().max() < 20
    assert not torch.equal(torch.stack(drawn)[:, 0], torch.stack(drawn)[:, 3])


def test_a_batch_has_as_many_captions_as_a_step_wants(shards):
    batch = make(shards, captions_per_step=2).__getitems__([ref(0), ref(2)])
    assert batch.text.shape == (2, 2, 4)
    assert batch.text_mask.tolist() == [[True, True], [False, False]]


def open_cache(*sets, num_views=1, num_clips=1_000, **changes):
    num_entries = sum(map(len, sets)) * num_views
    slot_bytes = ClipCache(1, GEOMETRY, 2**20).slot_bytes
    cache = ClipCache(num_entries, GEOMETRY, num_clips * slot_bytes)
    return make(*sets, cache=cache, num_views=num_views, **changes)


@pytest.mark.parametrize("num_clips", [1_000, 3, 1])
def test_the_cache_gives_the_clips_that_decoding_would_give(shards, num_clips):
    plain, cached = make(shards), open_cache(shards, num_clips=num_clips)
    refs = [ref(index) for index in (4, 0, 5, 2, 1, 3, 0)]
    for _ in range(2):
        assert_same(cached.__getitems__(refs), plain.__getitems__(refs))
    assert cached.cache.num_filled == min(num_clips, 6)
    assert cached.cache.num_bytes <= num_clips * cached.cache.slot_bytes


def test_epochs_share_the_views_of_a_cached_clip_and_renew_the_others(shards):
    cached = open_cache(shards, num_views=2, num_clips=6)  # both views of samples 0, 1 and 2
    first, second, third = (
        cached.__getitems__([ref(0, epoch), ref(4, epoch)]) for epoch in range(3)
    )
    assert torch.equal(first.audio[0], third.audio[0])
    assert not torch.equal(first.audio[0], second.audio[0])
    assert not torch.equal(first.audio[1], third.audio[1])
    assert_same(make(shards).__getitems__([ref(0, 1), ref(4, 1)]), second)


def test_a_full_cache_reads_no_file_any_more(tmp_path, media):
    shards = write_set(tmp_path / "set", media, "good", "silent", "damaged", "wordless")
    cached = open_cache(shards, max_failure_rate=1.0, captions_per_step=1)
    refs = [ref(index) for index in range(4)]
    before = cached.__getitems__(refs)
    assert cached.cache.complete
    for path in shards.paths:
        path.unlink()
    assert_same(cached.__getitems__(refs), before)
    assert before.keys == ("0-good", "1-silent", "3-wordless", "3-wordless")


@pytest.mark.parametrize(
    "start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_worker_processes_fill_the_cache_of_this_process(shards, start_method):
    cached = open_cache(shards, num_views=2)
    options = {"num_workers": 2, "start_method": start_method, "show_progress": False}
    warm_up(cached.cache, cached.read_entry, **options, title="")
    assert cached.cache.complete
    assert cached.cache.empty_slots() == []
    refs = [ref(index, epoch) for epoch in range(2) for index in range(6)]
    assert_same(cached.__getitems__(refs), make(shards).__getitems__(refs))
    counts = cached.counts.num_failed, cached.counts.num_read
    assert counts == (0, 6)  # all of them read by the workers


def test_a_cache_takes_what_shared_memory_has_left_and_says_so(shards, monkeypatch, caplog):
    slot_bytes = open_cache(shards).cache.slot_bytes
    assert not caplog.records
    free = shutil.disk_usage("/")._replace(free=64 * 2**20 + 3 * slot_bytes + 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)  # as of a small container
    cached = open_cache(shards)
    refs = [ref(index) for index in range(6)]
    assert_same(cached.__getitems__(refs), make(shards).__getitems__(refs))
    assert cached.cache.num_filled == cached.cache.capacity == 3
    (warning,) = caplog.messages
    assert "lower data.cache_gib" in warning
    assert "--shm-size" in warning
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=2**20))
    assert open_cache(shards).cache.capacity == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_for_the_user_comes_out_of_the_filling_of_a_cache_as_it_is(
    tmp_path, media, num_workers
):
    cached = open_cache(write_set(tmp_path / "set", media, "damaged", "missing"))
    options = {"num_workers": num_workers, "start_method": "fork", "show_progress": False}
    with pytest.raises(TooManyFailuresError) as caught:
        warm_up(cached.cache, cached.read_entry, **options, title="")
    assert str(caught.value).startswith("2 files in a row could not be read")


def test_views_are_drawn_within_the_picture_and_flipped_at_their_rate(shards):
    augment = AugmentConfig(scale_range=(1.0, 1.5), flip_rate=0.25)
    samples = make(shards, augment=augment)
    draws = np.random.default_rng(0).random((400, 6))
    views = [draw_view(augment, one) for one in draws.tolist()]
    assert all(1.0 <= view.scale <= 1.5 for view in views)
    assert 60 < sum(view.flip for view in views) < 140
    assert samples[ref(0)].video.shape == (4, 32, 32, 3)


def test_official_crops_stretch_four_clips_of_five_by_0_8_to_1_2_each_way(shards):
    augment = AugmentConfig(crop="official")
    draws = np.random.default_rng(0).random((4_000, 6))
    views = [draw_view(augment, one) for one in draws.tolist()]
    factors = np.array([view.factors for view in views])
    kept = (factors == 1).all(axis=1)
    assert abs(kept.mean() - 0.2) < 0.02
    drawn = factors[~kept]
    assert 0.8 <= drawn.min() < 0.801
    assert 1.199 < drawn.max() <= 1.2
    assert np.abs(drawn.mean(axis=0) - 1).max() < 0.01
    assert np.abs(drawn.var(axis=0) - 0.4**2 / 12).max() < 0.001  # of a uniform distribution
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05
    places = np.array([(view.vertical, view.horizontal) for view in views])
    assert np.abs(np.corrcoef(np.c_[places, factors].T) - np.eye(4)).max() < 0.06
    # 4:3 pictures: 298 × 224 pixels; at most 1.5 times as narrow or wide
    widths, heights = np.array(
        [stretched_size(640, 480, factors=view.factors, size=224) for view in views]
    ).T
    assert np.minimum(widths, heights).tolist() == [224] * 4_000
    assert widths.min() == 224
    assert 430 < widths.max() <= 448
    assert 245 < heights.max() <= 252
    assert make(shards, augment=augment)[ref(0)].video.shape == (4, 32, 32, 3)


def test_crops_of_the_paper_are_those_by_area_with_its_ranges():
    draws = np.random.default_rng(1).random((400, 6)).tolist()
    paper, area = AugmentConfig(crop="paper"), AugmentConfig(crop="area")
    assert [draw_view(paper, one) for one in draws] == [draw_view(area, one) for one in draws]
    pieces = [draw_view(paper, one).piece for one in draws]
    areas = np.array([np.prod(piece.shares(640, 480)) for piece in pieces])
    assert 0.08 <= areas.min() < 0.1
    assert 0.85 < areas.max() <= 1.0
    aspects = np.array([piece.aspect for piece in pieces])
    assert 0.5 <= aspects.min() < 0.51
    assert 1.99 < aspects.max() <= 2.0


def test_the_crop_of_old_configs_stays_as_it_was():
    view = draw_view(AugmentConfig(), [0.25, 0.5, 0.75, 0.4, 0.9, 0.1])
    assert view == View(scale=1.0625, vertical=0.5, horizontal=0.75, flip=True)


def test_pieces_are_drawn_by_area_and_aspect_and_are_the_same_in_every_batch(shards):
    augment = AugmentConfig(crop="area", area_range=(0.1, 0.4))
    samples = make(shards, augment=augment)
    draws = np.random.default_rng(0).random((400, 6))
    pieces = [draw_view(augment, one).piece for one in draws.tolist()]
    areas = np.array([np.prod(piece.shares(48, 32)) for piece in pieces])
    aspects = np.array([piece.aspect for piece in pieces])
    assert 0.1 <= areas.min() < 0.12
    assert 0.38 < areas.max() <= 0.4
    assert 0.5 <= aspects.min() < 0.52
    assert 1.98 < aspects.max() <= 2.0
    assert abs(np.corrcoef(areas, aspects)[0, 1]) < 0.15
    batch = samples.__getitems__([ref(0), ref(3)])
    assert batch.video.shape == (2, 4, 32, 32, 3)
    assert torch.equal(make(shards, augment=samples.augment)[ref(3)].video, batch.video[1])
