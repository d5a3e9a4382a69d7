"""Weights that training starts from: a whole model, a backbone or an optimiser state."""

import os
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vatt.config.geometry import MODALITIES
from vatt.config.model import VATTConfig
from vatt.errors import CheckpointError
from vatt.models.checkpoint import load_strictly, read_model, read_tensors
from vatt.network.model import HEAD_PREFIXES, VATT
from vatt.network.tokens import interpolation_matrix

TRAINING_ONLY = ("dropout", "drop_token", "audio_drop_token")  # weights fit others, too
# What positions can be interpolated over, and what only says which clips are read.
CLIP_SIZES = (
    *("video.num_frames", "video.image_size", "video.frame_rate", "video.position_grid"),
    *("audio.num_samples", "audio.sample_rate", "audio.position_grid", "text.train_embedding"),
)


def load_optimizer_state(
    optimizer: Optimizer, network: nn.Module, folder: str | os.PathLike[str]
) -> int:
    """Loads the optimiser's state that is stored with a model.

    Args:
        optimizer: Optimiser of the same kind as the stored one.
        network: Network that it trains; parameters without stored state, such as frozen ones, start
            without.
        folder: Model folder that `save_model` wrote.

    Returns:
        Number of steps that the optimiser had made.

    Raises:
        CheckpointError: there is no state, or it belongs to another network.
    """
    state = read_tensors(Path(folder) / "optimizer.safetensors")
    steps = int(state.pop("steps", torch.tensor(0)))
    kinds = {name.partition(".")[0] for name in state}
    if (isinstance(optimizer, torch.optim.Adam)) != ("exp_avg" in kinds):
        raise CheckpointError(
            f"{folder} has {', '.join(sorted(kinds))} of its optimiser, which is not of "
            f"{type(optimizer).__name__}: choose the same optimizer.name"
        )
    parameters = dict(network.named_parameters())
    for name, value in state.items():
        kind, _, parameter = name.partition(".")
        target = parameters.get(parameter)
        if target is None or target.shape != value.shape:
            shape = "nothing" if target is None else list(target.shape)
            raise CheckpointError(
                f"{folder}: optimiser state {name} {list(value.shape)} is for {shape}"
            )
        optimizer.state[target][kind] = value.to(target)
        if kind.startswith("exp_avg"):
            step = torch.tensor(float(steps), device=target.device)  # where fused kernels want it
            optimizer.state[target].setdefault("step", step)
    return steps


def load_weights(model: VATT, source: str | os.PathLike[str]) -> None:
    """Loads the weights of another model, such as a converted one.

    Both models must have the same architecture. Lengths and sizes of clips may differ; positions
    are then interpolated.

    Args:
        model: Model that receives the weights.
        source: A model folder, a run folder, or a checkpoint of a run.

    Raises:
        CheckpointError: there is no model at `source`, or it has another architecture; the error
            names the difference.
    """
    config, weights = read_model(Path(source))
    check_same(config, model.config, source, apart_from=CLIP_SIZES)
    _fit_positions(weights, model)
    load_strictly(model, weights, source)


def load_backbone(model: VATT, source: str | os.PathLike[str]) -> None:
    """Loads the tower of another model into a classifier; the classifier head does not change.

    Heads and other towers of that model are not used. Positions are interpolated if clips have
    another size.

    Args:
        model: Model that receives the weights; its modalities are among those of the other model.
        source: A model folder, a run folder, or a checkpoint of a run.

    Raises:
        CheckpointError: there is no model at `source`, or its tower has another architecture; the
            error names the difference.
    """
    config, weights = read_model(Path(source))
    theirs = _narrowed(config, model.config, source)
    check_same(theirs, model.config, source, apart_from=CLIP_SIZES)
    _fit_positions(weights, model)
    own = {
        name: value for name, value in model.state_dict().items() if name.startswith(HEAD_PREFIXES)
    }
    wanted = model.state_dict().keys() - own.keys()
    load_strictly(model, own | {name: weights[name] for name in wanted & weights.keys()}, source)


def _narrowed(theirs: VATTConfig, ours: VATTConfig, source: str | os.PathLike[str]) -> VATTConfig:
    """Configuration whose settings that `ours` does not use are replaced by those of `ours`."""
    absent = [name for name in ours.modalities if name not in theirs.modalities]
    if absent:
        raise CheckpointError(
            f"{source} has {', '.join(theirs.modalities)}: there is no {absent[0]}"
        )
    if theirs.arrangement != ours.arrangement:
        raise CheckpointError(
            f"{source} holds another model: arrangement is {theirs.arrangement} there and "
            f"{ours.arrangement} here"
        )
    unused = [name for name in MODALITIES if name not in ours.modalities]
    parts = [*unused, *(f"{name}_encoder" for name in unused), "modalities", "head", "classifier"]
    return replace(theirs, **{name: getattr(ours, name) for name in parts})


def _fit_positions(weights: dict[str, Tensor], model: VATT) -> None:
    """Interpolates tables of positions to the lengths that a model has."""
    for name, value in model.state_dict().items():
        table = weights.get(name)
        if ".positions.tables." not in name or table is None:
            continue
        if len(table) != len(value) and table.shape[1:] == value.shape[1:]:
            weights[name] = interpolation_matrix(len(table), len(value)) @ table.float()


def check_same(
    theirs: VATTConfig,
    ours: VATTConfig,
    source: str | os.PathLike[str],
    *,
    apart_from: Collection[str] = (),
) -> None:
    """Refuses weights of another architecture, even if all shapes are equal.

    Args:
        theirs: Configuration of the weights to load.
        ours: Configuration of the model that receives them.
        source: Origin of the weights, for the message.
        apart_from: Dotted names of settings that may differ.

    Raises:
        CheckpointError: a setting differs; the error names the first one, with both values.
    """
    there, here = _settings(theirs), _settings(ours)
    names = [*here, *(there.keys() - here.keys())]
    differing = [n for n in names if n not in apart_from and there.get(n) != here.get(n)]
    if differing:
        name = differing[0]
        raise CheckpointError(
            f"{source} holds another model: {name} is {there.get(name)} there and {here.get(name)} "
            f"here ({len(differing)} settings differ)"
        )


def _settings(config: VATTConfig) -> dict[str, Any]:
    """Settings that the weights depend on, by dotted name; each tower with its own encoder."""
    values = config.to_dict()
    if config.arrangement == "specific":
        values |= {f"{name}_encoder": asdict(config.tower(name)) for name in config.modalities}
        del values["encoder"]
    flat = _flatten(values)
    return {name: flat[name] for name in flat if name.rpartition(".")[2] not in TRAINING_ONLY}


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"video": {"num_frames": 8}}` → `{"video.num_frames": 8}`; lists become tuples."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat
