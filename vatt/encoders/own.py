"""`VATTEncoder`: our own model behind the interface of all models."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.spaces import output_widths, spaces_of
from vatt.encoders.encoder import BOTH, Encoder
from vatt.errors import UserError, VattError
from vatt.models.checkpoint import TOKENIZER, weights_digest
from vatt.network.heads import all_spaces
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer


class VATTEncoder(Encoder):
    """A VATT with its tokenizer.

    The vector of picture and sound together is the sum of their unit vectors in a space that both
    share.

    Args:
        model: The network.
        tokenizer: Tokenizer that the model was trained with. None: texts cannot be encoded.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights and heads stay float32.

    Raises:
        UserError: the device or dtype does not exist, or the tokenizer belongs to another model.
    """

    token_name = "words"
    model: VATT
    published_frame_rate = 12.5  # every second frame of 25 [P, C]

    def __init__(
        self,
        model: VATT,
        tokenizer: Tokenizer | None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(model, device, dtype)
        self.config = config = model.config
        self.modalities = config.modalities
        self.video = config.video if "video" in config.modalities else None
        self.audio = config.audio if "audio" in config.modalities else None
        self.max_tokens = config.text.max_words
        vocab_size = config.text.vocab_size
        if tokenizer is not None and tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocab_size} word "
                "vectors: give the tokenizer that it was trained with"
            )
        self.tokenizer = tokenizer

    def spaces(self, modality: str) -> tuple[str, ...]:
        """See `Encoder`. Audio enters the video-text space by the last step of the video head."""
        if modality == BOTH:
            beside = spaces_of(self.config, "audio")
            return tuple(name for name in spaces_of(self.config, "video") if name in beside)
        return spaces_of(self.config, modality)

    def width(self, modality: str, space: str | None) -> int:
        """See `Encoder`."""
        one = "video" if modality == BOTH else modality
        return output_widths(self.config, one)[space or "features"]

    def count_tokens(self, text: str) -> int:
        """See `Encoder`."""
        return int((self._ids([text], self.max_tokens + 1) != 0).sum())

    def encode(
        self, modality: str, rows: Sequence[Any], spaces: Sequence[str | None]
    ) -> dict[str | None, Tensor]:
        """See `Encoder`."""
        if modality == BOTH:
            video, audio = (
                self.encode(name, of_name, spaces)
                for name, of_name in zip(("video", "audio"), zip(*rows, strict=True), strict=True)
            )
            return {
                space: F.normalize(video[space], dim=-1) + F.normalize(audio[space], dim=-1)
                for space in spaces
            }
        vectors = self._vectors(modality, rows)
        return {space: vectors[space] for space in spaces}

    def encode_tokens(self, modality: str, rows: Sequence[Any]) -> Tensor:
        """See `Encoder`."""
        raw = self._stacked(modality, rows)
        with self.autocast():
            hidden = self.model.encode_tokens(modality, raw)
        hidden = hidden.float()
        if modality == "text" and self.config.text.tower != "linear":
            hidden = _without_padding(hidden, raw)
        return hidden

    def token_shape(self, modality: str) -> tuple[int, int]:
        """See `Encoder`."""
        width = self.width(modality, None)
        if modality == "text":
            return self.max_tokens + (self.config.text.tower != "linear"), width
        return 1 + getattr(self.config, modality).num_tokens, width

    def digest(self) -> str:
        """See `Encoder`."""
        return weights_digest(self.model)

    def facts(self) -> dict[str, Any]:
        """See `Encoder`."""
        return {**super().facts(), "arrangement": self.config.arrangement}

    def caution(self, source: str) -> str | None:
        """Warning that the model was trained on few clips; None if they are enough or unknown."""
        from vatt.models.card import read_card
        from vatt.models.training_facts import few_clips_warning, find_model

        with contextlib.suppress(VattError):  # no search needs these facts
            path, run = find_model(source)
            return few_clips_warning(read_card(self.model, path, run=run).facts)
        return None

    def _vectors(self, modality: str, rows: Sequence[Any]) -> dict[str | None, Tensor]:
        """Vectors of one modality in all spaces, and features."""
        with self.autocast():
            hidden = self.model.encode(modality, self._stacked(modality, rows))
        vectors: dict[str | None, Tensor] = {None: hidden.float()}
        if self.model.head is not None:
            vectors.update(all_spaces(self.model.head, modality, vectors[None]).items())
        return vectors

    def _stacked(self, modality: str, rows: Sequence[Any]) -> Tensor:
        """A batch as the network takes it, on its device."""
        if modality == "text":
            return self._ids(rows, self.max_tokens).to(self.device)
        return torch.stack(list(rows)).to(self.device)

    def _ids(self, texts: Sequence[str], max_words: int) -> Tensor:
        if self.tokenizer is None:
            raise UserError(
                f"this model came without a {TOKENIZER}, which says what its word ids stand for: "
                "put the one it was trained with into its folder (`vatt tokenizer` makes one)"
            )
        return self.tokenizer.encode(list(texts), max_words)


def _without_padding(hidden_BLD: Tensor, ids_BJ: Tensor) -> Tensor:
    """Tokens of AGG and all words, `[B, 1 + J, D]`, zeros where a caption has no word."""
    missing = 1 + ids_BJ.shape[1] - hidden_BLD.shape[1]  # the model cuts to the longest caption
    words = F.pad(ids_BJ != 0, (1, 0), value=True)
    return F.pad(hidden_BLD, (0, 0, 0, missing)) * words[:, :, None]
