"""Optimisers and learning-rate schedules.

Source: paper section 4.1 and appendix; google-research/vatt `configs/experiment.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vatt.config.checks import check_choices
from vatt.errors import CheckpointError, UserError
from vatt.network.layers import RelativeBias


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimiser; the defaults are those of pre-training [P, C].

    Args:
        name: `adam` (as in Keras, see `KerasAdam`), `adamw` (torch's, with decoupled weight decay)
            or `sgd` (as in Keras, see `KerasSGD`).
        learning_rate: Peak learning rate of the schedule.
        betas: Decay rates of Adam's averages of the gradient and its square.
        eps: Epsilon of Adam.
        momentum: Momentum of SGD.
        weight_decay: Weight decay, applied to the weights of linear layers and word vectors only.
        clip_backbone: Maximum global norm of the backbone's mean gradient over the whole batch.
            None: no clipping. [C] has 0.75 in video fine-tuning, but see `clip_replicas`.
        clip_head: The same for projection heads, classifiers and learned parameters of the loss.
        clip_replicas: Factor of both norms. [C] clips the gradient of each replica's loss divided
            by the number of replicas R, before the sum, so the mean gradient may have R times the
            norm. With R here, steps are those of [C] unless the gradient of a single replica is
            beyond the limit. 1 is ours: it clips far more often.
        layer_decay: Factor, in (0, 1], of the learning rate from each transformer block to the one
            below; the last one, the first of this factor, comes below the head. Deep pre-trained
            blocks are then hardly changed. 1: the same rate everywhere. Source: Bao et al.,
            "BEiT", 2022, and He et al., "Masked Autoencoders", 2022.
        lr_factors: Factor of the learning rate for weights whose name fits a glob pattern, such as
            `{"*text_model*": 0.1}`; the first that fits counts. Names are those of the network's
            weights, or `loss.log_scale` and `loss.bias`. None: 1 for all.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-7
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip_backbone: float | None = None
    clip_head: float | None = None
    clip_replicas: int = 1
    layer_decay: float = 1.0
    lr_factors: dict[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuses unknown optimisers and values out of range."""
        check_choices(self, "optimizer")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise UserError(
                f"optimizer needs learning_rate > 0 and weight_decay >= 0, got "
                f"{self.learning_rate} and {self.weight_decay}"
            )
        if self.clip_replicas < 1:
            raise UserError(f"optimizer.clip_replicas must be at least 1, got {self.clip_replicas}")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optimizer.layer_decay must be in (0, 1], got {self.layer_decay}")
        for pattern, factor in (self.lr_factors or {}).items():
            if not factor >= 0:
                raise UserError(f"optimizer.lr_factors {pattern!r} must be at least 0: {factor}")
        for name in ("clip_backbone", "clip_head"):
            norm = getattr(self, name)
            if norm is not None and norm <= 0:
                raise UserError(
                    f"optimizer.{name} must be a norm above 0, or null for no clipping, got {norm}"
                )

    @property
    def clips(self) -> bool:
        """Whether any gradients are clipped."""
        return self.clip_backbone is not None or self.clip_head is not None


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over a run, as a factor of the peak.

    Args:
        kind: Form after the linear warm-up. `half_cosine` [C] and `quarter_cosine` [P] fall from
            the peak to `final_factor`; `constant_then_linear` stays at the peak until
            `constant_until`, then falls linearly to `final_factor`.
        max_steps: Optimiser steps of the run.
        start_step: Steps already trained before this run, in the initial weights; the schedule
            covers these and the steps of the run.
        warmup_steps: Steps of the linear warm-up from 0 to the peak.
        final_factor: Factor at the last step; the paper goes from 1e-4 to 5e-5.
        constant_until: Share of the run, in [0, 1], at which `constant_then_linear` begins to fall.
    """

    kind: Literal["half_cosine", "quarter_cosine", "constant_then_linear"] = "half_cosine"
    max_steps: int = 500_000
    start_step: int = 0
    warmup_steps: int = 5_000
    final_factor: float = 0.5
    constant_until: float = 0.7

    def __post_init__(self) -> None:
        """Refuses a warm-up that is as long as the schedule, and shares out of range."""
        check_choices(self, "schedule")
        if self.max_steps < 1 or self.start_step < 0:
            raise UserError(
                f"schedule needs max_steps >= 1 (from trainer.max_steps) and start_step >= 0, "
                f"got {self.max_steps} and {self.start_step}"
            )
        if not 0 <= self.warmup_steps < self.total_steps:
            raise UserError(
                f"schedule needs 0 <= warmup_steps ({self.warmup_steps}) < max_steps "
                f"({self.total_steps}, from trainer.max_steps): "
                "set --model.init_args.schedule.warmup_steps"
            )
        if not 0 <= self.constant_until < 1:
            raise UserError(f"schedule.constant_until must be in [0, 1), got {self.constant_until}")

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule, including those before the run."""
        return self.start_step + self.max_steps


def learning_rate_factor(config: ScheduleConfig, progress: float) -> float:
    """Factor of the peak learning rate.

    Args:
        config: The schedule.
        progress: Completed share of the schedule, step / total_steps; clamped to [0, 1].

    Returns:
        In [0, 1], finite everywhere (the official schedule is NaN at its last step).
    """
    progress = min(max(progress, 0.0), 1.0)
    warmup = config.warmup_steps / config.total_steps
    if progress < warmup:
        return progress / warmup
    if config.kind == "constant_then_linear":
        begin = max(warmup, config.constant_until)
        share = max(0.0, progress - begin) / (1 - begin)
        return 1 + (config.final_factor - 1) * share
    angle = math.pi * (progress - warmup) / (1 - warmup)
    falling = 0.5 * (1 + math.cos(angle)) if config.kind == "half_cosine" else math.cos(angle / 2)
    return config.final_factor + (1 - config.final_factor) * falling


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    layer_decay: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: with weight decay and without, for each `lr_factor`.

    Weights of linear layers and word vectors decay; biases, norms, positions, AGG, T5's relative
    bias and temperatures do not. Without `layer_decay` and `lr_factors` there are two groups, which
    may be empty.

    Raises:
        UserError: a pattern of `lr_factors` fits no weight.
    """
    decayed = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Embedding) and not isinstance(module, RelativeBias)
    }
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if layer_decay == 1 and not lr_factors:
        return _by_decay([p for _, p in trainable], decayed, weight_decay)
    depths, named = dict.fromkeys((name for name, _ in trainable), 0), {}
    if layer_decay != 1:
        stacks = {n: len(m) for n, m in model.named_modules() if n.endswith(".blocks")}
        depths = {name: _depth(name, stacks) for name in depths}
    if lr_factors:
        named = _factors([name for name, _ in model.named_parameters()], lr_factors)
    places = {name: (depth, named.get(name, 1.0)) for name, depth in depths.items()}
    groups: list[dict[str, Any]] = []
    for depth, factor in sorted(set(places.values())):
        weights = [p for n, p in trainable if places[n] == (depth, factor)]
        here = _by_decay(weights, decayed, weight_decay)
        groups += [{**group, "lr_factor": layer_decay**depth * factor} for group in here]
    return groups


def _factors(names: list[str], patterns: Mapping[str, float]) -> dict[str, float]:
    """Factor of each name that fits a pattern: that of the first.

    Raises:
        UserError: a pattern fits no name.
    """
    shown = {name: name.removeprefix("network.") for name in names}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in shown.values()):
            raise UserError(
                f"optimizer.lr_factors: no weight has a name like {pattern!r}; the first are "
                f"{', '.join([*shown.values()][:3])}"
            )
    return {
        name: next(value for p, value in patterns.items() if fnmatchcase(short, p))
        for name, short in shown.items()
        if any(fnmatchcase(short, pattern) for pattern in patterns)
    }


def _by_decay(
    parameters: list[nn.Parameter], decayed: set[int], weight_decay: float
) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]


def _depth(name: str, stacks: Mapping[str, int]) -> int:
    """Depth of a parameter: 0 for heads, 1 for the last of the blocks, then down to the tokens.

    Args:
        name: Name of the parameter.
        stacks: Number of blocks by the name of their list.
    """
    stack, is_block, rest = name.partition(".blocks.")
    if is_block:
        return stacks[f"{stack}.blocks"] - int(rest.partition(".")[0])
    return 1 + max(stacks.values()) if "_tokens." in name else 0


class KerasAdam(torch.optim.Adam):
    """Adam as in Keras: epsilon is added to the root of the uncorrected second moment.

    `w -= lr · √(1 - β2^t) / (1 - β1^t) · m / (√v + ε)`, where torch divides `√v` by `√(1 - β2^t)`
    before it adds ε. Torch's Adam with `ε / √(1 - β2^t)` (32 ε at step 1) gives the same result, so
    its kernels are used. As in Keras, `t` counts all steps, even for a parameter that had no
    gradient in some of them. A group of the state dict stores the configured ε as `epsilon` and `t`
    as `num_steps`; its `eps` is that of the last step.

    Source: `keras.optimizers.Adam`, with which google-research/vatt trains.
    """

    def _init_group(self, group: dict[str, Any], *lists: Any) -> Any:
        """Sets the step count and eps of a group; torch's `step` calls it before it reads them."""
        is_complex = super()._init_group(group, *lists)
        step_counts = lists[-1]
        if "num_steps" not in group:  # the first step, or the first after a state of torch's Adam
            group["epsilon"] = group["eps"]
            group["num_steps"] = max((int(count) for count in step_counts), default=0)
        if step_counts:  # two kernels; one count at a time would be one for each parameter
            torch._foreach_zero_(step_counts)
            torch._foreach_add_(step_counts, group["num_steps"])
        group["num_steps"] += 1
        correction = 1 - group["betas"][1] ** group["num_steps"]
        group["eps"] = group["epsilon"] / math.sqrt(correction)
        return is_complex


class KerasSGD(Optimizer):
    """SGD with momentum as in Keras: the velocity includes the learning rate.

    `velocity = momentum · velocity - lr · gradient`, then `w += velocity`, without Nesterov. Torch
    multiplies by the learning rate after the momentum. The results differ whenever the rate
    changes: in a warm-up from 0, torch's steps are longer.

    Source: `keras.optimizers.SGD`, with which google-research/vatt fine-tunes.
    """

    def __init__(self, params: Iterable[dict[str, Any]], *, lr: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Updates the parameters that have a gradient; `closure` computes the gradients first.

        As with torch's optimisers, a `found_inf` other than 0 leaves out the step.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        if bool(getattr(self, "found_inf", False)):
            return loss
        for group in self.param_groups:
            weights: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["velocity"] = torch.zeros_like(weight)
            velocities = [self.state[weight]["velocity"] for weight in weights]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            if decay := group["weight_decay"]:
                gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
            torch._foreach_mul_(velocities, group["momentum"])
            torch._foreach_add_(velocities, gradients, alpha=-group["lr"])
            torch._foreach_add_(weights, velocities)
        return loss


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """Optimiser of the trainable parameters of `model`, at the peak learning rate.

    Adam updates all parameters in one kernel, in every precision.
    """
    groups = parameter_groups(model, config.weight_decay, config.layer_decay, config.lr_factors)
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return KerasSGD(groups, lr=config.learning_rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else KerasAdam
    optimizer = kind(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
    )
    # A loss scaler shall leave out steps that overflow. It would hand them to a fused kernel, which
    # would count them, and Lightning refuses to clip the gradients of an optimiser that takes them.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def reorder_state(
    state: dict[str, Any],
    model: nn.Module,
    saved_names: Iterable[str],
    layer_decay: float = 1.0,
    lr_factors: Mapping[str, float] | None = None,
) -> None:
    """Sorts the state of an optimiser into the present order of the parameters of `model`.

    torch finds the state of a parameter by its index only and compares no shapes. It would silently
    accept the state of a model with another order of parts. Fused kernels would then write beyond
    the end of the state, and the process would crash later.

    Args:
        state: State dict of an optimiser of `build_optimizer`, changed in place. One with names for
            keys (FSDP2) is not changed.
        model: Model whose parameters the optimiser updates.
        saved_names: Keys of the saved model's state dict, in order.
        layer_decay: That of the optimiser.
        lr_factors: Those of the optimiser.

    Raises:
        CheckpointError: a parameter and its state differ in shape.
    """
    if not all(isinstance(index, int) for index in state["state"]):
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places = {name: place for place, name in enumerate(saved_names)}
    moved: dict[int, Any] = {}
    all_groups = parameter_groups(model, 0.0, layer_decay, lr_factors)
    groups = [group["params"] for group in all_groups if group["params"]]
    for saved, now in zip(state["param_groups"], groups, strict=False):  # torch refuses other sizes
        then = sorted(now, key=lambda parameter: places.get(names[id(parameter)], len(places)))
        indices = {id(parameter): i for parameter, i in zip(then, saved["params"], strict=False)}
        for index, parameter in zip(saved["params"], now, strict=False):
            values = state["state"].get(indices[id(parameter)], {})
            _check_shapes(values, parameter, names[id(parameter)])
            moved[index] = values
    state["state"] = {index: values for index, values in moved.items() if values}


def _check_shapes(values: dict[str, Any], parameter: Tensor, name: str) -> None:
    for kind, value in values.items():
        if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
            raise CheckpointError(
                f"the optimiser's state {kind} of {name} has shape {list(value.shape)}, its "
                f"parameter {list(parameter.shape)}"
            )


def clip_gradients(
    backbone: Iterable[nn.Parameter], head: Iterable[nn.Parameter], config: OptimizerConfig
) -> None:
    """Scales the gradients of each part down to its largest global norm, in place.

    Source: `tf.clip_by_global_norm`, `clip / max(norm, clip)`; torch's own adds 1e-6 to the norm.

    Args:
        backbone: Clipped to `config.clip_backbone`.
        head: Clipped to `config.clip_head`.
        config: The norms.
    """
    for part, limit in ((backbone, config.clip_backbone), (head, config.clip_head)):
        gradients = [p.grad for p in part if p.grad is not None]
        if limit is None or not gradients:
            continue
        largest = limit * config.clip_replicas
        norm = torch.nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, largest / norm.clamp(min=largest))
