"""Checks that losses, weights and the optimiser's state are finite, with few waits for the device.

A step whose gradients are not finite changes no weight (`TrainingModule`), so the host may learn of
it some steps later.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vatt.errors import UserError
from vatt.system.ranks import any_rank

WEIGHTS = ("state_dict", "current_model_state", "averaging_state")  # keys of a checkpoint
NUM_NAMES = 8  # of clips or tensors in an error


class NonFiniteLossError(UserError):
    """Losses, gradients or weights are NaN or infinite; no checkpoint has them."""


@dataclass(frozen=True, kw_only=True)
class StepLoss:
    """Loss of a step, on its device.

    Args:
        step: Optimiser steps before this one.
        learning_rate: Its learning rate.
        total: The loss, a scalar.
        parts: Its parts by name.
        keys: Names of the clips of the batch.
    """

    step: int
    learning_rate: float
    total: Tensor
    parts: Mapping[str, Tensor]
    keys: Sequence[str]


def refuse_non_finite(losses: Sequence[StepLoss]) -> None:
    """Refuses losses of which one is not finite; waits once for the device.

    Args:
        losses: Losses of some steps, from the first on.

    Raises:
        NonFiniteLossError: a loss is NaN or infinite; the error names its step, parts and clips.
    """
    finite = torch.stack([loss.total.isfinite() for loss in losses]).tolist()
    for loss, is_finite in zip(losses, finite, strict=True):
        if is_finite:
            continue
        broken = [f"{name} {v.item()}" for name, v in loss.parts.items() if not v.isfinite()]
        raise NonFiniteLossError(
            f"the loss is not finite at step {loss.step} ({', '.join(broken)}; learning rate "
            f"{loss.learning_rate:.3g}). {clips_and_remedy(loss.keys)}"
        )


def clips_and_remedy(keys: Sequence[str]) -> str:
    """End of an error: names of the first clips of a batch, and what to do."""
    return (
        f"Clips of the batch: {_first(keys) or 'unnamed'}. Lower the learning rate, clip gradients "
        "(--trainer.gradient_clip_val 1), or look at these."
    )


def refuse_to_save(
    checkpoint: Mapping[str, Any],
    optimizer: Optimizer | None,
    module: nn.Module,
    keys: Sequence[str],
) -> None:
    """Refuses a checkpoint whose weights or optimiser state are not finite.

    Args:
        checkpoint: Checkpoint of Lightning.
        optimizer: Optimiser of the state in the checkpoint. None: there is none.
        module: Module that has the parameters.
        keys: Names of the clips of the last batch.

    Raises:
        NonFiniteLossError: a value is NaN or infinite at any rank; the error names its parameter.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = [] if optimizer is None else optimizer.param_groups
    order = [names.get(id(p), "") for group in groups for p in group["params"]]
    broken = _non_finite(dict(_named_tensors(checkpoint, order)))
    if any_rank(bool(broken)):  # the first rank alone has sharded weights
        raise NonFiniteLossError(
            f"the state after step {checkpoint['global_step']} is not finite and is not saved: "
            f"{_first(broken) or 'at another rank'}. The checkpoint before it is kept. "
            f"{clips_and_remedy(keys)}"
        )


def _named_tensors(
    checkpoint: Mapping[str, Any], order: Sequence[str]
) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a checkpoint by a name for the user; `order`: parameters as the optimiser has."""
    for kind in WEIGHTS:
        for name, value in checkpoint.get(kind, {}).items():
            yield (name if kind == "state_dict" else f"{name} ({kind})"), value
    for state in checkpoint.get("optimizer_states", []):
        groups = state.get("param_groups", [])  # none at ranks that do not write sharded weights
        indices = [index for group in groups for index in group["params"]]
        names = dict(zip(indices, order, strict=False))
        for index, values in state.get("state", {}).items():
            name = names.get(index, str(index))
            yield from ((f"{kind} of {name}", value) for kind, value in values.items())


def _non_finite(tensors: Mapping[str, Any]) -> list[str]:
    """Names of the tensors that have a NaN or an infinity."""
    floats = {n: v for n, v in tensors.items() if isinstance(v, Tensor) and v.is_floating_point()}
    # a sum is not finite if a term is not; it is fast, but may overflow
    sums: dict[torch.device, list[Tensor]] = {}
    for value in floats.values():
        sums.setdefault(value.device, []).append(value.sum().isfinite())
    waits = {device: iter(torch.stack(flags).tolist()) for device, flags in sums.items()}
    suspects = [name for name, value in floats.items() if not next(waits[value.device])]
    return [name for name in suspects if not floats[name].isfinite().all()]


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:NUM_NAMES])}{' …' if len(names) > NUM_NAMES else ''}"
