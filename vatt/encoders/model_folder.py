"""Model folders of other libraries: their kind, their settings and the size of their weights."""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vatt.errors import CheckpointError, UserError
from vatt.models.run_folder import is_run
from vatt.system.bounds import check_bytes
from vatt.system.device import free_device_memory
from vatt.system.files import read_json
from vatt.system.machine import free_memory

CONFIG, MODULES = "config.json", "modules.json"
SENTENCE_CONFIG = "config_sentence_transformers.json"
KIND_FILES = (CONFIG, MODULES, SENTENCE_CONFIG)  # they say what a model is
OWN, SENTENCE = "vatt", "sentence-transformers"
VOCABULARIES = (  # of tokenizers, one of which a model has
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
# files that the vectors depend on, beside the weights
SETTINGS = (
    *(*KIND_FILES, *VOCABULARIES, "merges.txt", "sentence_bert_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
MOST_JSON_BYTES = 1 << 24  # of a configuration; the longest lists of classes have 1 MB
MOST_HEADER_BYTES = 100_000_000  # of a safetensors file, as its library allows
OTHER_FORMATS = ("onnx", "openvino", "coreml", "gguf")  # folders of the same weights again


def kind_of(path: Path) -> str:
    """Kind of the model at a path: `vatt`, `sentence-transformers`, or its `model_type`.

    Raises:
        CheckpointError: its description is damaged, or of a model that makes no vectors.
    """
    if not path.is_dir() or is_run(path):
        return OWN
    if (path / MODULES).is_file():
        types = module_types(path)
        if all(one.startswith("vatt.") for one in types):  # ours, as that library loads it
            return OWN
        kind = _read_object(path / SENTENCE_CONFIG).get("model_type", "SentenceTransformer")
        if kind != "SentenceTransformer":
            raise CheckpointError(
                f"{path} is a {kind} of sentence-transformers, which gives no vector of one input: "
                "choose a SentenceTransformer"
            )
        return SENTENCE
    return str(_read_object(path / CONFIG).get("model_type", OWN))


def module_types(folder: Path) -> list[str]:
    """Classes of the modules of a model of sentence-transformers."""
    return [str(module.get("type")) for module in _modules(folder)]


def wants_remote_code(folder: Path) -> bool:
    """Whether `config.json` names classes in files beside it."""
    return "auto_map" in _read_object(folder / CONFIG)


def weight_folders(folder: Path) -> list[Path]:
    """Folders in which the weights of a model lie: its own, or those of its modules."""
    if not (folder / MODULES).is_file():
        return [folder]
    names = [str(module.get("path", "")) for module in _modules(folder)]
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise CheckpointError(f"{folder / MODULES} names the folder {outside[0]} outside the model")
    return list(dict.fromkeys(folder / name for name in names if (folder / name).is_dir()))


def weight_files(names: Iterable[str]) -> list[str]:
    """Files of the weights among those of one folder: safetensors, else pickles that torch wrote.

    transformers and sentence-transformers look for the same names.
    """
    names = sorted(names)
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        whole = f"{stem}{suffix}"
        if whole in names:
            return [whole]
        shards = [n for n in names if n.startswith(f"{stem}-") and n.endswith(suffix)]
        if shards:
            return shards
    return []


def wanted_files(files: Iterable[str], with_code: bool) -> list[str]:
    """Files of a model on the Hub that are needed to load it, each weight once.

    Args:
        files: All of its files.
        with_code: Whether to take Python files, too.
    """
    by_folder: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        if not {*folder.split("/")} & {*OTHER_FORMATS}:
            by_folder.setdefault(folder, []).append(name)
    suffixes = (".json", ".txt", ".jinja", *([".py"] if with_code else []))
    wanted = []
    for folder, names in by_folder.items():
        chosen = [n for n in names if n.endswith(suffixes) or n in SETTINGS]
        chosen += weight_files(names)
        wanted += [f"{folder}/{name}" if folder else name for name in chosen]
    return wanted


def weight_bytes(folder: Path) -> int:
    """Bytes that the weights of a model take as float32; the files are not read.

    Raises:
        CheckpointError: a file is damaged.
    """
    total = 0
    for place in weight_folders(folder):
        for name in weight_files(path.name for path in place.iterdir()):
            is_pickle = name.endswith(".bin")
            total += (place / name).stat().st_size if is_pickle else 4 * _num_weights(place / name)
    return total


def check_memory(source: str, num_bytes: int, device: torch.device) -> None:
    """Refuses a model whose weights do not fit, before they are read.

    Args:
        source: Name of the model.
        num_bytes: Bytes of its weights in float32.
        device: Where it goes. Its weights are read into the memory of the CPU first.

    Raises:
        UserError: they do not fit.
    """
    for place, free in ((device, free_device_memory(device)), ("cpu", free_memory())):
        if free is not None and num_bytes > free:
            raise UserError(
                f"{source} has {num_bytes / 2**30:.1f} GiB of weights in float32, and {place} has "
                f"{free / 2**30:.1f} GiB of free memory: choose a smaller model, or a machine with "
                "more memory"
            )


def settings_of(folder: Path) -> bytes:
    """Hash of all files of a model that describe it and its preprocessing; no weights."""
    digest = hashlib.sha256()
    for place in dict.fromkeys((folder, *weight_folders(folder))):
        for name in SETTINGS:
            if (place / name).is_file():
                digest.update(f"{place.relative_to(folder)}/{name}".encode())
                digest.update((place / name).read_bytes())
    return digest.digest()


def _modules(folder: Path) -> list[dict[str, Any]]:
    file = folder / MODULES
    modules = _read_json(file)
    if not isinstance(modules, list) or not all(isinstance(one, dict) for one in modules):
        raise CheckpointError(f"{file} must hold a list of modules: copy the model anew")
    return modules


def _read_object(file: Path) -> dict[str, Any]:
    """Object in a JSON file; empty if there is no file."""
    if not file.is_file():
        return {}
    values = _read_json(file)
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold an object, got {type(values).__name__}")
    return values


def _read_json(file: Path) -> Any:
    check_bytes(file, file.stat().st_size, MOST_JSON_BYTES, CheckpointError)
    try:
        return read_json(file)
    except UserError as error:
        raise CheckpointError(f"{error}") from error


def _num_weights(file: Path) -> int:
    """Number of weights of a safetensors file, from its header."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MOST_HEADER_BYTES:
                raise ValueError(f"its header claims {length:,} bytes")
            header = json.loads(stream.read(length))
            entries = (value for name, value in header.items() if name != "__metadata__")
            return sum(math.prod(value["shape"]) for value in entries)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
