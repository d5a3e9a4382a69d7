"""Encoding of raw inputs: device, precision and common space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.spaces import Space, spaces_of
from vatt.errors import UserError
from vatt.media.clip import Clip
from vatt.network.heads import all_spaces
from vatt.network.model import VATT, place_rows
from vatt.system.device import choose_device, choose_dtype


@dataclass(frozen=True, kw_only=True)
class Form:
    """Kind of vectors.

    Args:
        space: Common space. None: features of the backbone.
        tokens: Whether to return features of every token instead of pooled features.
        normalize: Whether to scale vectors to unit length; tokens are never scaled.
    """

    space: Space | None
    tokens: bool = False
    normalize: bool = True


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

    def spaces(self, modality: str) -> tuple[Space, ...]:
        """Common spaces of a modality; empty without a head.

        Audio enters the video-text space through the last step of the video head.
        """
        return spaces_of(self.model.config, modality)

    def check(self, modality: str, space: Space | None) -> None:
        """Refuses a modality or space that the model lacks.

        Raises:
            UserError: the model lacks the modality or the space.
        """
        modalities = self.model.config.modalities
        if modality not in modalities:
            raise UserError(f"this model has {' and '.join(modalities)}, not {modality}")
        spaces = self.spaces(modality)
        if space is not None and space not in spaces:
            remedy = f"it has {' and '.join(spaces)}" if spaces else "it has none: use space=None"
            raise UserError(f"this model has no space {space!r} for {modality}, {remedy}")

    def forms(
        self,
        modalities: Sequence[str],
        space: Space | Literal["all"] | None = "all",
        return_tokens: bool = False,
        normalize: bool = True,
    ) -> dict[str, tuple[str, Form]]:
        """Modality and form of each array of `extract`, by the array's name.

        Raises:
            UserError: the model lacks the space or modality.
        """
        forms: dict[str, tuple[str, Form]] = {}
        for modality in modalities:
            spaces: Sequence[Space | None] = (None,)
            if space == "all" and not return_tokens:
                spaces = self.spaces(modality) or (None,)
            elif space is not None and space != "all":
                spaces = (space,)
            for name in spaces:
                form = self.form(modality, name, return_tokens, normalize)
                suffix = "_tokens" if return_tokens else f"_{name}" if name else ""
                forms[modality + suffix] = (modality, form)
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
        if space == "auto":
            spaces = self.spaces(modality)
            space = None
            if spaces and not return_tokens:
                space = spaces[0] if modality == "audio" else spaces[-1]
        self.check(modality, space)
        if return_tokens and space is not None:
            raise UserError(
                f"tokens are of the backbone, they have no space {space!r}: use space=None"
            )
        return Form(space=space, tokens=return_tokens, normalize=normalize)

    def shared_space(self, first: str, second: str) -> Space:
        """Space in which two modalities are compared.

        Raises:
            UserError: there is none.
        """
        self.check(first, None)
        self.check(second, None)
        shared = [space for space in self.spaces(first) if space in self.spaces(second)]
        if not shared:
            raise UserError(f"{first} and {second} share no space in this model")
        return shared[0]

    def shape(self, modality: str, form: Form) -> tuple[int, ...]:
        """Shape of a vector, `(D,)`, or of the tokens of a training window, `(1 + L, D)`."""
        config = self.model.config
        if form.tokens and modality == "text":
            num_tokens = config.text.max_words + (config.text.tower != "linear")
            return num_tokens, config.feature_width(modality)
        if form.tokens:
            geometry = config.video if modality == "video" else config.audio
            return 1 + geometry.num_tokens, config.feature_width(modality)
        if form.space is None or config.head is None:
            return (config.feature_width(modality),)
        return (getattr(config.head, f"d_{form.space}"),)

    @torch.no_grad()
    def embed(self, modality: str, raw: Tensor, forms: Sequence[Form]) -> list[Tensor]:
        """Vectors of a batch in several forms, computed by one pass of the encoder.

        Args:
            modality: `video`, `audio` or `text`.
            raw: Input of the model: uint8 `[B, T, H, W, 3]`, float `[B, S]` or int64 `[B, J]`.
            forms: Forms to return; `tokens` must be the same for all.

        Returns:
            float32 `[B, D]`, or tokens `[B, 1 + L, D]`, on the CPU.
        """
        raw = raw.to(self.device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if mixed else None, enabled=mixed):
            if forms[0].tokens:
                hidden = self.model.encode_tokens(modality, raw)
            else:
                hidden = self.model.encode(modality, raw)
        hidden = hidden.float()
        if forms[0].tokens:
            if modality == "text" and self.model.config.text.tower != "linear":
                hidden = _without_padding(hidden, raw)
            return [hidden.cpu() for _ in forms]
        vectors: dict[str | None, Tensor] = {None: hidden}
        if self.model.head is not None:
            vectors.update(all_spaces(self.model.head, modality, hidden).items())
        return [
            (F.normalize(value, dim=-1) if form.normalize else value).cpu()
            for form, value in ((form, vectors[form.space]) for form in forms)
        ]

    def embed_clips(
        self, clips: Sequence[Clip], forms: dict[str, tuple[str, Form]]
    ) -> dict[str, Tensor]:
        """Vectors of windows of one file.

        Args:
            clips: Windows of equal length.
            forms: Modality and form of each array, by the array's name.

        Returns:
            float32 `[N, …]` on the CPU, by name; rows of windows without the modality are zeros. If
            no window has a modality, its arrays are left out.
        """
        arrays: dict[str, Tensor] = {}
        for modality in dict.fromkeys(modality for modality, _ in forms.values()):
            mask = torch.tensor([clip.coverage(modality) > 0 for clip in clips])
            if not bool(mask.any()):
                continue
            raw = torch.stack(
                [getattr(clip, modality) for clip in clips if clip.coverage(modality) > 0]
            )
            names = [name for name, (of, _) in forms.items() if of == modality]
            values = self.embed(modality, raw, [forms[name][1] for name in names])
            arrays |= {n: place_rows(v, mask) for n, v in zip(names, values, strict=True)}
        return arrays


def _without_padding(hidden_BLD: Tensor, ids_BJ: Tensor) -> Tensor:
    """Tokens of AGG and all words, `[B, 1 + J, D]`, zeros where a caption has no word."""
    missing = 1 + ids_BJ.shape[1] - hidden_BLD.shape[1]  # the model cuts to the longest caption
    words = F.pad(ids_BJ != 0, (1, 0), value=True)
    return F.pad(hidden_BLD, (0, 0, 0, missing)) * words[:, :, None]
