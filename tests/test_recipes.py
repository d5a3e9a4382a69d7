"""The shipped recipes: what they train, with what, and that it can be built."""

import contextlib
import io
from typing import Any

import pytest
import torch
import yaml

from datamodules.loader import share_of_batch
from datamodules.pretrain import PretrainData
from vatt.cli import main
from vatt.config import VATTConfig
from vatt.flops import count_flops
from vatt.losses import LossConfig
from vatt.optim import OptimizerConfig, ScheduleConfig
from vatt.presets import preset
from vatt.pretrain import PretrainModule
from vatt.transforms import AugmentConfig

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
    assert augment == {key: default[key] for key in augment}
    trainer = settings["trainer"]
    assert trainer["max_steps"] == 500_000
    assert trainer["gradient_clip_val"] is None
    assert trainer["accumulate_grad_batches"] == 1
    assert settings["run"]["ema_decay"] is None


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


def test_overlays_change_what_they_say() -> None:
    changed = parsed("pretrain_ma_medium overlay_sigmoid overlay_compile overlay_fsdp")
    settings = changed["model"]["init_args"]
    loss = LossConfig(**settings["loss"])
    assert (loss.form, loss.learns_temperature, loss.start_temperature) == ("sigmoid", True, 0.1)
    assert settings["compile_towers"] is True
    assert changed["trainer"]["strategy"]["class_path"] == "vatt.sharding.ShardedStrategy"
    assert VATTConfig.from_dict(settings["model"]) == preset("ma-medium")
