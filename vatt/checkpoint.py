"""Models on disk: self-describing folders, and Lightning checkpoints.

Nothing in a file is ever executed: safetensors for folders, `weights_only=True` for checkpoints.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vatt.config import VATTConfig
from vatt.files import write_atomically
from vatt.model import VATT
from vatt.text import Tokenizer
from vatt.tokens import interpolation_matrix

CONFIG_KEY = "vatt_config"  # the model's configuration in a Lightning checkpoint
NETWORK_PREFIX = "network."  # where PretrainModule keeps its VATT


def save_model(
    model: VATT, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> None:
    """Writes a self-describing folder.

    Args:
        model: What to save.
        folder: Made if missing; files in it are replaced one by one, atomically.
        tokenizer: Goes along as `tokenizer.json`.

    Raises:
        OSError: a file cannot be written, for example for want of space; names it.
    """
    from safetensors.torch import save

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    # not save_file: on a full disk it raises an error of its own kind and leaves half a file
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()})
    write_atomically(out / "model.safetensors", weights)
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    write_atomically(out / "config.json", config.encode())
    if tokenizer is not None:
        tokenizer.save(out / "tokenizer.json")


def save_optimizer_state(state: dict[str, Tensor], folder: str | os.PathLike[str]) -> None:
    """Writes `optimizer.safetensors` beside a model.

    Args:
        state: The optimiser's tensors as `KIND.PARAMETER`, such as `exp_avg.video_tokens.agg`, and
            the number of `steps` that it has made.
        folder: Of `save_model`.
    """
    from safetensors.torch import save

    write_atomically(Path(folder) / "optimizer.safetensors", save(state))


def load_optimizer_state(
    optimizer: Optimizer, network: nn.Module, folder: str | os.PathLike[str]
) -> int:
    """Gives an optimiser the state that lies beside a model.

    Args:
        optimizer: Of the same kind as the one that the state is of.
        network: Whose parameters it moves; those without state, such as frozen ones, start afresh.
        folder: Of `save_model`.

    Returns:
        Number of steps that the state has seen.

    Raises:
        ValueError: there is no state, or it is not of this network.
    """
    state = _read_tensors(Path(folder) / "optimizer.safetensors")
    steps = int(state.pop("steps", torch.tensor(0)))
    parameters = dict(network.named_parameters())
    for name, value in state.items():
        kind, _, parameter = name.partition(".")
        target = parameters.get(parameter)
        if target is None or target.shape != value.shape:
            shape = "nothing" if target is None else list(target.shape)
            raise ValueError(f"{folder}: optimiser state {name} {list(value.shape)} is for {shape}")
        optimizer.state[target][kind] = value.to(target)
        if kind.startswith("exp_avg"):
            optimizer.state[target].setdefault("step", torch.tensor(float(steps)))
    return steps


def load_model(source: str | os.PathLike[str]) -> VATT:
    """Loads a folder of `save_model` or a Lightning checkpoint of pre-training, in evaluation mode.

    Raises:
        ValueError: there is no model at `source`, or its weights do not fit its configuration.
    """
    config, weights = _read_model(Path(source))
    model = VATT(VATTConfig.from_dict(config))
    _load(model, weights, source)
    return model.eval()


def load_weights(model: VATT, source: str | os.PathLike[str]) -> None:
    """Gives a model the weights of another one of the same sizes, such as a converted one.

    Positions of another grid are interpolated, as the official code does before fine-tuning.

    Args:
        model: What gets the weights.
        source: As of `load_model`.

    Raises:
        ValueError: there is no model at `source`, or its weights do not fit.
    """
    _, weights = _read_model(Path(source))
    for name, value in model.state_dict().items():
        table = weights.get(name)
        if ".positions.tables." in name and table is not None and len(table) != len(value):
            weights[name] = interpolation_matrix(len(table), len(value)) @ table
    _load(model, weights, source)


def _read_model(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if path.is_dir():
        return _read_config(path), _read_tensors(path / "model.safetensors")
    if path.is_file():
        return _read_checkpoint(path)
    raise ValueError(f"no model at {path}: give a folder with config.json or a .ckpt file")


def _load(model: VATT, weights: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    expected = set(model.state_dict())
    if missing := sorted(expected - set(weights)):
        raise ValueError(
            f"{path} lacks {len(missing)} of {len(expected)} weights, first {missing[:3]}"
        )
    if unknown := sorted(set(weights) - expected):
        raise ValueError(
            f"{path} has {len(unknown)} weights its model does not, first {unknown[:3]}"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model's configuration: {error}") from error


def read_config(source: str | os.PathLike[str]) -> VATTConfig:
    """The configuration of a model folder, without its weights, or of a checkpoint.

    Raises:
        ValueError: there is no model at `source`.
    """
    path = Path(source)
    if path.is_dir():
        return VATTConfig.from_dict(_read_config(path))
    if not path.is_file():
        raise ValueError(f"no model at {path}: give a folder with config.json or a .ckpt file")
    return VATTConfig.from_dict(_read_checkpoint(path)[0])


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise ValueError(f"{folder} is not a model folder: config.json is missing") from error
    except ValueError as error:  # no JSON, or no text at all
        raise ValueError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(
            f"{folder / 'config.json'} must hold an object, got {type(config).__name__}"
        )
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; a pickle, or anything else, is refused unread."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent} is not complete: {path.name} is missing") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import pickle

    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint that can be read safely: {error}") from error
    if not isinstance(checkpoint, dict) or CONFIG_KEY not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of vatt: it has no {CONFIG_KEY!r}")
    weights = {
        name.removeprefix(NETWORK_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(NETWORK_PREFIX)
    }
    return checkpoint[CONFIG_KEY], weights
