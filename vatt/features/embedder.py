"""Raw inputs → vectors: on which device, in which precision, in which common space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vatt.config.spaces import Space as Space
from vatt.config.spaces import spaces_of
from vatt.errors import UserError
from vatt.media.clip import Clip
from vatt.network.heads import all_spaces
from vatt.network.model import VATT, place_rows
from vatt.system.device import choose_device, choose_dtype


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which vectors are made.

    Args:
        space: A common space; None: features of the backbone.
        tokens: Whether every token's features are kept instead of the pooled ones.
        normalize: Whether vectors, not tokens, get unit length.
    """

    space: Space | None
    tokens: bool = False
    normalize: bool = True


class Embedder:
    """A model on a device, in evaluation mode.

    Args:
        model: Moves to the device.
        device: "auto": CUDA, else MPS, else the CPU.
        dtype: What the encoders multiply in; weights and heads stay float32. "auto": bfloat16 on
            CUDA, else float32.

    Raises:
        UserError: no such device or dtype.
    """

    def __init__(self, model: VATT, device: str | torch.device, dtype: str | torch.dtype) -> None:
        self.device = choose_device(device)
        self.dtype = choose_dtype(dtype, self.device)
        self.model = model.to(self.device).eval()

    def spaces(self, modality: str) -> tuple[Space, ...]:
        """The common spaces that a modality can be put into; none without a head.

        Sound gets into the video-text space by the video head's last step.
        """
        return spaces_of(self.model.config, modality)

    def check(self, modality: str, space: Space | None) -> None:
        """Refuses what the model does not have.

        Raises:
            UserError: the model lacks the modality, or that space for it.
        """
        has = self.model.config.modalities
        if modality not in has:
            raise UserError(f"this model has {' and '.join(has)}, not {modality}")
        spaces = self.spaces(modality)
        if space is not None and space not in spaces:
            there = f"it has {' and '.join(spaces)}" if spaces else "it has none: use space=None"
            raise UserError(f"this model has no space {space!r} for {modality}, {there}")

    def forms(
        self,
        modalities: Sequence[str],
        space: Space | Literal["all"] | None = "all",
        return_tokens: bool = False,
        normalize: bool = True,
    ) -> dict[str, tuple[str, Form]]:
        """Names of the arrays that `extract` makes, each with its modality and form.

        Raises:
            UserError: a space or modality that the model lacks.
        """
        named: dict[str, tuple[str, Form]] = {}
        for modality in modalities:
            spaces: Sequence[Space | None] = (None,)
            if space == "all" and not return_tokens:
                spaces = self.spaces(modality) or (None,)
            elif space is not None and space != "all":
                spaces = (space,)
            for one in spaces:
                form = self.form(modality, one, return_tokens, normalize)
                suffix = "_tokens" if return_tokens else f"_{one}" if one else ""
                named[modality + suffix] = (modality, form)
        return named

    def form(
        self,
        modality: str,
        space: Space | Literal["auto"] | None,
        return_tokens: bool,
        normalize: bool,
    ) -> Form:
        """What to make of a modality.

        Args:
            modality: `video`, `audio` or `text`.
            space: "auto": the modality's own, `va` for audio, `vt` for others where there is one.
            return_tokens: Tokens of the backbone instead.
            normalize: Whether vectors get unit length.

        Raises:
            UserError: a space or modality that the model lacks, or tokens in a space.
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
        """The space in which two modalities are compared.

        Raises:
            UserError: there is none.
        """
        self.check(first, None)
        self.check(second, None)
        theirs = self.spaces(second)
        shared = [space for space in self.spaces(first) if space in theirs]
        if not shared:
            raise UserError(f"{first} and {second} share no space in this model")
        return shared[0]

    def shape(self, modality: str, form: Form) -> tuple[int, ...]:
        """Of one vector `(D,)`, or of the tokens of a window of training length `(1 + L, D)`."""
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
        """Vectors of a batch, in several forms by one pass of the encoder.

        Args:
            modality: `video`, `audio` or `text`.
            raw: As the model takes it: uint8 `[B, T, H, W, 3]`, float `[B, S]` or int64 `[B, J]`.
            forms: Either all of tokens or none of them.

        Returns:
            float32 `[B, D]`, or tokens `[B, 1 + L, D]`, on the CPU.
        """
        raw = raw.to(self.device)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype if mixed else None, enabled=mixed):
            if forms[0].tokens:
                hidden = self.model.encode_tokens(modality, raw)
            else:
                hidden = getattr(self.model, f"encode_{modality}")(raw)
        hidden = hidden.float()
        if forms[0].tokens:
            if modality == "text" and self.model.config.text.tower != "linear":
                hidden = _without_padding(hidden, raw)
            return [hidden.cpu() for _ in forms]
        made = self._spaces_of(modality, hidden)
        return [
            (F.normalize(made[form.space], dim=-1) if form.normalize else made[form.space]).cpu()
            for form in forms
        ]

    def _spaces_of(self, modality: str, features: Tensor) -> dict[str | None, Tensor]:
        """Features in every space of their modality, and as they are."""
        made: dict[str | None, Tensor] = {None: features}
        if self.model.head is not None:
            made.update(all_spaces(self.model.head, modality, features).items())
        return made

    def embed_clips(
        self, clips: Sequence[Clip], forms: dict[str, tuple[str, Form]]
    ) -> dict[str, Tensor]:
        """Arrays of windows of one file.

        Args:
            clips: Windows of equal length.
            forms: Name of each array: its modality and form.

        Returns:
            float32 `[N, …]` on the CPU by name; rows of windows without the modality are zeros.
            Without the arrays of modalities that no window has.
        """
        arrays: dict[str, Tensor] = {}
        for modality in dict.fromkeys(modality for modality, _ in forms.values()):
            mask = torch.tensor([coverage_of(clip, modality) > 0 for clip in clips])
            if not bool(mask.any()):
                continue
            raw = torch.stack(
                [getattr(clip, modality) for clip, there in zip(clips, mask, strict=True) if there]
            )
            names = [name for name, (of, _) in forms.items() if of == modality]
            made = self.embed(modality, raw, [forms[name][1] for name in names])
            arrays |= {n: place_rows(v, mask) for n, v in zip(names, made, strict=True)}
        return arrays


def _without_padding(hidden_BLD: Tensor, ids_BJ: Tensor) -> Tensor:
    """Tokens of AGG and all words, `[B, 1 + J, D]`, zeros where a caption has no word."""
    missing = 1 + ids_BJ.shape[1] - hidden_BLD.shape[1]  # the model cuts to the longest caption
    words = F.pad(ids_BJ != 0, (1, 0), value=True)
    return F.pad(hidden_BLD, (0, 0, 0, missing)) * words[:, :, None]


def coverage_of(clip: Clip, modality: str) -> float:
    """Share of a window that the file gave of a modality; 0 where that was not asked for."""
    if getattr(clip, modality) is None:
        return 0.0
    return clip.video_coverage if modality == "video" else clip.audio_coverage
