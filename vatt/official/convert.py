"""Conversion of official TensorFlow checkpoints, pre-trained or fine-tuned, to model folders."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vatt.config.model import VATTConfig
from vatt.errors import ConversionError
from vatt.models.checkpoint import save_model, save_optimizer_state
from vatt.models.pretrained import VATT
from vatt.official.names import SLOT, Part, parts_of
from vatt.official.settings import config_of_settings
from vatt.official.shapes import settings_of_variables
from vatt.official.tensor_bundle import TensorBundle
from vatt.preprocess.tokenizer import Tokenizer
from vatt.system.files import write_atomically

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOTS = {"m": "exp_avg", "v": "exp_avg_sq", "momentum": "velocity"}  # Keras' names → torch's
NOT_WEIGHTS = {  # variables beside the model's, and why they are left out
    rf"{SLOT}": "optimiser state",
    r"^optimizer/": "optimiser setting",
    r"^save_counter$": "how often it was saved",
    r"^_CHECKPOINTABLE_OBJECT_GRAPH$": "TensorFlow's object graph",
}


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """Use of every variable of a checkpoint.

    Args:
        used: Our tensor that each official variable is part of.
        ignored: Reason why each other official variable is not used.
        missing: Our tensors that the checkpoint lacks; empty unless the conversion failed.
        unknown: Unexpected official variables; empty unless the conversion failed.
        misshapen: Expected and actual shape of each tensor that does not fit; empty unless the
            conversion failed.
    """

    used: dict[str, str]
    ignored: dict[str, str]
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    misshapen: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """Number of variables that were used, and that were left out by reason."""
        reasons = Counter(self.ignored.values())
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        tensors = len(set(self.used.values()))
        return (
            f"{len(self.used)} variables became {tensors} tensors, none is missing; "
            f"{len(self.ignored)} were left out: {left_out or 'none'}"
        )

    def check(self, path: object) -> None:
        """Raises ConversionError with all names, unless checkpoint and model fit."""
        faults = [
            *(f"missing: {name}" for name in self.missing),
            *(f"without a place in the model: {name}" for name in self.unknown),
            *(f"{name}: {shapes}" for name, shapes in self.misshapen.items()),
        ]
        if faults:
            raise ConversionError(
                f"{path} does not fit the model in {len(faults)} places:\n  " + "\n  ".join(faults)
            )


def convert(
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any] | None = None,
    with_optimizer: bool = False,
    vocabulary: str | os.PathLike[str] | None = None,
) -> Conversion:
    """Converts an official checkpoint, pre-trained or fine-tuned.

    Args:
        checkpoint: Checkpoint prefix, one of its files, or the folder of the files.
        out: Folder to write, with `config.json`, `model.safetensors`, `conversion.json` (the use of
            every variable) and, if requested, `optimizer.safetensors`.
        settings: Official configuration, needed for sizes that were not published.
        with_optimizer: Whether to convert the optimiser's moments, to continue training.
        vocabulary: Official word list, which becomes `tokenizer.json`.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ConversionError: the checkpoint does not fit the model, or its model cannot be determined.
        UserError: the vocabulary is not a word list.
    """
    tokenizer = None if vocabulary is None else Tokenizer.from_vocabulary(vocabulary)
    bundle = TensorBundle.open(checkpoint)
    model, report = read_model(bundle, settings)
    num_vectors = model.config.text.vocab_size
    if tokenizer is not None and tokenizer.vocab_size != num_vectors:
        raise ConversionError(
            f"{vocabulary} has {tokenizer.vocab_size} words, the model {num_vectors} word vectors"
        )
    state = read_optimizer_state(bundle, model.config) if with_optimizer else None
    save_model(model, out, tokenizer)
    save_optimizer_state(state, out)
    report_json = json.dumps(asdict(report), indent=2) + "\n"
    write_atomically(Path(out) / "conversion.json", report_json.encode())
    return report


def read_model(
    bundle: TensorBundle, settings: Mapping[str, Any] | None = None
) -> tuple[VATT, Conversion]:
    """Model in a checkpoint, in evaluation mode, and the use of its variables.

    Args:
        bundle: Open checkpoint.
        settings: Official configuration. None: derived from the shapes of variables.

    Raises:
        ConversionError: see `convert`.
    """
    shapes = {name.removesuffix(SUFFIX): shape for name, shape in bundle.shapes.items()}
    config = config_of_settings(settings_of_variables(shapes) if settings is None else settings)
    parts = parts_of(config)
    with torch.device("meta"):
        model = VATT(config)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    report = compare(parts, shapes, wanted, bundle.unread)
    report.check(bundle.prefix)
    weights = {part.ours: read_part(bundle, part) for part in parts}
    model.load_state_dict(weights, assign=True)
    return model.eval(), report


def compare(
    parts: Iterable[Part],
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    unread: Iterable[str] = (),
) -> Conversion:
    """Finds the use of every variable without reading their values.

    Args:
        parts: Official variables of each of our tensors.
        shapes: Shapes of the official variables.
        wanted: Shapes of our tensors.
        unread: Further names in the checkpoint.
    """
    used: dict[str, str] = {}
    missing, misshapen = [], {}
    for part in parts:
        used |= dict.fromkeys(part.official, part.ours)
        absent = [name for name in part.official if name not in shapes]
        missing += [f"{name} (for {part.ours})" for name in absent]
        if not absent and (actual := part_shape(part, shapes)) != wanted[part.ours]:
            misshapen[part.ours] = f"expected {wanted[part.ours]}, the checkpoint has {actual}"
    ignored, unknown = {}, []
    for name in [*shapes, *unread]:
        if name in used:
            continue
        reason = next((why for form, why in NOT_WEIGHTS.items() if re.search(form, name)), None)
        if reason is None:
            unknown.append(name)
        else:
            ignored[name] = reason
    return Conversion(
        used={name: ours for name, ours in used.items() if name in shapes},
        ignored=ignored,
        missing=tuple(missing),
        unknown=tuple(unknown),
        misshapen=misshapen,
    )


def part_shape(part: Part, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of our tensor, by the shapes of its variables."""
    rows = [shapes[name] for name in part.official]
    if part.is_kernel:
        rows = [(shape[-1], math.prod(shape[:-1])) if shape else () for shape in rows]
    return (sum(shape[0] for shape in rows), *rows[0][1:]) if all(rows) else rows[0]


def read_part(bundle: TensorBundle, part: Part, slot: str = "") -> Tensor:
    """Reads our tensor from its variables, or from one of their optimiser slots such as `m`."""
    suffix = f"{SLOT}{slot}{SUFFIX}" if slot else SUFFIX
    values = [torch.from_numpy(bundle.read(name + suffix)) for name in part.official]
    if part.is_kernel:
        values = [value.flatten(0, -2).T for value in values]
    return torch.cat(values).contiguous() if len(values) > 1 else values[0].contiguous()


def read_optimizer_state(bundle: TensorBundle, config: VATTConfig) -> dict[str, Tensor]:
    """Moments of every trained tensor, `exp_avg.NAME` and so on, and the number of `steps`.

    Raises:
        ConversionError: the checkpoint has no moments, or not for all trained tensors.
    """
    names = [name for part in parts_of(config) for name in part.official]
    slots = [s for s in SLOTS if any(f"{n}{SLOT}{s}{SUFFIX}" in bundle.shapes for n in names)]
    if not slots:
        raise ConversionError(f"{bundle.prefix} has no optimiser state: convert it without")
    state: dict[str, Tensor] = {}
    for part in parts_of(config):
        if part.ours.endswith(("running_mean", "running_variance")) or (
            part.ours == "text_tokens.embedding.weight" and not config.text.train_embedding
        ):
            continue  # what is not trained has no state
        for slot in slots:
            absent = [n for n in part.official if f"{n}{SLOT}{slot}{SUFFIX}" not in bundle.shapes]
            if absent:
                raise ConversionError(f"{bundle.prefix} has no optimiser state of {absent[0]}")
            state[f"{SLOTS[slot]}.{part.ours}"] = read_part(bundle, part, slot)
    steps = int(bundle.read(f"optimizer/iter{SUFFIX}"))
    return {**state, "steps": torch.tensor(steps)}
