"""Optimisers and learning-rate schedules.

Source: paper section 4.1 and appendix; google-research/vatt `configs/experiment.py`.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer

from vatt.config import check_choices


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser of the trainable weights; defaults are those of pre-training [P, C].

    Args:
        name: `adam`, `adamw` (decoupled weight decay) or `sgd`.
        learning_rate: The schedule's peak.
        betas: Adam's averages of gradient and its square.
        eps: Adam's epsilon.
        momentum: SGD's.
        weight_decay: On the weights of linear layers and word vectors only.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-7
    momentum: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuses an optimiser that there is not, and rates that cannot train."""
        check_choices(self, "optimizer")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError(
                f"optimizer needs learning_rate > 0 and weight_decay >= 0, got "
                f"{self.learning_rate} and {self.weight_decay}"
            )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over a run, as a factor of the peak.

    Args:
        kind: After the linear warm-up: `half_cosine` [C] or `quarter_cosine` [P] from the peak to
            `final_factor`; or `constant_then_linear`: the peak until `constant_until`, then
            straight to `final_factor`.
        max_steps: Optimiser steps of the whole run.
        warmup_steps: Steps from 0 to the peak.
        final_factor: Factor at the last step; 1e-4 → 5e-5 in the paper.
        constant_until: Share of the run, in [0, 1], at which `constant_then_linear` begins to fall.
    """

    kind: Literal["half_cosine", "quarter_cosine", "constant_then_linear"] = "half_cosine"
    max_steps: int = 500_000
    warmup_steps: int = 5_000
    final_factor: float = 0.5
    constant_until: float = 0.7

    def __post_init__(self) -> None:
        """Refuses a warm-up that never ends and shares out of range."""
        check_choices(self, "schedule")
        if self.max_steps < 1 or not 0 <= self.warmup_steps < self.max_steps:
            raise ValueError(
                f"schedule needs 0 <= warmup_steps ({self.warmup_steps}) < max_steps "
                f"({self.max_steps}, from trainer.max_steps)"
            )
        if not 0 <= self.constant_until < 1:
            raise ValueError(
                f"schedule.constant_until must be in [0, 1), got {self.constant_until}"
            )


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """Factor of the peak learning rate.

    Args:
        config: The schedule.
        progress: Share of the run that is done, step / max_steps; beyond 1 counts as 1.

    Returns:
        In [0, 1], finite everywhere (the official schedule is NaN at its last step).
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = config.warmup_steps / config.max_steps
    if progress < warmup:
        return progress / warmup
    if config.kind == "constant_then_linear":
        begin = max(warmup, config.constant_until)
        share = max(0.0, progress - begin) / (1 - begin)
        return 1 + (config.final_factor - 1) * share
    angle = math.pi * (progress - warmup) / (1 - warmup)
    falling = 0.5 * (1 + math.cos(angle)) if config.kind == "half_cosine" else math.cos(angle / 2)
    return config.final_factor + (1 - config.final_factor) * falling


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Trainable parameters in two groups: with decay and without.

    Weights of linear layers and word vectors decay; biases, norms, positions, AGG, T5's relative
    bias and temperatures do not.
    """
    decayed = {
        id(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding) and not name.endswith("relative_bias")
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> Optimizer:
    """The optimiser over the trainable parameters of `model`, at the peak learning rate.

    Args:
        model: Whose parameters.
        config: Which optimiser.
        fused: One kernel for all parameters. Lightning refuses it beside gradient clipping where
            it runs in mixed precision.
    """
    groups = [group for group in parameter_groups(model, config.weight_decay) if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=fused)
