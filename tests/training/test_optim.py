"""Schedules, parameter groups, the rules of the optimisers, and clipping."""

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training_runs import fit_arguments

from vatt.cli import main
from vatt.config.presets import preset
from vatt.network.model import VATT, backbone_and_head
from vatt.training.optim import (
    KerasAdam,
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
    clip_gradients,
    learning_rate_factor,
    parameter_groups,
)


@pytest.mark.parametrize("kind", ["half_cosine", "quarter_cosine", "constant_then_linear"])
def test_schedule_starts_at_zero_peaks_after_warm_up_and_ends_at_its_final_factor(
    kind: str,
) -> None:
    config = ScheduleConfig(kind=kind, max_steps=1000, warmup_steps=100, final_factor=0.25)
    factors = [learning_rate_factor(config, step / 1000) for step in range(1001)]
    assert factors[0] == 0
    assert factors[100] == pytest.approx(1)
    assert factors[-1] == pytest.approx(0.25)
    assert all(math.isfinite(factor) for factor in factors)
    assert all(a >= b for a, b in pairwise(factors[100:]))


def official_rate(step: int) -> float:
    """The release's `StepCosine`: levels 1e-4 and 5e-5 at steps 5,000 and 500,000."""
    if step < 5_000:
        return 1e-4 * step / 5_000
    share = (step - 5_000) / (500_000 - 5_000)
    return 5e-5 + (1e-4 - 5e-5) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize("step", [0, 1, 2_500, 4_999, 5_000, 5_001, 100_000, 252_500, 499_999])
def test_pre_training_has_the_rates_of_the_release(step: int) -> None:
    factor = learning_rate_factor(ScheduleConfig(), step / 500_000)
    assert 1e-4 * factor == pytest.approx(official_rate(step), rel=1e-9)


def test_last_step_has_a_rate_where_the_release_divides_by_zero() -> None:
    assert learning_rate_factor(ScheduleConfig(), 1.0) == pytest.approx(0.5)


def test_fine_tuning_warms_up_and_falls_to_zero() -> None:
    config = ScheduleConfig(max_steps=100_000, warmup_steps=2_500, final_factor=0.0)
    rates = [0.005 * learning_rate_factor(config, step / 100_000) for step in (1_250, 51_250)]
    assert rates == pytest.approx([0.0025, 0.0025])
    assert learning_rate_factor(config, 1.0) == pytest.approx(0, abs=1e-12)


def test_constant_schedule_falls_only_after_its_plateau() -> None:
    config = ScheduleConfig(
        kind="constant_then_linear",
        max_steps=100,
        warmup_steps=0,
        final_factor=0,
        constant_until=0.6,
    )
    assert learning_rate_factor(config, 0.6) == 1
    assert learning_rate_factor(config, 0.8) == pytest.approx(0.5)


def test_schedule_refuses_a_warm_up_without_end() -> None:
    with pytest.raises(ValueError, match="warmup_steps \\(10\\) < max_steps \\(10, from trainer"):
        ScheduleConfig(max_steps=10, warmup_steps=10)


def test_only_matrices_decay_and_every_weight_is_in_one_group() -> None:
    model = VATT(preset("tiny"))
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert all(p.ndim == 2 for p in decayed["params"])
    assert any(p is model.video_tokens.positions.tables[0] for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))


def test_t5s_relative_bias_does_not_decay() -> None:
    model = VATT(dataclasses.replace(preset("tiny"), arrangement="specific"))
    _, plain = parameter_groups(model, 0.1)
    bias = model.encoders["text"].relative_bias.weight
    assert any(p is bias for p in plain["params"])


@pytest.mark.parametrize("arrangement", ["agnostic", "specific"])
def test_rates_fall_from_the_head_down_to_the_tokens(arrangement: str) -> None:
    model = VATT(dataclasses.replace(preset("tiny"), arrangement=arrangement))
    groups = build_optimizer(model, OptimizerConfig(name="adamw", layer_decay=0.5)).param_groups
    factors = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(factors) == len(named)
    encoder = "shared" if arrangement == "agnostic" else "video"
    for part, factor in (
        ("head.", 1.0),
        (f"encoders.{encoder}.final_norm", 1.0),
        (f"encoders.{encoder}.blocks.1.", 0.5),
        (f"encoders.{encoder}.blocks.0.", 0.25),
        ("video_tokens.", 0.125),
    ):
        found = [factors[id(p)] for name, p in named.items() if name.startswith(part)]
        assert found
        assert set(found) == {factor}, part
    assert groups[0]["lr_factor"] == 1


@pytest.mark.parametrize(
    "values",
    [
        {"layer_decay": 0.0},
        {"name": "adamW"},
        {"learning_rate": -1.0},
        {"clip_backbone": 0.0},
        {"clip_head": -1.0},
        {"clip_replicas": 0},
    ],
)
def test_optimizer_that_cannot_train_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="optimizer"):
        OptimizerConfig(**values)


def test_optimizer_has_the_settings_of_the_release() -> None:
    group = build_optimizer(VATT(preset("tiny")), OptimizerConfig()).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (1e-4, (0.9, 0.999), 1e-7)


NUM_STEPS = 12
RATES = [0.0, 0.02, 0.05, 0.01, 0.04, 0.0, 0.03, 0.02, 0.01, 0.05, 0.02, 0.01]
Rule = Callable[[np.ndarray, dict[str, np.ndarray], float, int], np.ndarray]


def keras_adam(g: np.ndarray, state: dict[str, np.ndarray], rate: float, t: int) -> np.ndarray:
    state["m"] = 0.9 * state["m"] + 0.1 * g
    state["v"] = 0.999 * state["v"] + 0.001 * g**2
    corrected = rate * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return -corrected * state["m"] / (np.sqrt(state["v"]) + 0.01)


def keras_sgd(g: np.ndarray, state: dict[str, np.ndarray], rate: float, t: int) -> np.ndarray:
    state["m"] = 0.9 * state["m"] - rate * g
    return state["m"]


def gradients(missing: tuple[int, ...] = ()) -> Iterator[list[np.ndarray | None]]:
    """Of two parameters; the second has none at the steps `missing`, counted from 1."""
    rng = np.random.default_rng(0)
    for step in range(1, NUM_STEPS + 1):
        first, second = 0.01 * rng.standard_normal((2, 5))  # ε of 0.01 matters
        yield [first, None if step in missing else second]


def follow(rule: Rule, missing: tuple[int, ...] = (), decay: float = 0.0) -> list[np.ndarray]:
    """Where a rule takes two parameters from 1."""
    weights = [np.ones(5), np.ones(5)]
    states = [{"m": np.zeros(5), "v": np.zeros(5)} for _ in weights]
    for step, (rate, rows) in enumerate(zip(RATES, gradients(missing), strict=True), start=1):
        for index, row in enumerate(rows):
            if row is not None:
                row = row + decay * weights[index]
                weights[index] = weights[index] + rule(row, states[index], rate, step)
    return weights


class Weights(nn.Module):
    """Two parameters, in one group."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 1, bias=False, dtype=torch.float64)
        self.other = nn.Linear(5, 1, bias=False, dtype=torch.float64)
        for weight in self.parameters():
            nn.init.ones_(weight)


def train(
    config: OptimizerConfig,
    missing: tuple[int, ...] = (),
    *,
    restart_at: int = 0,
    **kernels: bool,
) -> list[np.ndarray]:
    """Where our optimiser takes them; restarts from its state dict after a step."""
    model = Weights()
    optimizer = build_optimizer(model, config)
    steps = enumerate(zip(RATES, gradients(missing), strict=True), start=1)
    for step, (rate, rows) in steps:
        for group in optimizer.param_groups:
            group.update(kernels, lr=rate)
        for weight, row in zip(model.parameters(), rows, strict=True):
            weight.grad = None if row is None else torch.from_numpy(row)[None]
        optimizer.step()
        if step == restart_at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = build_optimizer(model, config)
            optimizer.load_state_dict(state)
    return [weight.detach().numpy()[0] for weight in model.parameters()]


ADAM = OptimizerConfig(name="adam", eps=0.01)
SGD = OptimizerConfig(name="sgd")


@pytest.mark.parametrize("restart_at", [0, 1, 5])
@pytest.mark.parametrize("kernels", [{}, {"fused": False}, {"fused": False, "foreach": True}])
@pytest.mark.parametrize("missing", [(), (1, 2, 6)])
def test_adam_is_that_of_keras(
    missing: tuple[int, ...], kernels: dict[str, bool], restart_at: int
) -> None:
    moved = train(ADAM, missing, restart_at=restart_at, **kernels)
    np.testing.assert_allclose(moved, follow(keras_adam, missing), rtol=1e-12)


@pytest.mark.parametrize("restart_at", [0, 1, 5])
@pytest.mark.parametrize("missing", [(), (1, 2, 6)])
def test_sgd_is_that_of_keras(missing: tuple[int, ...], restart_at: int) -> None:
    moved = train(SGD, missing, restart_at=restart_at)
    np.testing.assert_allclose(moved, follow(keras_sgd, missing), rtol=1e-12)


def test_decay_of_sgd_is_part_of_the_gradient() -> None:
    moved = train(dataclasses.replace(SGD, weight_decay=0.3))
    np.testing.assert_allclose(moved, follow(keras_sgd, decay=0.3), rtol=1e-12)


@pytest.mark.parametrize("config", [ADAM, SGD, OptimizerConfig(name="adamw")])
def test_optimizer_computes_gradients_by_a_closure_and_gives_its_loss(
    config: OptimizerConfig,
) -> None:
    model = Weights()
    optimizer = build_optimizer(model, config)

    def closure() -> Tensor:
        loss = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        loss.backward()
        return loss

    assert optimizer.step(closure) == 10
    assert all((p < 1).all() for p in model.parameters())


def test_state_of_torchs_adam_goes_on_with_its_count_and_epsilon() -> None:
    model = Weights()
    torchs = torch.optim.Adam(model.parameters(), eps=0.01)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    for _ in range(3):
        torchs.step()
    groups = [{"params": list(model.parameters())}]
    ours = KerasAdam(groups, lr=0.1, betas=(0.9, 0.999), eps=1.0)
    ours.load_state_dict(torchs.state_dict())
    ours.step()
    (group,) = ours.state_dict()["param_groups"]
    assert (group["num_steps"], group["epsilon"]) == (4, 0.01)
    assert group["eps"] == pytest.approx(0.01 / math.sqrt(1 - 0.999**4))


def test_step_that_overflows_does_not_count() -> None:
    model = Weights().float()
    optimizer = build_optimizer(model, OptimizerConfig(learning_rate=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for gradient in (math.inf, 1.0):
        for weight in model.parameters():
            weight.grad = torch.full_like(weight, gradient) * 4.0
        scaler.scale(torch.ones(()))  # makes the scaler ready, as the loss does
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.param_groups[0]["num_steps"] == 1
    np.testing.assert_allclose(model.linear.weight.detach(), 0.9, rtol=1e-5)  # by the rate, once


def scaled(rows: list[np.ndarray], largest: float | None) -> list[np.ndarray]:
    norm = math.sqrt(sum(float((row**2).sum()) for row in rows))
    return rows if largest is None else [row * largest / max(norm, largest) for row in rows]


@pytest.mark.parametrize("backbone", [None, 1e-7, 0.75, 1e3])
@pytest.mark.parametrize("head", [None, 0.5])
def test_gradients_are_clipped_by_part_as_tensorflow_does(
    backbone: float | None, head: float | None
) -> None:
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(size) for size in (3, 40, 2, 50)]
    parts = [nn.Parameter(torch.zeros(len(row), dtype=torch.float64)) for row in rows]
    for part, row in zip(parts, rows, strict=True):
        part.grad = torch.from_numpy(row.copy())
    without = nn.Parameter(torch.zeros(2))
    config = OptimizerConfig(clip_backbone=backbone, clip_head=head)
    clip_gradients([without, *parts[:2]], parts[2:], config)
    expected = scaled(rows[:2], backbone) + scaled(rows[2:], head)
    for part, row in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part.grad, row, rtol=1e-12)
    assert without.grad is None


@pytest.mark.parametrize(("size", "is_equal"), [(10.0, True), (20.0, True), (60.0, False)])
def test_a_limit_for_replicas_clips_as_the_official_code_unless_one_of_them_is_beyond(
    size: float, is_equal: bool
) -> None:
    replicas, limit = 32, 0.75  # the gradient of a replica's own loss is cut off above 24
    rng = np.random.default_rng(1)
    own = rng.standard_normal((replicas, 50))
    own *= size / np.linalg.norm(own, axis=1, keepdims=True)
    official = sum(scaled([row / replicas], limit)[0] for row in own)
    part = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    part.grad = torch.from_numpy(own.mean(axis=0))
    config = OptimizerConfig(clip_backbone=limit, clip_replicas=replicas)
    clip_gradients([part], [], config)
    assert np.allclose(part.grad, official, rtol=1e-12) == is_equal
    part.grad = torch.from_numpy(own[0] * 3)  # all replicas alike, beyond the limit
    clip_gradients([part], [], config)
    official = replicas * scaled([own[0] * 3 / replicas], limit)[0]
    np.testing.assert_allclose(part.grad, official, rtol=1e-12)


def test_part_without_gradients_is_left_alone() -> None:
    part = nn.Parameter(torch.zeros(2))
    clip_gradients([], [part], OptimizerConfig(clip_backbone=1.0, clip_head=1.0))
    assert part.grad is None


def test_head_is_what_uses_the_features() -> None:
    model = VATT(preset("tiny"))
    model.classifier = nn.Linear(3, 2)
    backbone, head = backbone_and_head(model)
    expected = [*model.head.parameters(), *model.classifier.parameters()]
    assert [id(p) for p in head] == [id(p) for p in expected]
    assert len(backbone) + len(head) == len(list(model.parameters()))
    assert any(p is next(model.post_projections.parameters()) for p in backbone)


def clipping_run(shards: Path, folder: Path, *more: str) -> int:
    recording = "--trainer.callbacks+=training_runs.RecordNorms"
    short = ["--trainer.max_steps=3", "--trainer.limit_val_batches=0", recording]
    learned = "--model.init_args.loss.learn_temperature=true"
    return main(fit_arguments(shards, folder / "run", learned, *short, *more))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_run_clips_the_part_that_it_shall(
    tiny_shards: Path, tmp_path: Path, name: str, precision: str
) -> None:
    more = [f"--model.init_args.optimizer.name={name}", f"--trainer.precision={precision}"]
    more += ["--model.init_args.optimizer.clip_backbone=0.001", "--trainer.gradient_clip_val=null"]
    assert clipping_run(tiny_shards, tmp_path, *more) == 0
    norms = json.loads((tmp_path / "norms.json").read_text())
    assert norms["backbone"] == pytest.approx(0.001, rel=1e-4)
    assert norms["head"] > 0.01


def test_what_the_loss_learns_is_clipped_with_the_head(tiny_shards: Path, tmp_path: Path) -> None:
    more = ["--model.init_args.optimizer.clip_head=0.001", "--trainer.gradient_clip_val=null"]
    assert clipping_run(tiny_shards, tmp_path, *more) == 0
    norms = json.loads((tmp_path / "norms.json").read_text())
    assert norms["head"] == pytest.approx(0.001, rel=1e-4)
    assert norms["backbone"] > 0.01


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_trainer_clips_all_gradients_together(tiny_shards: Path, tmp_path: Path, name: str) -> None:
    more = [f"--model.init_args.optimizer.name={name}", "--trainer.precision=bf16-mixed"]
    assert clipping_run(tiny_shards, tmp_path, "--trainer.gradient_clip_val=0.001", *more) == 0
    norms = json.loads((tmp_path / "norms.json").read_text())
    assert math.hypot(*norms.values()) == pytest.approx(0.001, rel=1e-2)


def test_clipping_in_two_ways_is_refused_before_training(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--model.init_args.optimizer.clip_head=0.5", "--trainer.gradient_clip_val=1.0"]
    assert clipping_run(tiny_shards, tmp_path, *more) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "vatt: trainer.gradient_clip_val 1.0 would clip what optimizer.clip_backbone and clip_head "
        "clip: set it to null, or them"
    )
    assert not (tmp_path / "norms.json").exists()
