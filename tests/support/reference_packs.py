"""Reference packs: outputs of the official code on tiny random weights, found by their content.

They lie in `tests/packs`; the environment variable VATT_REFERENCE adds a folder of further ones.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vatt.batch import Batch
from vatt.network.contrastive_loss import LossConfig
from vatt.network.model import VATT
from vatt.official.convert import read_model
from vatt.official.names import Part, parts_of
from vatt.official.tensor_bundle import TensorBundle

DATA = Path(__file__).parents[1] / "packs"
TOLERANCE = 1e-5  # of the largest absolute value of an array
DEAD_GRADIENT = 1e-6  # what rounding leaves where exact arithmetic has none, as in keys' biases
# Two programs that do the same float32 operations in other orders end about as far from float64.
# Our furthest gradient was 0.4 to 1.8 times as far as the furthest official one of its pack, with
# vectors of 4 and 8 floats, 1 and 2 threads, two orders within LayerNorm. 4 is twice that.
ROUNDING_RATIO = 4
SHORT = {"vid": "video", "aud": "audio", "txt": "text"}


def roots() -> list[Path]:
    """Folders to look for packs in."""
    added = os.environ.get("VATT_REFERENCE")
    return [DATA, *([Path(added)] if added else [])]


def named(paths: list[Path]) -> list[Any]:
    """Test parameters with readable names."""
    import pytest

    return [pytest.param(path, id=f"{path.parent.name}/{path.name}") for path in paths]


def model_packs() -> list[Path]:
    """Folders with a checkpoint, its settings, and what the model made of inputs."""
    found = [path for root in roots() for path in root.rglob("io.npz")]
    return sorted(path.parent for path in found if (path.parent / "ckpt").is_dir())


def pretraining_packs() -> list[Path]:
    """Those with three towers and a head."""
    return [folder for folder in model_packs() if "backbone_config" in settings_of(folder)]


def classifier_packs() -> list[Path]:
    """Those with one tower and a classifier."""
    return [folder for folder in model_packs() if folder not in pretraining_packs()]


def training_packs() -> list[Path]:
    """Folders with checkpoints before and after some steps."""
    found = [path for root in roots() for path in root.rglob("ckpt_before")]
    return sorted(path.parent for path in found if (path.parent / "io.npz").is_file())


def archives(*keys: str) -> list[Path]:
    """Files `.npz` that hold all of these keys."""
    found = sorted(path for root in roots() for path in root.rglob("*.npz"))
    return [path for path in found if set(keys) <= set(np.load(path).files)]


def settings_of(folder: Path) -> dict[str, Any]:
    """The official settings of a pack."""
    (path,) = folder.glob("*_config.json")
    settings: dict[str, Any] = json.loads(path.read_text())
    return settings


@dataclass
class Pack:
    """A model with weights from a checkpoint, and the official outputs."""

    folder: Path
    checkpoint: str = "ckpt"

    @cached_property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.folder)

    @cached_property
    def bundle(self) -> TensorBundle:
        return TensorBundle.open(self.folder / self.checkpoint)

    @cached_property
    def model(self) -> VATT:
        return read_model(self.bundle, self.settings)[0]

    @cached_property
    def io(self) -> dict[str, np.ndarray]:
        return dict(np.load(self.folder / "io.npz"))

    @cached_property
    def parts(self) -> dict[str, tuple[Part, int]]:
        """Official variable → the part of ours that it is in, and its place there."""
        return {
            name: (part, place)
            for part in parts_of(self.model.config)
            for place, name in enumerate(part.official)
        }

    @property
    def is_classifier(self) -> bool:
        return self.model.classifier is not None

    @property
    def modalities(self) -> tuple[str, ...]:
        return self.model.config.modalities

    def theirs(self, name: str, ours: Tensor) -> Tensor:
        """Our tensor, or its gradient, in the form of one official variable that is in it."""
        part, place = self.parts[name]
        shape = self.bundle.shapes[f"{name}/.ATTRIBUTES/VARIABLE_VALUE"]
        piece = ours.chunk(len(part.official))[place]
        return (piece.T if part.is_kernel else piece).reshape(shape)

    def batch(self, values: dict[str, np.ndarray], **masks: Tensor) -> Batch:
        """Inputs of a pack as a batch; its captions all count, also those without a word."""
        video = torch.from_numpy(values["video"])
        text = torch.from_numpy(values["text"]).long().unflatten(0, (len(video), -1))
        everything = torch.ones(text.shape[:2], dtype=torch.bool)
        masks.setdefault("text_mask", everything)
        return Batch(video=video, audio=sound(values["audio"]), text=text, **masks)

    def masks(self, audio_mask: np.ndarray, text_mask: np.ndarray) -> dict[str, Tensor]:
        """Masks of clips, `[B]`, as a batch has them."""
        captions = self.io_captions
        return {
            "audio_mask": torch.from_numpy(audio_mask) > 0,
            "text_mask": (torch.from_numpy(text_mask) > 0)[:, None].expand(-1, captions),
        }

    @property
    def io_captions(self) -> int:
        prefix = "in/" if "in/text" in self.io else "step0/in/"
        return len(self.io[f"{prefix}text"]) // len(self.io[f"{prefix}video"])


def sound(values: np.ndarray) -> Tensor:
    """Waveforms `[B, S, 1]` or spectrograms `[B, M, F, 1]` without their last axis."""
    return torch.from_numpy(values).squeeze(-1)


def loss_config(settings: dict[str, Any], **changes: Any) -> LossConfig:
    """The loss that official settings ask for."""
    (bridge,) = settings["loss_config"]["bridge"]
    values = {
        "form": bridge["name"].removesuffix("_nce"),
        "temperature": bridge["temperature"],
        "video_audio_weight": bridge["vid_aud_weight"],
        "video_text_weight": bridge["vid_txt_weight"],
        "audio_text_weight": bridge["aud_txt_weight"],
        "official_masking": True,
    }
    return LossConfig(**(values | changes))


def pair_of(name: str) -> str:
    """`vidtxt_loss` → `video_text`."""
    return f"{SHORT[name[:3]]}_{SHORT[name[3:6]]}"


class Differences:
    """Compares arrays one by one and fails with all that differ.

    The packs are float32, and hold the rounding of their own computation: a gradient that is a sum
    of large terms is right to 1e-5 in neither program. Where a test says how large that rounding
    may be, it is allowed on top; a tenth of the arrays may need it.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.rounded: list[str] = []
        self.worst = 0.0
        self.count = 0

    def add(
        self,
        name: str,
        ours: Tensor | float,
        theirs: np.ndarray,
        *,
        rounding: float = 0.0,
        tolerance: float = TOLERANCE,
    ) -> None:
        mine, reference = as_float64(ours), np.asarray(theirs, dtype=np.float64)
        self.count += 1
        if mine.size != reference.size:
            self.lines.append(f"{name}: shape {mine.shape}, official {reference.shape}")
            return
        error = np.abs(mine.reshape(reference.shape) - reference).max(initial=0.0)
        largest = np.abs(reference).max(initial=0.0)
        self.worst = max(self.worst, error / max(largest, 1e-30))
        if error <= tolerance * largest:
            return
        line = f"{name}: differs by {error / largest:.2e} of the largest, allowed {tolerance:.0e}"
        if error <= tolerance * largest + rounding:
            self.rounded.append(f"{line} and rounding {rounding / largest:.2e}")
        else:
            self.lines.append(line)

    def check(self, at_least: int = 1) -> None:
        summary = f"{len(self.lines)} of {self.count} differ:"
        assert not self.lines, "\n".join([summary, *self.lines])
        assert self.count >= at_least, f"only {self.count} arrays were compared"
        assert len(self.rounded) <= self.count / 10, "\n".join(self.rounded)


def as_float64(value: Tensor | float) -> np.ndarray:
    """A tensor as a float64 array."""
    return torch.as_tensor(value).detach().double().cpu().numpy()


class Recorder:
    """Everything that goes into and out of the modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.outputs: dict[str, list[Tensor]] = {}
        self.inputs: dict[str, list[Tensor]] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self._hook(name))

    def _hook(self, name: str) -> Any:
        def record(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                self.outputs.setdefault(name, []).append(first.detach())
            if inputs and isinstance(inputs[0], Tensor):
                self.inputs.setdefault(name, []).append(inputs[0].detach())

        return record

    def clear(self) -> None:
        self.outputs.clear()
        self.inputs.clear()

    def everything(self) -> Iterator[Tensor]:
        """All that was recorded."""
        for recorded in (self.outputs, self.inputs):
            for values in recorded.values():
                yield from values
