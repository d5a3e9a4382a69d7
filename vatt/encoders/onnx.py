"""`OnnxEncoder`: towers that `vatt export` wrote as ONNX, run by onnxruntime."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor, nn

from vatt.config.geometry import MODALITIES
from vatt.config.model import VATTConfig
from vatt.encoders.own import VATTEncoder
from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import tokenizer_of
from vatt.models.export import CONFIG_ENTRY, DIGEST_ENTRY, SUFFIXES
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer
from vatt.system.device import choose_device
from vatt.system.extras import load_extra

SUFFIX = SUFFIXES["onnx"]
PATTERNS = (f"*{SUFFIX}*", "tokenizer.json", "README.md")  # what to download from the Hub
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
EXPORT = "write them by `vatt export MODEL FOLDER`"


class OnnxTowers(nn.Module):
    """Exported towers of one model in sessions of onnxruntime.

    It has no parameters: the weights are in the sessions.

    Args:
        files: ONNX files by modality.
        device: `cpu` or `cuda`.

    Attributes:
        config: Configuration of the model.
        digest: Digest of its weights, see `weights_digest`.

    Raises:
        CheckpointError: a file is damaged, or is no tower of the same model as the others.
        UserError: onnxruntime is missing, or has no CUDA.
    """

    def __init__(self, files: dict[str, Path], device: torch.device) -> None:
        super().__init__()
        self.files = files
        self.open(device)
        described = {name: self._description(name) for name in files}
        first = next(iter(described.values()))
        if others := [name for name, one in described.items() if one != first]:
            raise CheckpointError(
                f"{files[others[0]]} and {next(iter(files.values()))} come from different models: "
                "export one model into an empty folder"
            )
        self.config, self.digest = first.config, first.digest

    def open(self, device: torch.device) -> None:
        """Opens the sessions anew, for a device."""
        runtime = load_onnxruntime()
        self._sessions = {
            name: _open_session(runtime, file, device) for name, file in self.files.items()
        }

    def forward(self, modality: str, raw: Tensor) -> dict[str, Tensor]:
        """Outputs of a tower, see `vatt.models.export_towers.Tower`; on the CPU.

        Raises:
            UserError: the input has not the shape that was exported.
        """
        session = self._sessions[modality]
        (entry,) = session.get_inputs()
        expected, got = entry.shape[1:], list(raw.shape[1:])
        if expected != got:
            raise UserError(
                f"the exported tower of {modality} reads inputs of shape {expected}, got {got}: "
                "take windows of the model's own length, or the backend torch"
            )
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, {entry.name: raw.cpu().numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}

    def _description(self, modality: str) -> "_Description":
        """Model of a tower, as its file says."""
        entries = self._sessions[modality].get_modelmeta().custom_metadata_map
        file = self.files[modality]
        if not {CONFIG_ENTRY, DIGEST_ENTRY} <= entries.keys():
            raise CheckpointError(
                f"{file} does not say which model it is of, as an older vatt wrote it: {EXPORT}"
            )
        try:
            config = VATTConfig.from_dict(json.loads(entries[CONFIG_ENTRY]))
        except (ValueError, RecursionError) as error:  # UserError is a ValueError
            raise CheckpointError(f"{file} describes no model of vatt: {error}") from error
        config.check_modality(modality)
        return _Description(config, entries[DIGEST_ENTRY])


@dataclass(frozen=True)
class _Description:
    config: VATTConfig
    digest: str


class OnnxEncoder(VATTEncoder):
    """Exported towers with their tokenizer; modalities are those of the towers.

    Vectors are those of PyTorch in float32, to the tolerance that `vatt export` checks, 1e-4 of the
    largest value. Features of both backends can therefore be searched together: the digest is the
    same.

    Args:
        towers: The towers.
        tokenizer: Tokenizer that the model was trained with. None: texts cannot be encoded.
        device: `cpu` or `cuda`.

    Raises:
        UserError: the tokenizer belongs to another model.
    """

    model: Any

    def __init__(
        self, towers: OnnxTowers, tokenizer: Tokenizer | None, device: str | torch.device
    ) -> None:
        super().__init__(towers, tokenizer, device, torch.float32)  # type: ignore[arg-type] # runs them
        self.modalities = tuple(towers.files)
        self.video = self.video if "video" in self.modalities else None
        self.audio = self.audio if "audio" in self.modalities else None

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        tokenizer: Tokenizer | None = None,
    ) -> Self:
        """Loads the towers of a folder.

        Args:
            folder: Folder that `vatt export` wrote.
            device: "auto": CUDA if onnxruntime has it, else the CPU.
            dtype: "auto" or float32, which the towers are.
            tokenizer: Tokenizer of the model. None: the one in the folder.

        Raises:
            CheckpointError: there are no towers, or they are damaged.
            UserError: onnxruntime is missing, or there is no such device or dtype.
        """
        if dtype not in ("auto", "float32", torch.float32):
            raise UserError(f"exported towers are float32, got dtype {dtype!r}: use auto")
        files = {
            name: file for name in MODALITIES if (file := folder / f"{name}{SUFFIX}").is_file()
        }
        if not files:
            raise CheckpointError(
                f"{folder} holds no exported towers (video{SUFFIX}, …): {EXPORT}, or take the "
                "backend torch"
            )
        chosen = _choose_device(device)
        return cls(OnnxTowers(files, chosen), tokenizer or tokenizer_of(folder), chosen)

    def to(self, device: str | torch.device) -> Self:
        """Moves the towers: opens their files anew."""
        self.device = _choose_device(device)
        self.model.open(self.device)
        return self

    @property
    def num_weights(self) -> int:
        """Number of weights of the model that was exported."""
        with torch.device("meta"):
            return sum(weight.numel() for weight in VATT(self.config).parameters())

    def spaces(self, modality: str) -> tuple[str, ...]:
        """See `Encoder`."""
        parts = ("video", "audio") if modality == "video_audio" else (modality,)
        return super().spaces(modality) if {*parts} <= {*self.modalities} else ()

    def encode_tokens(self, modality: str, rows: Sequence[Any]) -> Tensor:
        """Refuses: exported towers have no features of tokens."""
        raise UserError(f"exported towers have no tokens of {modality}: take the backend torch")

    def digest(self) -> str:
        """Digest of the model that was exported."""
        return str(self.model.digest)

    def _vectors(self, modality: str, rows: Sequence[Any]) -> dict[str | None, Tensor]:
        outputs = self.model(modality, self._stacked(modality, rows))
        outputs.pop("logits", None)
        return {
            None if name == "features" else name: value.to(self.device)
            for name, value in outputs.items()
        }


def load_onnxruntime() -> ModuleType:
    """Imports onnxruntime.

    Raises:
        UserError: it is not installed.
    """
    need = UserError('the backend onnx needs onnxruntime: pip install "vatt[export]"')
    return load_extra("onnxruntime", need)


def _choose_device(device: str | torch.device) -> torch.device:
    """Device of the sessions; "auto" is CUDA if torch and onnxruntime have it, else the CPU.

    Raises:
        UserError: onnxruntime does not have the device.
    """
    has_cuda = CUDA in load_onnxruntime().get_available_providers()
    chosen = choose_device("cpu" if device == "auto" and not has_cuda else device)
    if chosen.type == "mps" and device == "auto":
        return torch.device("cpu")
    if chosen.type == "mps" or (chosen.type == "cuda" and not has_cuda):
        raise UserError(
            f"this onnxruntime does not compute on {chosen.type}: give device cpu"
            + (", or install onnxruntime-gpu in its place" if chosen.type == "cuda" else "")
        )
    return chosen


def _open_session(runtime: ModuleType, file: Path, device: torch.device) -> Any:
    """Session of a tower.

    Raises:
        CheckpointError: onnxruntime does not read the file.
        UserError: CUDA does not start.
    """
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # fatal: errors are raised, too
    providers: list[Any] = [CPU]
    if device.type == "cuda":  # products in float32, not in its faster and coarser TF32
        providers.insert(0, (CUDA, {"device_id": device.index or 0, "use_tf32": 0}))
    try:
        session = runtime.InferenceSession(file, options, providers=providers)
    except Exception as error:  # its own kinds have no base but Exception
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise CheckpointError(
            f"{file} cannot be read by onnxruntime {runtime.__version__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if device.type == "cuda" and CUDA not in session.get_providers():
        raise UserError(
            f"onnxruntime {runtime.__version__} does not start CUDA: give device cpu, or install "
            "the version of onnxruntime-gpu for your CUDA and cuDNN"
        )
    return session
