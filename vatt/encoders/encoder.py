"""`Encoder`: what features, extraction, search and evaluation need of a model."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vatt.config.geometry import AudioGeometry, VideoGeometry
from vatt.errors import UserError
from vatt.system.device import choose_device, choose_dtype

BOTH = "video_audio"  # picture and sound as one item
PARTS = {BOTH: ("video", "audio")}  # of such modalities


class Encoder(ABC):
    """A model on a device, in evaluation mode, that makes vectors of media and texts.

    Args:
        model: The network, which is moved to the device.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights stay as they are. "auto": bfloat16 on
            CUDA, else float32.

    Attributes:
        modalities: Those of `video`, `audio` and `text` that the model has.
        video: Geometry of a window of video; None if the model has none.
        audio: Geometry of a window of sound; None if the model has none.
        max_tokens: Number of tokens of a text that are read; further ones are cut.
        published_frame_rate: Frames per second of video in the model's published results. None:
            that of its windows.

    Raises:
        UserError: the device or dtype does not exist.
    """

    modalities: tuple[str, ...]
    video: VideoGeometry | None
    audio: AudioGeometry | None
    max_tokens: int
    published_frame_rate: float | None = None
    token_name = "tokens"  # what a text is counted in, in messages

    def __init__(
        self, model: nn.Module, device: str | torch.device, dtype: str | torch.dtype
    ) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self._wanted_dtype = dtype
        self.model = model.to(self.device).eval()

    def to(self, device: str | torch.device) -> Self:
        """Moves the model; "auto" precision becomes that of the device."""
        Encoder.__init__(self, self.model, device, self._wanted_dtype)
        return self

    @property
    def num_weights(self) -> int:
        """Number of weights of the network."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def media_modalities(self) -> tuple[str, ...]:
        """Modalities that media files can contain: `video`, `audio`."""
        return tuple(name for name in self.modalities if name != "text")

    def check_modality(self, modality: str) -> None:
        """Refuses a modality that the model lacks."""
        if {*PARTS.get(modality, (modality,))} - {*self.modalities}:
            name = modality.replace("_", " with ")
            raise UserError(f"this model has {' and '.join(self.modalities)}, not {name}")

    @abstractmethod
    def spaces(self, modality: str) -> tuple[str, ...]:
        """Common spaces of `video`, `audio`, `text` or `video_audio`; empty if there are none."""

    @abstractmethod
    def width(self, modality: str, space: str | None) -> int:
        """Length of a vector, `D`, in a space; None: features of the backbone."""

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """Number of tokens of a text, at least `max_tokens` + 1 if it is cut; 0: no words.

        Raises:
            UserError: the model's tokenizer is missing.
        """

    @abstractmethod
    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        """Vectors of a batch in several spaces, computed by one pass of the network.

        Args:
            modality: `video`, `audio`, `text` or `video_audio`.
            rows: Windows of one length, uint8 `[T, H, W, 3]` or float `[S]`; texts; or pairs of a
                window of video and one of sound. Frames of different rows may differ in size where
                the geometry leaves it open.
            spaces: Spaces to return. None: features of the backbone.

        Returns:
            float32 `[N, D]` on the device by space, not normalised.
        """

    def encode_tokens(self, modality: str, rows: Sequence[Any]) -> Tensor:
        """Features of every token, float32 `[N, 1 + L, D]` on the device; for rows see `encode`.

        Raises:
            UserError: the model has none.
        """
        raise UserError(f"this model has no features of the tokens of {modality}")

    def token_shape(self, modality: str) -> tuple[int, int]:
        """Shape of the tokens of a window of the model's own length, `(1 + L, D)`.

        Raises:
            UserError: the model has none.
        """
        raise UserError(f"this model has no features of the tokens of {modality}")

    @abstractmethod
    def digest(self) -> str:
        """Hash of weights and of all else that the vectors depend on, in hexadecimal digits."""

    def facts(self) -> dict[str, Any]:
        """Facts about the model for the results of an evaluation, as plain values."""
        return {"sha256": self.digest(), "parameters": self.num_weights}

    def caution(self, source: str) -> str | None:
        """Warning about what a search with this model is worth; None if there is none.

        Args:
            source: Where the model was loaded from.
        """
        return None

    def autocast(self) -> torch.autocast:
        """Context in which products are of the precision `dtype`."""
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype if mixed else None, enabled=mixed)
