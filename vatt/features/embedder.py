"""Encoding of raw inputs in the forms that users ask for: modality, space, tokens, unit length."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.encoders.encoder import PARTS, Encoder
from vatt.errors import UserError
from vatt.media.clip import Clip
from vatt.network.model import place_rows


@dataclass(frozen=True, kw_only=True)
class Form:
    """Kind of vectors.

    Args:
        modality: `video`, `audio`, `text`, or `video_audio`: both as one item.
        space: Common space. None: features of the backbone.
        tokens: Whether to return features of every token instead of pooled features.
        normalize: Whether to scale vectors to unit length; tokens are never scaled.
    """

    modality: str
    space: str | None
    tokens: bool = False
    normalize: bool = True

    @property
    def name(self) -> str:
        """Name of the array, such as `video`, `video_vt` or `video_tokens`."""
        suffix = "_tokens" if self.tokens else f"_{self.space}" if self.space else ""
        return self.modality + suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The modalities that are read: one, or `video` and `audio`."""
        return PARTS.get(self.modality, (self.modality,))


class Embedder:
    """Vectors of an encoder in several forms.

    Args:
        encoder: The model.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def forms(
        self,
        modalities: Sequence[str],
        space: str | None = "all",
        return_tokens: bool = False,
        normalize: bool = True,
    ) -> list[Form]:
        """Forms of the arrays of `extract`, grouped by modality.

        Raises:
            UserError: the model lacks the space or modality.
        """
        forms = []
        for modality in modalities:
            spaces: Sequence[str | None] = (None,)
            if space == "all" and not return_tokens:
                spaces = self.spaces(modality) or (None,)
            elif space is not None and space != "all":
                spaces = (space,)
            forms += [self.form(modality, name, return_tokens, normalize) for name in spaces]
        return forms

    def form(self, modality: str, space: str | None, return_tokens: bool, normalize: bool) -> Form:
        """Form of the vectors of a modality.

        Args:
            modality: `video`, `audio`, `text` or `video_audio`.
            space: Common space, or None: features of the backbone. "auto": `va` for audio, `vt` for
                others, `joint` if the model has only that.
            return_tokens: Whether to return features of all tokens of the backbone instead.
            normalize: Whether to scale vectors to unit length.

        Raises:
            UserError: the model lacks the space or modality, or tokens are requested in a common
                space.
        """
        spaces = self.spaces(modality)
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
        if modality in PARTS and space is None:
            raise UserError(
                f"{' and '.join(PARTS[modality])} have one vector in a common space only, "
                f"{'which has no tokens' if return_tokens else 'no features of the backbone'}"
            )
        return Form(modality=modality, space=space, tokens=return_tokens, normalize=normalize)

    def shared_space(self, *modalities: str) -> str:
        """Space in which modalities are compared.

        Raises:
            UserError: there is none.
        """
        shared = self.shared_spaces(*modalities)
        if not shared:
            raise UserError(f"{' and '.join(modalities)} share no space in this model")
        return shared[0]

    def shared_spaces(self, *modalities: str) -> list[str]:
        """All spaces in which modalities can be compared, the preferred one first."""
        first, *others = (self.spaces(modality) for modality in modalities)
        return [space for space in first if all(space in spaces for spaces in others)]

    def spaces(self, modality: str) -> tuple[str, ...]:
        """Common spaces of a modality, which the model must have."""
        self.encoder.check_modality(modality)
        return self.encoder.spaces(modality)

    def shape(self, form: Form) -> tuple[int, ...]:
        """Shape of a vector, `(D,)`, or of the tokens of a window, `(1 + L, D)`."""
        if form.tokens:
            return self.encoder.token_shape(form.modality)
        return (self.encoder.width(form.modality, form.space),)

    def embed(self, rows: Sequence[Any], forms: Sequence[Form]) -> list[Tensor]:
        """Vectors of a batch in several forms, computed by one pass of the encoder.

        Args:
            rows: Inputs of `Encoder.encode`.
            forms: Forms to return; `modality` and `tokens` must be the same for all.

        Returns:
            float32 `[B, D]`, or tokens `[B, 1 + L, D]`, on the CPU.
        """
        first = forms[0]
        with torch.inference_mode():
            if first.tokens:
                vectors = [self.encoder.encode_tokens(first.modality, rows)] * len(forms)
            else:
                spaces = [form.space for form in forms]
                of_space = self.encoder.encode(first.modality, rows, spaces)
                vectors = [
                    F.normalize(of_space[form.space], dim=-1)
                    if form.normalize
                    else of_space[form.space]
                    for form in forms
                ]
        # as copies, with which a classifier can be trained: inference tensors have no gradients
        return [vector.to("cpu", copy=True) for vector in vectors]

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
        for parts, group in groupby(forms, lambda form: form.parts):
            mask = torch.tensor([all(clip.coverage(p) > 0 for p in parts) for clip in clips])
            rows = [row_of(clip, parts) for clip in compress(clips, mask)]
            if rows:
                of_modality = list(group)
                values = self.embed(rows, of_modality)
                for form, value in zip(of_modality, values, strict=True):
                    arrays[form.name] = place_rows(value, mask)
        return arrays


def row_of(clip: Clip, parts: Sequence[str]) -> Any:
    """Input of the encoder from a window: frames, sound, or the pair of both."""
    values = tuple(getattr(clip, part) for part in parts)
    return values if len(values) > 1 else values[0]
