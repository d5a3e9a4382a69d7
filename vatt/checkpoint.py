"""Models on disk: self-describing folders, and Lightning checkpoints.

Nothing in a file is ever executed: safetensors for folders, `weights_only=True` for checkpoints.
"""

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vatt.config import MODALITIES, VATTConfig
from vatt.errors import CheckpointError, UserError
from vatt.files import write_atomically
from vatt.model import VATT
from vatt.optim import HEAD_PREFIXES
from vatt.preprocess_constants import PREPROCESS, preprocess_constants, preprocess_json
from vatt.text import Tokenizer
from vatt.tokens import interpolation_matrix

TRAINING_ONLY = ("dropout", "drop_token", "audio_drop_token")  # weights fit others, too
# What positions can be interpolated over, and what only says which clips are read.
CLIP_SIZES = (
    *("video.num_frames", "video.image_size", "video.frame_rate", "video.position_grid"),
    *("audio.num_samples", "audio.sample_rate", "audio.position_grid", "text.train_embedding"),
)
CONFIG_KEY = "vatt_config"  # the model's configuration in a Lightning checkpoint
NETWORK_PREFIX = "network."  # where training modules keep their VATT


def save_model(
    model: VATT, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> None:
    """Writes a self-describing folder.

    Args:
        model: What to save.
        folder: Made if missing; files in it are replaced one by one, atomically.
        tokenizer: Goes along as `tokenizer.json`. What else is to be known before the network
            stands in `preprocess.json`, for those who run it without vatt.

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
    has_tokenizer = (out / "tokenizer.json").exists()
    constants = preprocess_constants(model.config, has_tokenizer=has_tokenizer)
    write_atomically(out / PREPROCESS, preprocess_json(constants))


def save_optimizer_state(state: dict[str, Tensor] | None, folder: str | os.PathLike[str]) -> None:
    """Writes `optimizer.safetensors` beside a model.

    Args:
        state: The optimiser's tensors as `KIND.PARAMETER`, such as `exp_avg.video_tokens.agg`, and
            the number of `steps` that it has made. None: one that is there, of other weights, goes.
        folder: Of `save_model`.
    """
    from safetensors.torch import save

    path = Path(folder) / "optimizer.safetensors"
    if state is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, save(state))


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
        CheckpointError: there is no state, or it is not of this network.
    """
    state = _read_tensors(Path(folder) / "optimizer.safetensors")
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


def load_model(source: str | os.PathLike[str]) -> VATT:
    """Loads a folder of `save_model` or a Lightning checkpoint of pre-training, in evaluation mode.

    Raises:
        CheckpointError: there is no model at `source`, or its weights do not fit its configuration.
    """
    config, weights = _read_model(Path(source))
    model = VATT(config)
    _load(model, weights, source)
    return model.eval()


def load_weights(model: VATT, source: str | os.PathLike[str]) -> None:
    """Gives a model the weights of another one, such as a converted one.

    Both must compute the same, for clips of whatever length and size: positions of another grid
    are interpolated.

    Args:
        model: What gets the weights.
        source: As of `load_model`.

    Raises:
        CheckpointError: there is no model at `source`, or it is another one; names what differs.
    """
    config, weights = _read_model(Path(source))
    check_same(config, model.config, source, apart_from=CLIP_SIZES)
    _fit_positions(weights, model)
    _load(model, weights, source)


def load_backbone(model: VATT, source: str | os.PathLike[str]) -> None:
    """Gives a classifier the tower of another model; the classifier itself stays as it is.

    The other model's head and its other towers are left behind. Positions of another grid are
    interpolated.

    Args:
        model: What gets the weights; it has some of the other model's modalities.
        source: As of `load_model`.

    Raises:
        CheckpointError: there is no model at `source`, or its tower is another one; names what
            differs.
    """
    config, weights = _read_model(Path(source))
    theirs = _narrowed(config, model.config, source)
    check_same(theirs, model.config, source, apart_from=CLIP_SIZES)
    _fit_positions(weights, model)
    own = {
        name: value for name, value in model.state_dict().items() if name.startswith(HEAD_PREFIXES)
    }
    wanted = model.state_dict().keys() - own.keys()
    _load(model, own | {name: weights[name] for name in wanted & weights.keys()}, source)


def _narrowed(theirs: VATTConfig, ours: VATTConfig, source: str | os.PathLike[str]) -> VATTConfig:
    """A configuration with what `ours` has no use for as in `ours`."""
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
        if ".positions.tables." in name and table is not None and len(table) != len(value):
            weights[name] = interpolation_matrix(len(table), len(value)) @ table.float()


def _read_model(path: Path) -> tuple[VATTConfig, dict[str, Tensor]]:
    if path.is_dir():
        return _read_config(path), _read_tensors(path / "model.safetensors")
    if path.is_file():
        return _read_checkpoint(path)
    raise CheckpointError(f"no model at {path}: give a folder with config.json or a .ckpt file")


def _load(model: VATT, weights: dict[str, Tensor], path: str | os.PathLike[str]) -> None:
    expected = set(model.state_dict())
    if missing := sorted(expected - set(weights)):
        raise CheckpointError(
            f"{path} lacks {len(missing)} of {len(expected)} weights, first {missing[:3]}"
        )
    if unknown := sorted(set(weights) - expected):
        raise CheckpointError(
            f"{path} has {len(unknown)} weights its model does not, first {unknown[:3]}"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model's configuration: {error}") from error


def read_config(source: str | os.PathLike[str]) -> VATTConfig:
    """The configuration of a model folder, without its weights, or of a checkpoint.

    Raises:
        CheckpointError: there is no model at `source`.
    """
    path = Path(source)
    if path.is_dir():
        return _read_config(path)
    if not path.is_file():
        raise CheckpointError(f"no model at {path}: give a folder with config.json or a .ckpt file")
    return _read_checkpoint(path)[0]


def _read_config(folder: Path) -> VATTConfig:
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a model folder: config.json is missing") from error
    except ValueError as error:  # no JSON, or no text at all
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(
            f"{folder / 'config.json'} must hold an object, got {type(config).__name__}"
        )
    return _config_of(config, folder / "config.json")


def _config_of(values: dict[str, Any], path: Path) -> VATTConfig:
    try:
        return VATTConfig.from_dict(values)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; a pickle, or anything else, is refused unread."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not complete: {path.name} is missing") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def read_steps(checkpoint: str | os.PathLike[str]) -> int | None:
    """How many optimiser steps a checkpoint has seen, without its weights; None: it does not say.

    Raises:
        CheckpointError: it is none.
    """
    steps = _open_checkpoint(Path(checkpoint), mmap=True).get("global_step")
    return steps if isinstance(steps, int) else None


def _read_checkpoint(path: Path) -> tuple[VATTConfig, dict[str, Tensor]]:
    checkpoint = _open_checkpoint(path)
    weights = {
        name.removeprefix(NETWORK_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(NETWORK_PREFIX)
    }
    return _config_of(checkpoint[CONFIG_KEY], path), weights


def _open_checkpoint(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    import pickle

    remedy = "give a .ckpt that `vatt fit` wrote, or a model folder"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    # what the restricted unpickler says of files that are no pickles, or hold more than tensors
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError) as error:
        reason = f"{path} is not a checkpoint that can be read without running code from it"
        raise CheckpointError(f"{reason}: {remedy}") from error
    parts = (
        [checkpoint.get(key) for key in (CONFIG_KEY, "state_dict")]
        if isinstance(checkpoint, dict)
        else []
    )
    if not parts or not all(isinstance(part, dict) for part in parts):
        raise CheckpointError(
            f"{path} is not a checkpoint of vatt, without {CONFIG_KEY!r}: {remedy}"
        )
    return dict(checkpoint)


def check_same(
    theirs: VATTConfig,
    ours: VATTConfig,
    source: str | os.PathLike[str],
    *,
    apart_from: Collection[str] = (),
) -> None:
    """Refuses weights of a model that computes something else, also where the shapes are the same.

    Args:
        theirs: Configuration of the weights.
        ours: Configuration that they are for.
        source: Where the weights are from, for the message.
        apart_from: Dotted names that may differ.

    Raises:
        CheckpointError: names the first setting that differs, with both values.
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
    """What the weights depend on, by dotted name; every tower with the encoder that it has."""
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


def weights_digest(model: VATT) -> str:
    """A name for configuration and weights, the same wherever they are loaded from.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
