"""Schedules and parameter groups."""

import dataclasses
import math
from itertools import pairwise

import pytest

from vatt.config import preset
from vatt.model import VATT
from vatt.optim import (
    OptimizerConfig,
    ScheduleConfig,
    build_optimizer,
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


def test_official_schedule_gives_the_rates_of_the_release() -> None:
    config = ScheduleConfig()  # 0 → 1e-4 in 5k steps, half-cosine to 5e-5 at 500k
    assert learning_rate_factor(config, 2_500 / 500_000) == pytest.approx(0.5)
    assert learning_rate_factor(config, 252_500 / 500_000) == pytest.approx(0.75)


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


@pytest.mark.parametrize("values", [{"name": "adamW"}, {"learning_rate": -1.0}])
def test_optimizer_that_cannot_train_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="optimizer"):
        OptimizerConfig(**values)


def test_optimizer_has_the_settings_of_the_release() -> None:
    group = build_optimizer(VATT(preset("tiny")), OptimizerConfig()).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (1e-4, (0.9, 0.999), 1e-7)
