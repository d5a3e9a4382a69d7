"""The shipped recipes: what they train, with what, and that it can be built."""

import contextlib
import functools
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from datamodules.pretrain import PretrainData
from vatt.cli import main
from vatt.config.augment import AugmentConfig
from vatt.config.model import VATTConfig
from vatt.config.presets import as_classifier, preset
from vatt.data.loader import share_of_batch
from vatt.network.contrastive_loss import LossConfig
from vatt.network.flops import count_flops
from vatt.training.finetune import FinetuneModule
from vatt.training.optim import OptimizerConfig, ScheduleConfig
from vatt.training.pretrain import PretrainModule

CONFIGS = Path(__file__).parents[2] / "configs"
PUBLISHED = ("pretrain_ma_medium", "pretrain_bbs", "pretrain_mbs", "pretrain_lbs")
PRESETS = {
    "pretrain_ma_medium": "ma-medium",
    "pretrain_ma_base_1gpu": "ma-base",
    "pretrain_bbs": "bbs",
    "pretrain_mbs": "mbs",
    "pretrain_lbs": "lbs",
    "pretrain_bbs overlay_spectrogram": "bbs-spectrogram",
    "pretrain_mbs overlay_spectrogram": "mbs-spectrogram",
    "pretrain_lbs overlay_spectrogram": "lbs-spectrogram",
}


@functools.cache
def parsed(names: str) -> dict[str, Any]:
    """A configuration as `vatt fit` understands it."""
    configs = [f"--config={name}" for name in names.split()]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["fit", *configs, "--data.init_args.train=[x]", "--print_config"]) == 0
    return yaml.safe_load(shown.getvalue())


@pytest.mark.parametrize("names", PRESETS)
def test_recipe_trains_the_published_model(names: str) -> None:
    settings = parsed(names)["model"]["init_args"]
    config = VATTConfig.from_dict(settings["model"])
    assert config == preset(PRESETS[names])
    with torch.device("meta"):
        module = PretrainModule(
            config,
            LossConfig(**settings["loss"]),
            OptimizerConfig(**settings["optimizer"]),
            ScheduleConfig(max_steps=500_000),
        )
    assert sum(p.numel() for p in module.network.parameters()) > 1e8
    assert count_flops(config).total > 1e11


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipe_is_as_published(name: str) -> None:
    settings = parsed(name)
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    assert model["loss"] == vars(LossConfig(temperature=0.07))
    assert {**model["optimizer"], "betas": (0.9, 0.999)} == vars(OptimizerConfig())
    schedule = ScheduleConfig(**{**model["schedule"], "max_steps": 500_000})
    assert schedule == ScheduleConfig()
    assert (data["batch_size"], data["num_candidates"]) == (2048, 5)
    augment = {key: value for key, value in data["augment"].items() if "range" not in key}
    default = vars(AugmentConfig())
    assert augment == {key: default[key] for key in augment} | {"crop": "official"}
    trainer = settings["trainer"]
    assert trainer["max_steps"] == 500_000
    assert trainer["gradient_clip_val"] is None
    assert trainer["accumulate_grad_batches"] == 1
    assert settings["run"]["ema_decay"] is None


@pytest.mark.parametrize("name", ["pretrain_ma_medium", "pretrain_ma_base_1gpu"])
def test_the_command_of_a_recipe_mixes_both_sets_equally(name: str) -> None:
    comment = (CONFIGS / f"{name}.yaml").read_text()
    (mixture,) = re.findall(r"--train '(.*?)'", comment)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        options = [f"--config={name}", f"--train={mixture}", "--print_config"]
        assert main(["fit", *options]) == 0
    train = yaml.safe_load(shown.getvalue())["data"]["init_args"]["train"]
    assert train == {"HOWTO100M": 1.0, "AUDIOSET": 1.0}


@pytest.mark.parametrize(("devices", "share"), [(1, 2048), (32, 64), (256, 8)])
def test_published_batch_is_shared_by_many_devices(devices: int, share: int) -> None:

    assert (
        share_of_batch(parsed("pretrain_ma_medium")["data"]["init_args"]["batch_size"], devices)
        == share
    )


@pytest.mark.parametrize("name", [*PUBLISHED, "pretrain_ma_base_1gpu"])
def test_data_reads_what_the_model_sees(name: str) -> None:
    settings = parsed(name)
    config = VATTConfig.from_dict(settings["model"]["init_args"]["model"])
    data = settings["data"]["init_args"]
    augment = data.pop("augment")
    ranges = {key: tuple(value) for key, value in augment.items() if isinstance(value, list)}
    for part in ("video", "audio", "text"):
        data.pop(part, None)
    made = PretrainData(
        **data,
        video=config.video,
        audio=config.audio,
        text=config.text,
        augment=AugmentConfig(**{**augment, **ranges}),
    )
    assert made.geometry.video.duration_seconds == pytest.approx(3.2)
    assert made.geometry.audio.duration_seconds == pytest.approx(3.2)


def test_one_gpu_takes_the_whole_batch_in_micro_batches() -> None:
    settings = parsed("pretrain_ma_base_1gpu")
    micro = settings["model"]["init_args"]["micro_batch_size"]
    assert settings["data"]["init_args"]["batch_size"] % micro == 0
    assert settings["trainer"]["devices"] == 1


def tuned(name: str, *more: str) -> dict[str, Any]:
    """A fine-tuning recipe as `vatt fit` understands it."""
    shown = io.StringIO()
    options = [f"--config={name}", "--data.init_args.train=x", *more, "--print_config"]
    with contextlib.redirect_stdout(shown):
        assert main(["fit", *options]) == 0
    return yaml.safe_load(shown.getvalue())


# Paper section 4.2 and appendix, official configuration: batch, peak rate, warm-up, steps, clipping
# of the backbone, label smoothing, classes, several labels, dropout of the classifier, mixup.
TUNED = {
    "finetune_kinetics": (64, 0.005, 2_500, 100_000, 0.75, 0.1, 400, False, 0.5, None),
    "finetune_moments": (64, 0.005, 2_500, 100_000, 0.75, 0.1, 339, False, 0.5, None),
    "finetune_audioset": (1024, 0.2, 5_000, 50_000, None, 0.0, 527, True, 0.0, 5.0),
    "finetune_imagenet": (512, 0.08, 0, 125_000, None, 0.1, 1000, False, 0.5, None),
}


@pytest.mark.parametrize("name", TUNED)
def test_fine_tuning_is_as_published(name: str) -> None:
    settings = tuned(name)
    model, data = settings["model"]["init_args"], settings["data"]["init_args"]
    optimizer, schedule = model["optimizer"], model["schedule"]
    classifier = model["model"]["classifier"]
    assert TUNED[name] == (
        data["batch_size"],
        optimizer["learning_rate"],
        schedule["warmup_steps"],
        settings["trainer"]["max_steps"],
        optimizer["clip_backbone"],
        model["label_smoothing"],
        classifier["num_classes"],
        classifier["multi_label"],
        classifier["dropout"],
        data["mixup_alpha"],
    )
    assert (optimizer["name"], optimizer["momentum"], optimizer["clip_head"]) == ("sgd", 0.9, None)
    assert (schedule["kind"], schedule["final_factor"]) == ("half_cosine", 0.0)
    assert optimizer["weight_decay"] == 0
    if classifier["modality"] == "video":
        assert data["augment"]["crop"] == "paper"
        assert (data["num_windows"], data["num_crops"]) == ((1, 1) if "image" in name else (4, 3))


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize(
    "size", ["ma-medium", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bbs", "lbs"))]
)
def test_published_fine_tuning_starts_from_any_model(name: str, size: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset(size).to_dict()))
    settings = tuned(name, f"--model.init_args.init_from={tmp_path}")["model"]["init_args"]
    config = VATTConfig.from_dict(settings["model"])
    kind = "image" if "imagenet" in name else config.classifier.modality
    expected = as_classifier(preset(size), kind, config.classifier.num_classes)
    assert config.tower(config.classifier.modality) == expected.tower(config.classifier.modality)
    assert config.classifier == expected.classifier
    assert (config.drop_token, config.head) == (0.0, None)
    if kind == "audio":
        assert config.audio == replace(expected.audio, position_grid=(1200,))
    else:
        sizes = {"finetune_kinetics": 320, "finetune_imagenet": 384}
        assert config.video.image_size == sizes.get(name, 224)
        assert config.video.position_grid == (8, 14, 14)
        assert config.video.num_frames == (4 if kind == "image" else 32)
        assert kind == "image" or config.video.duration_seconds == pytest.approx(2.56)
    with torch.device("meta"):
        schedule = ScheduleConfig(**{**settings["schedule"], "max_steps": 50_000})
        FinetuneModule(config, OptimizerConfig(**settings["optimizer"]), schedule)


def test_overlays_change_what_they_say() -> None:
    changed = parsed("pretrain_ma_medium overlay_sigmoid overlay_compile overlay_fsdp")
    settings = changed["model"]["init_args"]
    loss = LossConfig(**settings["loss"])
    assert (loss.form, loss.learns_temperature, loss.start_temperature) == ("sigmoid", True, 0.1)
    assert settings["compile_towers"] is True
    assert changed["trainer"]["strategy"]["class_path"] == "vatt.training.sharding.ShardedStrategy"
    assert VATTConfig.from_dict(settings["model"]) == preset("ma-medium")
