"""Encoding of raw inputs: device, precision and common space."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.spaces import Space, output_widths, spaces_of
from vatt.errors import UserError
from vatt.media.clip import Clip
from vatt.network.heads import all_spaces
from vatt.network.model import VATT, place_rows
from vatt.system.device import choose_device, choose_dtype


@dataclass(frozen=True, kw_only=True)
class Form:
    """Kind of vectors.

    Args:
        modality: `video`, `audio` or `text`.
        space: Common space. None: features of the backbone.
        tokens: Whether to return features of every token instead of pooled features.
        normalize: Whether to scale vectors to unit length; tokens are never scaled.
    """

    modality: str
    space: Space | None
    tokens: bool = False
    normalize: bool = True

    @property
    def name(self) -> str:
        """Name of the array, such as `video`, `video_vt` or `video_tokens`."""
        suffix = "_tokens" if self.tokens else f"_{self.space}" if self.space else ""
        return self.modality + suffix


class Embedder:
    """A model on a device, in evaluation mode.

    Args:
        model: Model, which is moved to the device.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: Precision of the encoders' products; weights and heads stay float32. "auto": bfloat16
            on CUDA, else float32.

    Raises:
        UserError: the device or dtype does not exist.
    """

    def __init__(self, model: VATT, device: str | torch.device, dtype: str | torch.dtype) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.model = model.to(self.device).eval()

    def forms(
        self,
        modalities: Sequence[str],
        space: Space | Literal["all"] | None = "all",
        return_tokens: bool = False,
        normalize: bool = True,
    ) -> list[Form]:
        """Forms of the arrays of `extract`, grouped by modality.

        Raises:
            UserError: the model lacks the space or modality.
        """
        forms = []
        for modality in modalities:
            spaces: Sequence[Space | None] = (None,)
            if space == "all" and not return_tokens:
                spaces = spaces_of(self.model.config, modality) or (None,)
            elif space is not None and space != "all":
                spaces = (space,)
            forms += [self.form(modality, name, return_tokens, normalize) for name in spaces]
        return forms

    def form(
        self,
        modality: str,
        space: Space | Literal["auto"] | None,
        return_tokens: bool,
        normalize: bool,
    ) -> Form:
        """Form of the vectors of a modality.

        Args:
            modality: `video`, `audio` or `text`.
            space: Common space, or None: features of the backbone. "auto": `va` for audio, `vt` for
                others, `joint` if the model has only that.
            return_tokens: Whether to return features of all tokens of the backbone instead.
            normalize: Whether to scale vectors to unit length.

        Raises:
            UserError: the model lacks the space or modality, or tokens are requested in a common
                space.
        """
        spaces = self._spaces(modality)
        if space == "auto":
            space = None
            if spaces and not return_tokens:
                space = spaces[0] if modality == "audio" else spaces[-1]
        if space is not None and space not in spaces:
            remedy = f"it has {' and '.join(spaces)}" if spaces else "it has none: use space=None"
            raise UserError(f"this model has no space {space!r} for {modality}, {remedy}")
        if return_tokens and space is not None:
            raise UserError(
                f"tokens are of the backbone, they have no space {space!r}: use space=None"
            )
        return Form(modality=modality, space=space, tokens=return_tokens, normalize=normalize)

    def shared_space(self, *modalities: str) -> Space:
        """Space in which modalities are compared.

        Raises:
            UserError: there is none.
        """
        shared = self.shared_spaces(*modalities)
        if not shared:
            raise UserError(f"{' and '.join(modalities)} share no space in this model")
        return shared[0]

    def shared_spaces(self, *modalities: str) -> list[Space]:
        """All spaces in which modalities can be compared, the preferred one first."""
        first, *others = (self._spaces(modality) for modality in modalities)
        return [space for space in first if all(space in spaces for spaces in others)]

    def _spaces(self, modality: str) -> tuple[Space, ...]:
        """Common spaces of a modality, which the model must have."""
        self.model.config.check_modality(modality)
        return spaces_of(self.model.config, modality)

    def shape(self, form: Form) -> tuple[int, ...]:
        """Shape of a vector, `(D,)`, or of the tokens of a training window, `(1 + L, D)`."""
        config = self.model.config
        width = output_widths(config, form.modality)[form.space or "features"]
        if not form.tokens:
            return (width,)
        if form.modality == "text":
            return config.text.max_words + (config.text.tower != "linear"), width
        return 1 + getattr(config, form.modality).num_tokens, width

    def embed(self, raw: Tensor, forms: Sequence[Form]) -> list[Tensor]:
        """Vectors of a batch in several forms, computed by one pass of the encoder.

        Args:
            raw: Input of the model: uint8 `[B, T, H, W, 3]`, float `[B, S]` or int64 `[B, J]`.
            forms: Forms to return; `modality` and `tokens` must be the same for all.

        Returns:
            float32 `[B, D]`, or tokens `[B, 1 + L, D]`, on the CPU.
        """
        with torch.inference_mode():
            vectors = self._embed(raw.to(self.device), forms)
        # as copies, with which a classifier can be trained: inference tensors have no gradients
        return [vector.to("cpu", copy=True) for vector in vectors]

    def _embed(self, raw: Tensor, forms: Sequence[Form]) -> list[Tensor]:
        """Vectors on the device; see `embed`."""
        modality = forms[0].modality
        encode = self.model.encode_tokens if forms[0].tokens else self.model.encode
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if mixed else None, enabled=mixed):
            hidden = encode(modality, raw)
        hidden = hidden.float()
        if forms[0].tokens:
            if modality == "text" and self.model.config.text.tower != "linear":
                hidden = _without_padding(hidden, raw)
            return [hidden for _ in forms]
        vectors: dict[str | None, Tensor] = {None: hidden}
        if self.model.head is not None:
            vectors.update(all_spaces(self.model.head, modality, hidden).items())
        chosen = [(vectors[form.space], form.normalize) for form in forms]
        return [F.normalize(value, dim=-1) if unit else value for value, unit in chosen]

    def embed_clips(self, clips: Sequence[Clip], forms: Sequence[Form]) -> dict[str, Tensor]:
        """Vectors of windows of one file.

        Args:
            clips: Windows of equal length.
            forms: Forms of the arrays, grouped by modality.

        Returns:
            float32 `[N, …]` on the CPU, by name; rows of windows without the modality are zeros. If
            no window has a modality, its arrays are left out.
        """
        arrays: dict[str, Tensor] = {}
        for modality, group in groupby(forms, lambda form: form.modality):
            mask = torch.tensor([clip.coverage(modality) > 0 for clip in clips])
            rows = [getattr(clip, modality) for clip in compress(clips, mask)]
            if rows:
                of_modality = list(group)
                values = self.embed(torch.stack(rows), of_modality)
                for form, value in zip(of_modality, values, strict=True):
                    arrays[form.name] = place_rows(value, mask)
        return arrays


def _without_padding(hidden_BLD: Tensor, ids_BJ: Tensor) -> Tensor:
    """Tokens of AGG and all words, `[B, 1 + J, D]`, zeros where a caption has no word."""
    missing = 1 + ids_BJ.shape[1] - hidden_BLD.shape[1]  # the model cuts to the longest caption
    words = F.pad(ids_BJ != 0, (1, 0), value=True)
    return F.pad(hidden_BLD, (0, 0, 0, missing)) * words[:, :, None]
