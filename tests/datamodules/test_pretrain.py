"""`PretrainData` under Lightning: exact resume, retrieval set, tokenizer, cache."""

import dataclasses
import logging
import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.augment import augment_batch
from datamodules.pretrain import PretrainData
from vatt.config.augment import AugmentConfig
from vatt.config.geometry import AudioConfig, SpectrogramConfig, TextConfig, VideoConfig
from vatt.data.loader import EvaluationLoader, PositionedLoader, usable_workers
from vatt.data.order import GlobalOrder
from vatt.data.run_tokenizer import trained_tokenizer
from vatt.errors import ShardError, UserError
from vatt.media.write_mp4 import write_mp4
from vatt.network.log_mel import log_mel_of
from vatt.preprocess.tokenizer import Tokenizer
from vatt.shards.record import Segment
from vatt.shards.shard_set import ShardSet
from vatt.shards.writer import ShardWriter
from vatt.system.machine import num_cores

VIDEO = VideoConfig(num_frames=4, frame_rate=5.0, image_size=32, patch_size=(2, 8, 8))
AUDIO = AudioConfig(sample_rate=8_000, num_samples=6_400, patch_size=128)
TEXT = TextConfig(vocab_size=512)
PLAIN = AugmentConfig(scale_range=(1.0, 1.0), flip_rate=0.0, color_jitter_rate=0.0, audio_noise=0.0)

pytestmark = pytest.mark.filterwarnings(
    # Lightning asks torch for something that is going: github.com/Lightning-AI/pytorch-lightning
    "ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"
)


def write_noise(path, seed):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (20, 4, 6, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    waveform = rng.normal(0, 0.1, 16_000).clip(-1, 1).astype(np.float32)
    write_mp4(path, frames, 10, waveform=waveform if seed % 4 else None, sample_rate=8_000)
    return path.read_bytes()


def write_set(folder, prefix, num_clips):
    """Shards of noise, two seconds each, with 0 to 3 captions; every fourth clip is silent."""
    folder.mkdir()
    for first in range(0, num_clips, 8):
        with ShardWriter(folder / f"{first:05d}.tar") as writer:
            for number in range(first, min(first + 8, num_clips)):
                media = write_noise(folder / "noise.mp4", number)
                times = [0.5 * index for index in range((number + 1) % 4)]
                segments = [Segment(time, time + 0.5, f"{number} at {time}") for time in times]
                writer.add(f"{prefix}{number}", media, "mp4", segments=segments)
    (folder / "noise.mp4").unlink()
    return folder


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "train", "t", 24)


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "validation", "v", 7)


@pytest.fixture
def make(train, validation):
    """Makes data modules over the sets: 24 training clips, 4 batches of 5 in a pass."""

    def make(**changes):
        settings = {
            "train": [str(train)],
            "validation": str(validation),
            "video": VIDEO,
            "audio": AUDIO,
            "text": TEXT,
            "batch_size": 5,
            "num_workers": 0,
            "start_method": "fork",
            "augment": PLAIN,
        } | changes
        return PretrainData(**settings)

    return make


def test_validation_on_training_clips_is_told_once_at_the_start_of_a_fit(make, train, caplog):
    for data in (make(), make(validation=None)):
        data.setup("fit")
    assert not caplog.messages
    data = make(validation=str(train))
    data.setup("validate")
    assert not caplog.messages  # to measure on training clips is a choice
    data.setup("fit")
    data.train_dataloader()
    (warning,) = caplog.messages
    assert "24 of 24 validation clips are training clips as well" in warning


class Recorder(LightningModule):
    """Keeps what it is trained on: names of the clips and a sum of all values."""

    def __init__(self, *, asks_for_steps=False):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.validated = [], []
        self.asks_for_steps = asks_for_steps

    def training_step(self, batch, batch_idx):
        assert len(batch.keys) == len(batch)
        total = sum(part.double().sum() for part in (batch.video, batch.audio, batch.text))
        self.seen.append((batch.keys, float(total)))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        self.validated.extend(batch.keys)

    def configure_optimizers(self):
        if self.asks_for_steps:
            assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(data, *, callbacks=(), ckpt_path=None, module=None, **settings):
    module = module or Recorder()
    trainer = Trainer(
        **{"max_epochs": 3, "limit_val_batches": 0} | settings,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*GPU available.*")
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=False if ckpt_path else None)
    return module.seen


@pytest.mark.parametrize(
    "start_method", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)]
)
def test_a_fit_from_addresses_sees_what_one_from_folders_sees(
    make, train, validation, tmp_path, monkeypatch, start_method
):
    monkeypatch.setenv("VATT_CACHE", str(tmp_path))
    remote = make(
        train={f"file://{train}": 1.0},
        validation=f"file://{validation}",
        num_workers=2,
        start_method=start_method,
    )
    module, local = Recorder(), Recorder()
    fit(remote, module=module, max_steps=4, limit_val_batches=None)
    fit(make(train={str(train): 1.0}), module=local, max_steps=4, limit_val_batches=None)
    assert module.seen == local.seen
    assert module.validated == local.validated != []
    assert len(list(tmp_path.glob("shards/*/*.tar"))) == 4


@pytest.mark.parametrize("asks_for_steps", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "stop",  # within a pass, at its end, in the second
    [2, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (4, 7))],
)
def test_a_resumed_fit_sees_what_the_uninterrupted_one_would_have_seen(
    make, tmp_path, stop, asks_for_steps
):
    path = tmp_path / "saved.ckpt"
    whole = fit(make(), callbacks=[SaveAt(stop, path)])
    resumed = fit(make(), ckpt_path=path, module=Recorder(asks_for_steps=asks_for_steps))
    assert len(whole) == 12
    assert resumed == whole[stop:]


@pytest.mark.slow
@pytest.mark.parametrize("augment", [PLAIN, AugmentConfig()])
def test_a_fit_resumes_with_workers_in_the_middle_of_validation_steps(make, tmp_path, augment):
    path = tmp_path / "saved.ckpt"
    settings = {"max_epochs": -1, "max_steps": 11, "val_check_interval": 2, "limit_val_batches": 1}
    whole = fit(make(augment=augment), callbacks=[SaveAt(5, path)], **settings)
    data = make(augment=augment, num_workers=2)
    assert fit(data, ckpt_path=path, **settings) == whole[5:]


@pytest.mark.slow
def test_epochs_cut_short_by_lightning_lose_nothing(make, tmp_path):
    path = tmp_path / "saved.ckpt"
    whole = fit(make(), limit_train_batches=3, callbacks=[SaveAt(5, path)])
    assert whole == fit(make(), max_epochs=-1, max_steps=9)
    assert fit(make(), limit_train_batches=3, ckpt_path=path) == whole[5:]


def test_a_second_fit_begins_at_the_start_of_the_stream(make):
    data = make()
    first = fit(data, max_epochs=1)
    assert data.state_dict()["position"] == 20
    assert fit(data, max_epochs=1) == first


def test_colours_and_noise_are_changed_in_training_only(make):
    data = make(augment=dataclasses.replace(PLAIN, color_jitter_rate=1.0, audio_noise=0.1))
    plain, changed = fit(make(), max_epochs=1), fit(data, max_epochs=1)
    assert [keys for keys, _ in plain] == [keys for keys, _ in changed]
    assert all(a != b for (_, a), (_, b) in zip(plain, changed, strict=True))
    assert next(iter(data.val_dataloader())).video.dtype == torch.uint8


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_clip_is_changed_alike_by_any_number_of_ranks_and_in_batches_of_any_size(
    make, num_workers
):
    data = make(augment=AugmentConfig(audio_noise=0.1))
    data.setup("fit")
    order = GlobalOrder([data.train_samples.sets[0].shard_sizes], seed=5)

    def heard(batch_size, ranks=1):
        clips = {}
        for rank in range(ranks):
            loader = PositionedLoader(
                data.train_samples,
                order,
                batch_size=batch_size,
                rank=rank,
                world_size=ranks,
                num_workers=num_workers,
                start_method="fork",
            )
            for batch in loader:
                batch = augment_batch(batch, data.augment)
                rows = zip(batch.keys, batch.video, batch.audio, strict=True)
                clips |= {key: (video, audio) for key, video, audio in rows}
            loader.close()
        return clips

    expected = heard(24)
    assert len(expected) == 24
    for settings in ({"batch_size": 4}, {"batch_size": 8, "ranks": 2}, {"batch_size": 3}):
        found = heard(**settings)
        assert found.keys() == expected.keys()
        for key, (video, audio) in found.items():
            torch.testing.assert_close(video, expected[key][0], rtol=0, atol=1e-6)
            assert torch.equal(audio, expected[key][1])


@pytest.mark.slow
def test_a_spectrogram_model_gets_masked_spectrograms_in_training_only(make):
    class Hears(Recorder):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch.audio)
            return self.weight.sum()

    mel = SpectrogramConfig(window_samples=256, hop_samples=128, num_mels=20, max_hertz=3600.0)
    audio = dataclasses.replace(AUDIO, spectrogram=mel)
    masks = dataclasses.replace(PLAIN, num_time_masks=3, num_mel_masks=3)
    (waveform, *_), (masked, *_) = (
        fit(make(audio=audio, augment=augment), module=Hears(), max_epochs=1)
        for augment in (PLAIN, masks)
    )
    log_mel = log_mel_of(audio)(waveform)
    assert masked.shape == log_mel.shape == (5, 50, 20)
    assert torch.equal(masked[masked != 0], log_mel[masked != 0])
    assert (masked == 0).float().mean() > (log_mel == 0).float().mean() + 0.1
    assert next(iter(make(audio=audio, augment=masks).val_dataloader())).audio.ndim == 2
    with pytest.raises(UserError, match="the model sees no spectrogram"):
        make(augment=masks)


def test_without_augmentation_a_batch_stays_as_it_is_to_the_bit(make):
    batch = next(iter(make().train_dataloader()))
    assert batch.seeds is not None
    plain = augment_batch(batch, PLAIN)
    assert plain.video is batch.video
    assert plain.audio is batch.audio
    for unseeded in (dataclasses.replace(batch, seeds=None), next(iter(make().val_dataloader()))):
        assert augment_batch(unseeded, AugmentConfig()) is unseeded


def test_noise_is_new_at_every_step(make):
    class Hears(Recorder):
        def training_step(self, batch, batch_idx):
            self.seen.append(batch.audio)
            return self.weight.sum()

    clean, noisy = (
        fit(make(augment=dataclasses.replace(PLAIN, audio_noise=level)), module=Hears())
        for level in (0.0, 1.0)
    )
    noise = [b - a for a, b in zip(clean, noisy, strict=True)]
    loud = [one[one.abs().amax(dim=1) > 0][0] for one in noise]
    assert torch.corrcoef(torch.stack(loud)).fill_diagonal_(0).abs().max() < 0.1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_sees_every_record_once(make, validation, num_workers):
    module = Recorder()
    data = make(num_workers=num_workers, validation_batch_size=3)
    fit(data, module=module, max_epochs=1, limit_val_batches=1.0)
    shards = ShardSet(validation)
    assert module.validated == [shards.key(index) for index in range(len(shards))]


def test_validation_can_be_cut_to_its_first_clips(make, validation):
    data = make(max_validation_clips=2, validation_batch_size=3)
    shards = ShardSet(validation)
    assert [batch.keys for batch in data.val_dataloader()] == [(shards.key(0), shards.key(1))]


def test_without_a_validation_set_training_runs_and_validation_is_refused(make):
    assert len(fit(make(validation=None), max_epochs=1, limit_val_batches=1.0)) == 4
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    with pytest.raises(UserError, match="data.validation is missing: give --val SHARDS"):
        trainer.validate(Recorder(), make(validation=None), verbose=False)


def test_no_more_processes_read_than_there_are_cores(make):
    assert usable_workers(num_cores() + 3) == num_cores()
    assert (usable_workers(0), usable_workers(-1)) == (0, -1)
    data = make(num_workers=num_cores() + 3)  # of which torch would warn
    assert data.train_dataloader()._loader.num_workers == num_cores()
    assert data.val_dataloader()._loader.num_workers == num_cores()


def test_the_retrieval_set_has_all_captions_and_is_the_same_every_time(make):
    data = make()
    first, second = (list(data.val_dataloader()) for _ in range(2))
    shards = data.validation_samples.shards
    most = max(len(record.segments) for record in shards)
    masks = torch.cat([batch.text_mask for batch in first])
    assert masks.shape == (len(shards), most)
    assert masks.sum(dim=1).tolist() == [len(record.segments) for record in shards]
    texts = [segment.text for segment in shards[2].segments]
    assert len(texts) == most  # in the order of the record
    assert torch.equal(first[0].text[2], data.run_tokenizer.encode(texts, TEXT.max_words))
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.video, two.video)
        assert torch.equal(one.audio, two.audio)


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_share_the_retrieval_set_in_equal_steps(make, world_size):
    data = make()
    data.setup("validate")
    samples = data.validation_samples
    size = len(samples)
    loaders = [
        EvaluationLoader(samples, batch_size=2, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    keys = [[key for batch in loader for key in batch.keys] for loader in loaders]
    assert len({len(one) for one in keys}) == 1
    assert len({len(loader) for loader in loaders}) == 1
    in_order = [key for row in zip(*keys, strict=True) for key in row]
    assert in_order[:size] == [samples.shards.key(index) for index in range(size)]
    assert set(in_order[size:]) <= set(in_order[:size])


def test_a_damaged_record_is_an_empty_row_of_the_retrieval_set(make, tmp_path, caplog):
    with ShardWriter(tmp_path / "00000.tar") as writer:
        writer.add("good", write_noise(tmp_path / "noise.mp4", 1), "mp4", "a red circle")
        writer.add("bad", b"no media", "mp4", "a blue star")
    with caplog.at_level(logging.WARNING):
        (batch,) = make(validation=str(tmp_path)).val_dataloader()
    assert batch.keys == ("good", "bad")
    assert batch.video_mask.tolist() == [True, False]
    assert batch.text_mask.tolist() == [[True], [False]]
    assert "00000.tar:bad" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_has_changed_ends_validation_with_its_own_error(make, tmp_path, num_workers):
    validation = write_set(tmp_path / "set", "v", 3)
    loader = make(validation=str(validation), num_workers=num_workers).val_dataloader()
    (validation / "00000.tar").write_bytes(b"")
    with pytest.raises(ShardError) as caught:
        list(loader)
    assert str(caught.value).startswith(f"{validation}/00000.tar has become shorter")


@pytest.mark.slow
def test_sets_are_mixed_by_their_weights(make, train, validation):
    data = make(train={str(train): 3.0, str(validation): 1.0})
    loader = data.train_dataloader()
    assert len(loader) == (24 + 7) // 5
    refs = [loader.order.ref(position) for position in range(10_000)]
    assert sum(ref.set_index for ref in refs) == 2_500
    sample = data.train_samples[next(ref for ref in refs if ref.set_index == 1)]
    assert sample.key in {record.key for record in ShardSet(validation)}


def test_the_tokenizer_is_trained_once_and_kept_beside_the_shards(make, train):
    data = make()
    data.prepare_data()
    files = sorted(train.glob("tokenizer-*.json"))
    data.setup("fit")
    make().setup("validate")
    assert sorted(train.glob("tokenizer-*.json")) == files
    assert data.run_tokenizer.vocab_size <= TEXT.vocab_size
    assert any(Tokenizer.load(path).vocab_size == data.run_tokenizer.vocab_size for path in files)


def test_training_shards_are_opened_and_their_order_is_named_once(make, monkeypatch):
    opened = []

    def counting(folder):
        opened.append(folder)
        return ShardSet(folder)

    monkeypatch.setattr("datamodules.pretrain.ShardSet", counting)
    data = make(validation=None)
    data.prepare_data()
    data.setup("fit")
    order = data.train_dataloader().order
    data.setup("fit")
    assert data.train_dataloader().order is order
    assert len(opened) == 1


def test_a_vocabulary_larger_than_the_model_is_refused(make, tmp_path):
    Tokenizer.train([" ".join(f"w{index}" for index in range(600))], 600).save(tmp_path / "t.json")
    data = make(tokenizer=str(tmp_path / "t.json"))
    with pytest.raises(UserError, match=r"has 600 ids.*text\.vocab_size is 512"):
        data.setup("fit")


def test_the_state_of_a_run_with_another_tokenizer_is_refused(make, tmp_path):
    data = make()
    data.train_dataloader()
    state = data.state_dict()
    make().load_state_dict(state)  # not opened yet
    data.load_state_dict(state)
    data.load_state_dict({**state, "position": 5})
    Tokenizer.train(["a few other words"], 512).save(tmp_path / "t.json")
    other = make(tokenizer=str(tmp_path / "t.json"))
    other.setup("validate")
    with pytest.raises(UserError, match=r"another tokenizer: give data\.tokenizer"):
        other.load_state_dict(state)


def test_tokenizers_of_byte_pairs_are_told_apart(make, tmp_path):
    for name, caption in (("one", "夏"), ("two", "秋")):
        Tokenizer.train([caption] * 3, 259, kind="bpe").save(tmp_path / f"{name}.json")
    data = make(tokenizer=str(tmp_path / "one.json"))
    data.train_dataloader()
    state = data.state_dict()
    data.load_state_dict(state)
    other = make(tokenizer=str(tmp_path / "two.json"))
    other.setup("validate")
    with pytest.raises(UserError, match="trained with another tokenizer"):
        other.load_state_dict(state)


def test_missing_shards_are_named_before_anything_is_made(make, tmp_path):
    Tokenizer.train(["words"], 512).save(tmp_path / "t.json")
    for changes in ({"train": [str(tmp_path / "x")]}, {"validation": str(tmp_path / "x")}):
        with pytest.raises(ShardError, match="no shard folder"):
            make(tokenizer=str(tmp_path / "t.json"), **changes).prepare_data()


def test_captions_without_words_are_refused_by_the_name_of_the_folder(make, tmp_path):
    with ShardWriter(tmp_path / "00000.tar") as writer:
        writer.add("silent", None, "mp4", "")
    with pytest.raises(UserError, match=str(tmp_path)):
        make(train=[str(tmp_path)], validation=None).prepare_data()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": []}, UserError, r"data\.train names no shard folder"),
        ({"captions_per_step": 6}, UserError, r"data\.captions_per_step \(6\)"),
        ({"cache_views": 0}, UserError, r"data\.cache_views"),
        ({"max_validation_clips": 0}, UserError, r"data\.max_validation_clips"),
        ({"train": ["nowhere"]}, ShardError, "no shard folder nowhere"),
        ({"batch_size": 0}, UserError, "batch_size"),
        ({"num_workers": -1}, UserError, r"data\.num_workers"),
        ({"max_failure_rate": 1.5}, UserError, r"data\.max_failure_rate"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_remedy(make, changes, error, message):
    with pytest.raises(error, match=message):
        make(**changes).train_dataloader()


@pytest.mark.slow
def test_a_warm_cache_trains_without_workers_and_gives_the_same_clips(make, tmp_path):
    path = tmp_path / "saved.ckpt"
    settings = {"captions_per_step": 2, "cache_gib": 0.1, "cache_views": 2}
    cold = fit(make(**settings), callbacks=[SaveAt(6, path)])
    data = make(**settings, num_workers=2)
    data.warm_up_cache(num_workers=2, show_progress=False)
    assert data.train_samples.cache.complete
    assert data.validation_samples.cache.complete
    assert fit(data) == cold
    data.train_samples.sets[0].paths.clear()  # nothing is read any more
    assert fit(data) == cold
    assert fit(make(**settings), ckpt_path=path) == cold[6:]


def test_a_cache_that_is_too_small_says_so_once_and_stays_within_its_bound(make, caplog):
    with caplog.at_level(logging.WARNING):
        data = make(cache_gib=0.0003)
        first = fit(data, max_epochs=1)
        data.setup("fit")
    assert caplog.text.count("training clips, the others are decoded each time") == 1
    cache = data.train_samples.cache
    assert 0 < cache.capacity < 24
    assert cache.num_bytes <= data.cache_bytes
    assert [keys for keys, _ in first] == [keys for keys, _ in fit(make(), max_epochs=1)]


def test_tokenizer_is_not_trained_for_long_while_other_processes_wait(tiny_shards):
    sets = [ShardSet(tiny_shards / "train")]
    with pytest.raises(UserError, match="no tokenizer from .* more than 0 seconds.*vatt tokenizer"):
        trained_tokenizer(sets, 77, max_seconds=0.0)
    assert trained_tokenizer(sets, 77, max_seconds=60.0).is_file()
