"""Contrastive fine-tuning of open models of others."""

import csv
import dataclasses
import json
import math
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign_models import (
    make_tokenizer,
    save_clap,
    save_clip,
    save_pe_av,
    save_siglip,
    save_siglip2,
    skip_without,
)
from rank_processes import run_ranks, run_vatt
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from training_runs import read_losses, signal_options

from vatt import ContrastiveLoss, LossConfig
from vatt.batch import Batch, MicroBatches
from vatt.cli import main
from vatt.config.open_model import LoraConfig, OpenModelConfig, TowersConfig
from vatt.encoders.loading import load_encoder
from vatt.encoders.transformers_loading import load_transformers
from vatt.errors import UserError
from vatt.open_models.loading import load_open_model, save_open_model
from vatt.open_models.network import OpenModel
from vatt.open_models.settings import read_settings
from vatt.open_models.tokenizer import PretrainedTokenizer
from vatt.system.ranks import rank
from vatt.training.accumulation import forward_cached
from vatt.training.open_model import OpenModelModule
from vatt.training.optim import OptimizerConfig, ScheduleConfig, build_optimizer
from vatt.training.rank_forward import forward_on_rank

skip_without("transformers")

ROWS = 8
SHARDED = "--trainer.strategy={class_path: vatt.training.sharding.ShardedStrategy}"
SAVED = {"clip": save_clip, "siglip": save_siglip, "siglip2": save_siglip2, "clap": save_clap}
HAS_TIMM = find_spec("timm") is not None and find_spec("torchvision") is not None
if HAS_TIMM:
    SAVED["pe-av"] = save_pe_av
KINDS = [*SAVED, "towers", "parts"]


def save_towers(folder: Path) -> Path:
    """VideoMAE, wav2vec 2.0 and BERT, each in a folder of its modality."""
    transformers, sizes = load_transformers(), {"hidden_size": 32, "intermediate_size": 48}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    tokenizer = make_tokenizer()
    models = {
        "video": transformers.VideoMAEModel(
            transformers.VideoMAEConfig(
                **sizes, image_size=16, patch_size=8, num_frames=4, tubelet_size=2
            )
        ),
        "audio": transformers.Wav2Vec2Model(
            transformers.Wav2Vec2Config(
                **sizes,
                conv_dim=(16, 16),
                conv_stride=(5, 8),
                conv_kernel=(10, 8),
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
            )
        ),
        "text": transformers.BertModel(
            transformers.BertConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=1)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        without_draws(folder / name)
    tokenizer.save_pretrained(folder / "text")
    return folder


def save_parts(folder: Path) -> Path:
    """Pictures and texts of CLIP, and the sound of CLAP, as towers."""
    for name, save in (("video", save_clip), ("audio", save_clap), ("text", save_clip)):
        without_draws(save(folder / name))
    return folder


TOWERS = {"towers": save_towers, "parts": save_parts}


def settings(source: Path, **changes: Any) -> OpenModelConfig:
    """Settings of a whole model, or of the towers in a folder."""
    if not (source / "config.json").exists():
        towers = {name: str(source / name) for name in ("video", "audio", "text")}
        return read_settings(towers=TowersConfig(**towers), **changes)
    return read_settings(str(source), **changes)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("open")
    whole = {kind: without_draws(save(folder / kind)) for kind, save in SAVED.items()}
    return whole | {kind: save(folder / kind) for kind, save in TOWERS.items()}


def without_draws(folder: Path) -> Path:
    """The saved model without dropout, whose draws differ between ranks and micro-batches."""

    def change(values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: 0.0 if "drop" in name else change(value) for name, value in values.items()}

    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    return folder


def make_network(source: Path, **changes: Any) -> OpenModel:
    torch.manual_seed(0)  # of the heads of towers
    return load_open_model(settings(source, **changes)).double()


def make_batch(network: OpenModel, rows: int = ROWS) -> Batch:
    """Some clips lack a modality; captions differ in length."""
    config, draw = network.config, torch.Generator().manual_seed(1)
    columns: dict[str, Any] = {}
    if "video" in config.modalities:
        size = config.video.image_size
        shape = (rows, 4, size, size, 3)
        columns["video"] = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        columns["video_mask"] = torch.arange(rows) != 1
    if "audio" in config.modalities:
        num_samples = min(config.audio.num_samples, 16_000)
        columns["audio"] = torch.randn(rows, num_samples, generator=draw)
        columns["audio_mask"] = torch.arange(rows) != 2
    if "text" in config.modalities:
        ids = torch.randint(6, config.text.vocab_size, (rows, 2, 6), generator=draw)
        lengths = torch.randint(1, 7, (rows, 2, 1), generator=draw)
        ids[..., 0] = 1  # the model's id 0, where a text begins
        ids[torch.arange(6) == lengths - 1] = 3  # and 2, where it ends
        ids[torch.arange(6) >= lengths] = 0
        ids[3] = 0
        columns["text"] = ids
    return Batch(**columns)


def make_loss(network: OpenModel) -> ContrastiveLoss:
    pairs = {"video_audio": ("video", "audio"), "video_text": ("video", "text")}
    pairs["audio_text"] = ("audio", "text")
    has = {pair: set(both) <= set(network.config.modalities) for pair, both in pairs.items()}
    weights: dict[str, Any] = {f"{pair}_weight": float(found) for pair, found in has.items()}
    return ContrastiveLoss(LossConfig(form="symmetric", learn_temperature=True, **weights))


class Step(nn.Module):
    """Network and loss in one module, as DDP wants them."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.network = make_network(source)
        self.loss = make_loss(self.network).double()

    def forward(self, batch: Batch | MicroBatches) -> Tensor:
        cached = isinstance(batch, MicroBatches)
        output = (forward_cached if cached else forward_on_rank)(self.network, batch)
        return self.loss(output, batch).total


def gradients(step: nn.Module, batch: Batch | MicroBatches) -> dict[str, Tensor]:
    step(batch).backward()
    return {
        name.removeprefix("module."): weight.grad
        for name, weight in step.named_parameters()
        if weight.grad is not None
    }


def rows_of(batch: Batch, rows: slice) -> Batch:
    names = ("video", "audio", "text", "video_mask", "audio_mask", "text_mask")
    columns = {name: getattr(batch, name) for name in names}
    return Batch(**{name: None if v is None else v[rows] for name, v in columns.items()})


def mute(batch: Batch) -> Batch:
    """The batch without captions of its second half."""
    text = batch.text.clone()
    text[ROWS // 2 :] = 0
    return dataclasses.replace(batch, text=text, text_mask=None)


def rank_gradients(source: Path, is_mute: bool) -> dict[str, Tensor]:
    """Gradients of a rank that has half of the clips."""
    step = DistributedDataParallel(Step(source))
    batch = make_batch(step.module.network)
    batch = mute(batch) if is_mute else batch
    first = rank() * ROWS // 2
    return gradients(step, rows_of(batch, slice(first, first + ROWS // 2)))


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal to 1e-6 of the largest gradient."""
    assert actual.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        assert float((actual[name] - value).abs().max()) <= 1e-6 * largest, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_that_is_trained_has_a_gradient(sources: dict[str, Path], kind: str) -> None:
    step = Step(sources[kind])
    found = gradients(step, make_batch(step.network))
    assert found.keys() == {name for name, p in step.named_parameters() if p.requires_grad}
    # a bias before a softmax, or a key's bias, has no effect; every other weight has one
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_have_the_gradients_of_one(
    sources: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    step = Step(sources[kind])
    expected = gradients(step, make_batch(step.network))
    for found in run_ranks(rank_gradients, 2, tmp_path, sources[kind], False):
        assert_equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_have_the_gradients_of_the_batch(sources: dict[str, Path], kind: str) -> None:
    whole, parts = Step(sources[kind]), Step(sources[kind])
    batch = make_batch(whole.network)
    assert_equal(gradients(parts, MicroBatches.split(batch, 3)), gradients(whole, batch))


@pytest.mark.slow
@pytest.mark.ddp
def test_a_rank_without_captions_has_its_share_of_the_gradients(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    step = Step(sources["clip"])
    expected = gradients(step, mute(make_batch(step.network)))
    for found in run_ranks(rank_gradients, 2, tmp_path, sources["clip"], True):
        assert_equal(found, expected)


@pytest.mark.parametrize("kind", SAVED)
def test_vectors_are_those_of_the_encoder(sources: dict[str, Path], kind: str) -> None:
    network, encoder = load_open_model(settings(sources[kind])).eval(), load_encoder(sources[kind])
    config, draw = network.config, torch.manual_seed(0)
    rows: dict[str, Any] = {"text": ["a dog barks", "rain falls on a street while two cars drive"]}
    tokenizer = PretrainedTokenizer.from_source(sources[kind])
    ids = tokenizer.encode([*rows["text"], " "], config.text.max_words)
    assert not ids[2].any()  # nothing to encode
    columns: dict[str, Any] = {"text": ids[:2, None]}
    if "audio" in config.modalities:
        columns["audio"] = rows["audio"] = torch.rand(2, 15_360, generator=draw) - 0.5
    if "video" in config.modalities:
        shape = (2, 3, config.video.image_size, config.video.image_size, 3)
        columns["video"] = rows["video"] = torch.randint(256, shape, dtype=torch.uint8)
    with torch.no_grad():
        output = network(Batch(**columns)).embeddings
        for modality in config.modalities:
            for space in network.spaces[modality]:
                (expected,) = encoder.encode(modality, [*rows[modality]], [space]).values()
                actual = output[f"{modality}_{space}"].reshape(expected.shape)
                unit = [F.normalize(value, dim=-1) for value in (actual, expected)]
                torch.testing.assert_close(*unit, rtol=0, atol=1e-5)


def fit_open(shards: Path, source: Path, run: Path, *more: str) -> list[str]:
    return [
        "fit",
        "--config=finetune_contrastive",
        f"--model.init_args.init_from={source}",
        f"--data.init_args.train=[{shards / 'train'}]",
        f"--data.init_args.validation={shards / 'validation'}",
        "--model.init_args.schedule.warmup_steps=1",
        "--model.init_args.optimizer.learning_rate=1e-3",
        "--model.init_args.model.video.frame_rate=5",
        "--model.init_args.model.video.num_frames=4",
        "--data.init_args.batch_size=8",
        "--data.init_args.num_workers=0",
        "--data.init_args.max_validation_clips=16",
        "--trainer.max_steps=4",
        "--trainer.val_check_interval=2",
        "--trainer.log_every_n_steps=1",
        "--run.wandb=disabled",
        f"--run.dir={run}",
        *more,
    ]


CHANGES = (
    '--model.init_args.model.frozen=["*text_model*"]',
    '--model.init_args.optimizer.lr_factors={"*visual_projection*": 0, "model.vision*": 0.5}',
)


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path, sources: dict[str, Path]
) -> Path:
    """A run that fine-tunes the pictures of CLIP, but not their projection."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(fit_open(tiny_shards, sources["clip"], folder, *CHANGES)) == 0
    return folder


def test_only_what_is_not_frozen_changes(run: Path, sources: dict[str, Path]) -> None:
    before, after = (
        load_file(folder / "model.safetensors") for folder in (sources["clip"], run / "model")
    )
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {
        "vision_model",
        "text_projection",
        "logit_scale",
    }


def test_the_exported_model_is_that_of_the_last_checkpoint(run: Path) -> None:
    transformers = load_transformers()
    model = transformers.AutoModel.from_pretrained(run / "model")
    processor = transformers.AutoProcessor.from_pretrained(run / "model")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    weights = checkpoint["state_dict"]
    scale = weights["loss.log_scale"]
    assert float(model.logit_scale.detach()) == pytest.approx(float(scale), abs=1e-6)
    for name, value in model.state_dict().items():
        if name != "logit_scale":
            assert torch.equal(value, weights[f"network.model.{name}"]), name
    assert processor.tokenizer("a dog")["input_ids"][0] == 0
    assert checkpoint["vatt_config"]["source"]


def test_training_starts_from_the_temperature_of_the_model(
    run: Path, sources: dict[str, Path]
) -> None:
    module = make_module(sources["clip"])
    own = float(module.network.model.logit_scale.detach().exp())
    assert float(module.loss.log_scale.detach().exp()) == pytest.approx(own)
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert float(rows[0]["train/temperature_video_text"]) == pytest.approx(1 / own)


def test_the_sigmoid_form_starts_from_scale_and_bias_of_the_model(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    module = make_module(sources["siglip"], loss={"form": "sigmoid"})
    model = module.network.model
    with torch.no_grad():
        model.logit_scale.fill_(math.log(117.0))  # of the published one, above our bound
        model.logit_bias.fill_(-16.8)
    model.save_pretrained(tmp_path)
    for file in sources["siglip"].glob("*.json"):
        if file.name != "config.json":
            shutil.copy(file, tmp_path)
    loss = make_module(tmp_path, loss={"form": "sigmoid"}).loss
    loss.bound_temperatures()
    assert float(loss.log_scale.detach().exp()) == pytest.approx(117.0)
    assert float(loss.bias.detach()) == pytest.approx(-16.8)
    given = make_module(tmp_path, loss={"form": "sigmoid", "temperature": 0.5}).loss
    assert float(given.log_scale.detach().exp()) == pytest.approx(2.0)


def make_module(source: Path, **changes: Any) -> OpenModelModule:
    options, loss = {"name": "adamw", **changes.pop("optimizer", {})}, changes.pop("loss", {})
    return OpenModelModule(
        read_settings(str(source), **changes),
        LossConfig(**{"form": "symmetric", "learn_temperature": True, **loss}),
        OptimizerConfig(**options),
        ScheduleConfig(max_steps=4, warmup_steps=0),
    )


def test_a_pattern_that_fits_no_weight_is_refused(sources: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"no weight has a name like '\*txt_model\*'"):
        make_module(sources["clip"], frozen=("*txt_model*",))
    with pytest.raises(UserError, match="leaves no weight to train"):
        make_module(sources["clip"], frozen=("*",))
    module = make_module(sources["clip"], optimizer={"lr_factors": {"*txt*": 2.0}})
    with pytest.raises(UserError, match=r"lr_factors: no weight has a name like '\*txt\*'"):
        build_optimizer(module, module.optimizer_config)


def test_a_model_that_cannot_be_fine_tuned_is_refused(
    tiny_shards: Path,
    tmp_path: Path,
    sources: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(source: Path) -> str:
        assert main(fit_open(tiny_shards, source, tmp_path / "run")) != 0
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "no model at" in refused(tmp_path / "absent")
    arguments = fit_open(tiny_shards, tmp_path, tmp_path / "run")
    assert main([one for one in arguments if "init_from" not in one]) != 0
    assert "give a model to fine-tune: --model.init_args.init_from" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(tmp_path / "empty")
    bert = tmp_path / "bert"
    load_transformers().BertConfig().save_pretrained(bert)
    assert "a model of the kind bert" in refused(bert)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "clap"])
def test_a_resumed_run_is_the_same_to_the_bit(tiny_shards: Path, tmp_path: Path, kind: str) -> None:
    whole, run, source = tmp_path / "whole", tmp_path / "run", SAVED[kind](tmp_path / "source")
    options = ["--run.ema_decay=0.9", "--run.checkpoint_every_n_steps=1"]
    options += CHANGES if kind == "clip" else ()
    assert main(fit_open(tiny_shards, source, whole, *options)) == 0
    stop = signal_options("step", signal.SIGTERM, step=2)
    stopped = main(fit_open(tiny_shards, source, run, *options, *stop))
    assert stopped == 128 + signal.SIGTERM
    resumed = ["fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last"]
    assert main([*resumed, "--trainer.callbacks=null"]) == 0
    assert read_losses(run) == read_losses(whole)
    first, second = (load_file(one / "model" / "model.safetensors") for one in (whole, run))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.ddp
def test_sharded_ranks_train_as_one_process(
    tiny_shards: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    runs = {}
    for ranks in (1, 2):
        runs[ranks] = tmp_path / f"run-{ranks}"
        # without Adam, which makes much of how float32 rounds the sums
        options = ["--model.init_args.optimizer={name: sgd, learning_rate: 0.02}"]
        options += ["--trainer.gradient_clip_val=null", *[SHARDED] * (ranks > 1)]
        arguments = fit_open(tiny_shards, sources["clip"], runs[ranks], *options)
        assert run_vatt(arguments, ranks, tmp_path / f"errors-{ranks}") == [0] * ranks
    one, two = (list(map(float, read_losses(runs[ranks]).values())) for ranks in (1, 2))
    assert two == pytest.approx(one, rel=1e-4)
    first, second = (load_file(runs[ranks] / "model" / "model.safetensors") for ranks in (1, 2))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_small_model_learns_the_demo_corpus(
    tiny_shards: Path, tmp_path: Path, sources: dict[str, Path]
) -> None:
    recalls = []
    for name, steps, rate in (("start", 1, 1e-9), ("trained", 100, 2e-3)):
        options = [
            f"--data.init_args.validation={tiny_shards / 'train'}",
            f"--model.init_args.optimizer.learning_rate={rate}",
            f"--trainer.max_steps={steps}",
            f"--trainer.val_check_interval={steps}",
            "--model.init_args.schedule.warmup_steps=0",
            "--data.init_args.max_validation_clips=null",
            "--data.init_args.batch_size=24",
            "--data.init_args.cache_gib=1",
        ]
        assert main(fit_open(tiny_shards, sources["clip"], tmp_path / name, *options)) == 0
        with (tmp_path / name / "metrics.csv").open() as file:
            found = [row["val/text_to_video/R@1"] for row in csv.DictReader(file)]
        recalls.append(float([value for value in found if value][-1]))
    assert recalls[1] >= recalls[0] + 25, recalls


needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="peft is not installed")


@needs_peft
@pytest.mark.parametrize("kind", ["clip", "towers"])
def test_only_adapters_train_and_the_export_contains_them(
    sources: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    config = settings(sources[kind], lora=LoraConfig(rank=2))
    torch.manual_seed(0)
    network = load_open_model(config).train()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    backbone = {name for name in trained if not name.startswith("head.")}
    assert backbone
    assert all(".lora_" in name for name in backbone)
    with torch.no_grad():
        for name in backbone:
            trained[name].normal_(std=0.1)
    save_open_model(config, network.state_dict(), tmp_path / "out")
    plain = dataclasses.replace(config, lora=None)
    again = load_open_model(moved(plain, tmp_path / "out")).eval()
    network.eval()
    batch = make_batch(network.double())
    with torch.no_grad():
        features, loaded = network.encode_batch(batch), again.double().encode_batch(batch)
    before = make_network(sources[kind]).eval()
    for modality, value in features.items():
        torch.testing.assert_close(loaded[modality], value, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            start = before.encode_batch(batch)[modality]
        assert float((start - value).abs().max()) > 1e-2


def moved(config: OpenModelConfig, folder: Path) -> OpenModelConfig:
    """The settings with another place of the model."""
    if config.towers is None:
        return dataclasses.replace(config, source=str(folder))
    towers = TowersConfig(**{name: str(folder / name) for name in config.towers.sources})
    return dataclasses.replace(config, towers=towers)


@needs_peft
def test_layers_without_such_a_name_get_no_adapters(sources: dict[str, Path]) -> None:
    lora = LoraConfig(layers=("*atention*",))
    with pytest.raises(UserError, match=r"no linear layer has a name like \*atention\*"):
        load_open_model(settings(sources["clip"], lora=lora))
