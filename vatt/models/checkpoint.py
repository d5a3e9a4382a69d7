"""Models on disk: self-describing folders, and Lightning checkpoints.

Nothing in a file is ever executed: safetensors for folders, `weights_only=True` for checkpoints.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vatt.config.model import VATTConfig
from vatt.errors import CheckpointError, UserError
from vatt.models.modules_json import write_modules_json
from vatt.models.preprocess_json import write_preprocess_json
from vatt.models.pretrained import VATT
from vatt.models.run_folder import model_in
from vatt.network import model as network
from vatt.preprocess.tokenizer import Tokenizer
from vatt.system.bounds import check_bytes, check_unpacked, unpacked_bytes
from vatt.system.files import write_atomically

WEIGHTS = "model.safetensors"  # of a model folder
TOKENIZER = "tokenizer.json"  # of a model folder, or of a run
CONFIG_KEY = "vatt_config"  # the model's configuration in a Lightning checkpoint
NETWORK_PREFIX = "network."  # where training modules keep their VATT
MAX_CONFIG_BYTES = 1 << 20  # of config.json; ours have 2 kB

Model = TypeVar("Model", bound=VATT)


def save_model(
    model: network.VATT, folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> None:
    """Writes a model folder, which contains all that is needed to load the model.

    Args:
        model: Model to save.
        folder: Folder to write, created if missing; existing files are replaced one by one,
            atomically.
        tokenizer: Tokenizer to store as `tokenizer.json`. `preprocess.json` describes the rest of
            the preprocessing, for use without vatt; `modules.json` is for sentence-transformers.

    Raises:
        OSError: a file cannot be written, for example because the disk is full; the error names it.
    """
    from safetensors.torch import save

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    # not save_file: on a full disk it raises an error of its own kind and leaves half a file
    weights = save({k: v.contiguous() for k, v in model.state_dict().items()})
    write_atomically(out / WEIGHTS, weights)
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    write_atomically(out / "config.json", config.encode())
    if tokenizer is not None:
        tokenizer.save(out / "tokenizer.json")
    write_preprocess_json(out, model.config, has_tokenizer=(out / "tokenizer.json").exists())
    write_modules_json(out)


def save_optimizer_state(state: dict[str, Tensor] | None, folder: str | os.PathLike[str]) -> None:
    """Writes the state of the optimiser into a model folder, as `optimizer.safetensors`.

    Args:
        state: Tensors named `KIND.PARAMETER`, such as `exp_avg.video_tokens.agg`, and the number
            of `steps` that the optimiser has made. None: an existing file is deleted, because it
            belongs to other weights.
        folder: Model folder that `save_model` wrote.
    """
    from safetensors.torch import save

    path = Path(folder) / "optimizer.safetensors"
    if state is None:
        path.unlink(missing_ok=True)
    else:
        write_atomically(path, save(state))


def load_model(source: str | os.PathLike[str]) -> VATT:
    """Loads a model from a model folder, a run folder or a checkpoint, in evaluation mode.

    Of a run folder the best checkpoint is loaded, else the last. Example:
    `vatt.load_model("runs/demo/model")` or `load_model("runs/x/checkpoints/last.ckpt")`.

    Raises:
        CheckpointError: there is no model at `source`, or its weights do not fit its configuration.
    """
    return load_model_as(VATT, source)


def load_model_as(kind: type[Model], source: str | os.PathLike[str]) -> Model:
    """Loads a model of a class, `vatt.VATT` or one derived from it; see `load_model`."""
    path = model_in(source)
    config, weights = read_model(path)
    model = _empty_model(kind, config, path)
    load_strictly(model, weights, source, assign=True)
    del weights
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            parameter.data = _own_copy(parameter.data)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, _own_copy(buffer))
    model.origin = Path(source).absolute()
    return model.eval()


def _own_copy(tensor: Tensor) -> Tensor:
    """Copy in memory of its own, of the type and on the device that a new model would have.

    The file may change or vanish later, and its tensors lie at odd addresses.
    """
    return tensor.to(torch.empty(0), copy=True, memory_format=torch.contiguous_format)


def _empty_model(kind: type[Model], config: VATTConfig, path: Path) -> Model:
    """A model without memory for its weights, of which `path` must be able to hold all."""
    try:
        with torch.device("meta"):
            model = kind(config)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error
    file = path / WEIGHTS if path.is_dir() else path
    size = file.stat().st_size if file.is_file() else None
    num_weights = sum(value.numel() for value in model.state_dict().values())
    if size is not None and num_weights > size:  # a weight has a byte or more
        raise CheckpointError(
            f"{path} is refused: its configuration describes a model of {num_weights:,} weights, "
            f"but {file} has only {size:,} bytes; copy both from where they were made"
        )
    return model


def read_model(source: Path) -> tuple[VATTConfig, dict[str, Tensor]]:
    """Settings and weights of a model folder, a run folder or a checkpoint."""
    path = model_in(source)
    if path.is_dir():
        return _read_config(path), read_tensors(path / WEIGHTS)
    return _read_checkpoint(path)


def load_strictly(
    model: network.VATT,
    weights: dict[str, Tensor],
    path: str | os.PathLike[str],
    *,
    assign: bool = False,
) -> None:
    """Loads weights into a model; their names and shapes must match exactly.

    Args:
        model: Model that receives the weights.
        weights: Weights by name.
        path: Origin of the weights, for the message.
        assign: Whether the model takes the tensors themselves, instead of copying their values.

    Raises:
        UserError: weights are missing, unexpected or of another shape; the error names `path`.
    """
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
        model.load_state_dict(weights, assign=assign)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model's configuration: {error}") from error


def read_config(source: str | os.PathLike[str]) -> VATTConfig:
    """Configuration of a model folder, a run folder or a checkpoint, mostly without its weights.

    Raises:
        CheckpointError: there is no model at `source`, or it cannot hold as many weights as its
            configuration describes.
    """
    path = model_in(source)
    config = _read_config(path) if path.is_dir() else _read_checkpoint(path)[0]
    _empty_model(VATT, config, path)
    return config


def _read_config(folder: Path) -> VATTConfig:
    file = folder / "config.json"
    try:
        check_bytes(file, file.stat().st_size, MAX_CONFIG_BYTES, CheckpointError)
        config = json.loads(file.read_text())
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not a model folder: config.json is missing") from error
    except (ValueError, RecursionError) as error:  # no JSON, or no text at all
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{file} must hold an object, got {type(config).__name__}")
    kind = config.get("model_type", "vatt")
    if kind != "vatt":  # of transformers
        raise CheckpointError(
            f"{folder} is a {kind} of transformers, no VATT, which is needed here: use it for "
            "features, search and evaluation"
        )
    return _config_of(config, file)


def _config_of(values: dict[str, Any], path: Path) -> VATTConfig:
    if "architecture" in values:  # `vatt.training.open_model`
        raise CheckpointError(
            f"{path} holds an open model of others in training: give the folder `model` that its "
            "run wrote at the end"
        )
    try:
        return VATTConfig.from_dict(values)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; pickles and other files are refused without reading them."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent} is not complete: {path.name} is missing") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error


def read_steps(checkpoint: str | os.PathLike[str]) -> int | None:
    """Number of optimiser steps of a checkpoint, or None if unknown; the weights are not read.

    Raises:
        CheckpointError: the file is not a checkpoint.
    """
    steps = read_entry(checkpoint, "global_step")
    return steps if isinstance(steps, int) else None


def read_entry(checkpoint: str | os.PathLike[str], key: str) -> Any:
    """Entry of a checkpoint, or None if it has none; the weights are not read.

    Raises:
        CheckpointError: the file is not a checkpoint.
    """
    return _open_checkpoint(Path(checkpoint), mmap=True).get(key)


def _read_checkpoint(path: Path) -> tuple[VATTConfig, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"no model at {path}: give a folder with config.json or a .ckpt file")
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
        check_archive(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except CheckpointError:
        raise
    # what the restricted unpickler says of files that are no pickles, or hold more than tensors
    except (
        *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError),
        zipfile.BadZipFile,
    ) as error:
        reason = f"{path} is not a checkpoint that can be read without running code from it"
        raise CheckpointError(f"{reason}: {remedy}") from error
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    if not all(isinstance(parts.get(key), dict) for key in (CONFIG_KEY, "state_dict")):
        raise CheckpointError(
            f"{path} is not a checkpoint of vatt, without {CONFIG_KEY!r}: {remedy}"
        )
    return parts


def check_archive(path: Path) -> None:
    """Refuses a checkpoint that unpacks to more than it has: `torch.save` packs nothing.

    Raises:
        CheckpointError: it unpacks to more.
        BadZipFile: it is no archive, as those of torch are.
    """
    with zipfile.ZipFile(path) as archive:
        check_unpacked(path, unpacked_bytes(archive), times=1, error=CheckpointError)


def weights_digest(model: network.VATT) -> str:
    """Hash of configuration and weights; it does not depend on the file they are loaded from.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    settings = json.dumps(model.config.to_dict(), sort_keys=True).encode()
    return sha256_of(settings, model.state_dict())


def sha256_of(settings: bytes, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of settings and named weights, whatever their order, in hexadecimal digits."""
    digest = hashlib.sha256(settings)
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def find_tokenizer(model: Path) -> Path | None:
    """Path of a model's `tokenizer.json`: in its folder, or up to two folders above a checkpoint.

    A run stores its checkpoints in a sub-folder, and the tokenizer above it.
    """
    path = model.absolute()
    files = (folder / TOKENIZER for folder in (path, *path.parents[:2]))
    return next((file for file in files if file.is_file()), None)


def tokenizer_of(model: Path) -> Tokenizer | None:
    """Loads the tokenizer that `find_tokenizer` finds; None if there is none.

    Raises:
        UserError: the file is damaged.
    """
    file = find_tokenizer(model)
    return None if file is None else Tokenizer.load(file)
