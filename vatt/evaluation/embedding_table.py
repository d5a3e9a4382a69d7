"""Embeddings of a whole set of clips, for retrieval between all its modalities.

Shapes: `N` clips of the set, `K` captions of a clip, `D` width (the project's legend is in
`vatt.batch`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vatt.batch import Batch
from vatt.errors import UserError
from vatt.network.heads import FACHead, at_least_float32

SPACES = ("va", "vt", "at")  # of the columns of a table; the first that two modalities share counts


@dataclass(frozen=True, kw_only=True)
class ClipTable:
    """Columns about a set of clips, one row per clip.

    Args:
        keys: Names of the `N` clips.
    """

    keys: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses parts of different lengths."""
        rows = {name: len(column) for name, column in vars(self).items() if column is not None}
        wrong = {name: count for name, count in rows.items() if count != len(self)}
        if wrong:
            raise ValueError(f"the table has {len(self)} keys, but other numbers of rows: {wrong}")

    def __len__(self) -> int:
        """Number of clips, `N`."""
        return len(self.keys)

    def select(self, rows: Sequence[int] | Tensor) -> Self:
        """Table of these rows, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        keys = tuple(self.keys[i] for i in index.tolist())
        tensors = {n: column[index] for n, column in vars(self).items() if torch.is_tensor(column)}
        return replace(self, keys=keys, **tensors)


T = TypeVar("T", bound=ClipTable)


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable(ClipTable):
    """Embeddings of a set of clips.

    Rows that a mask excludes are zeros. A modality that no clip has is None.

    Args:
        video_va: float32 `[N, D_va]` on the CPU, of unit length, like all embeddings here. With a
            joint space, both spaces are the joint space.
        audio_va: float32 `[N, D_va]`.
        video_vt: float32 `[N, D_vt]`.
        audio_vt: float32 `[N, D_vt]`; with the FAC head, sound enters this space through the last
            step of the video head. None also if the model has no text.
        text_vt: float32 `[N, K, D_vt]`; captions that a clip lacks are zeros.
        audio_at: float32 `[N, D_at]`, of models with a space of sound and text alone.
        text_at: float32 `[N, K, D_at]`.
        video_mask: bool `[N]`, True if the clip has a picture.
        audio_mask: bool `[N]`, True if the clip has sound.
        text_mask: bool `[N, K]`, True if the clip has that caption.
    """

    video_va: Tensor | None
    audio_va: Tensor | None
    video_vt: Tensor | None
    audio_vt: Tensor | None = None
    text_vt: Tensor | None
    audio_at: Tensor | None = None
    text_at: Tensor | None = None
    video_mask: Tensor
    audio_mask: Tensor
    text_mask: Tensor

    def num_with(self) -> dict[str, int]:
        """Number of clips with each modality."""
        has_text = self.text_mask.any(dim=1)
        masks = {"video": self.video_mask, "audio": self.audio_mask, "text": has_text}
        return {name: int(mask.sum()) for name, mask in masks.items()}

    def shared(self, one: str, other: str) -> tuple[Tensor, Tensor] | None:
        """Embeddings of two modalities in a space of both; None if they share none."""
        for space in SPACES:
            first, second = (getattr(self, f"{name}_{space}", None) for name in (one, other))
            if first is not None and second is not None:
                return first, second
        return None

    def first_texts(self, text: Tensor | None = None) -> tuple[Tensor | None, Tensor]:
        """Embedding of each clip's first caption `[N, D]`, and which clips have one `[N]`.

        Args:
            text: Embeddings of captions. None: `text_vt`.
        """
        has_text = self.text_mask.any(dim=1)
        text = self.text_vt if text is None else text
        if text is None:
            return None, has_text
        slot = self.text_mask.int().argmax(dim=1)
        return text[torch.arange(len(self)), slot], has_text


def similarities(table: EmbeddingTable) -> dict[str, Tensor]:
    """Similarities of every clip with every other, by direction; of captions the first counts.

    Returns:
        float `[N, N]`: rows are queries, columns candidates, NaN where a clip lacks the modality.
        The directions are `text_to_video`, `audio_to_video` and `text_to_audio`, without those for
        which no clip has both modalities, or the model no space.
    """
    found = {}
    for asked, sought in (("text", "video"), ("audio", "video"), ("text", "audio")):
        if (pair := table.shared(asked, sought)) is None:
            continue
        queries: Tensor | None
        queries, candidates = pair
        asks, answers = (getattr(table, f"{name}_mask") for name in (asked, sought))
        if asked == "text":
            queries, asks = table.first_texts(queries)
        if queries is not None and (asks & answers).any():
            known = asks[:, None] & answers[None, :]
            scores = (queries @ candidates.T).masked_fill(~known, torch.nan)
            found[f"{asked}_to_{sought}"] = scores
    return found


def embed(model: nn.Module, loader: Iterable[Batch]) -> EmbeddingTable:
    """Embeds all clips of a loader, in evaluation mode.

    Args:
        model: Model; it keeps its mode.
        loader: Loader of batches with all captions of each clip.

    Raises:
        UserError: the loader gives no batch.
    """
    was_training = model.training
    model.eval()
    try:
        return concatenate([embed_batch(model, batch) for batch in loader])
    finally:
        model.train(was_training)


@torch.no_grad()  # not inference_mode, in which FSDP2 would gather weights for inference only
def embed_batch(model: nn.Module, batch: Batch) -> EmbeddingTable:
    """Table of one batch, for a validation step; the caller sets the model's mode."""
    batch = batch.to(next(model.parameters()).device)
    embeddings: dict[str, Tensor] = dict(model(batch).embeddings)
    head = model.head
    if isinstance(head, FACHead) and head.va_vt is not None and "audio_va" in embeddings:
        beside_text = at_least_float32(head.va_to_vt(embeddings["audio_va"]))
        embeddings["audio_vt"] = beside_text.masked_fill(~batch.masks["audio"][:, None], 0.0)
    unit = {name: functional.normalize(value.float(), dim=-1) for name, value in embeddings.items()}
    keys = batch.keys or ("",) * len(batch)
    return table_of(keys, _to_host(unit), _to_host(batch.masks))


def _to_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors of one dtype at once: each copy waits for the device."""
    whole = torch.cat([tensor.flatten() for tensor in tensors.values()]).cpu()
    parts = whole.split([tensor.numel() for tensor in tensors.values()])
    return {
        name: part.view(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }


def table_of(
    keys: tuple[str, ...], unit: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> EmbeddingTable:
    """Table of embeddings that have the model's names.

    Args:
        keys: Names of the clips.
        unit: Unit vectors by `MODALITY_SPACE`; a joint space is used for `va` and `vt`.
        masks: Masks by modality; a modality without mask is absent from all clips.
    """
    absent = torch.zeros(len(keys), dtype=torch.bool)
    return EmbeddingTable(
        keys=keys,
        video_va=unit.get("video_va", unit.get("video_joint")),
        audio_va=unit.get("audio_va", unit.get("audio_joint")),
        video_vt=unit.get("video_vt", unit.get("video_joint")),
        audio_vt=unit.get("audio_vt", unit.get("audio_joint")),
        text_vt=unit.get("text_vt", unit.get("text_joint")),
        audio_at=unit.get("audio_at"),
        text_at=unit.get("text_at"),
        video_mask=masks.get("video", absent),
        audio_mask=masks.get("audio", absent),
        text_mask=masks.get("text", absent[:, None]),
    )


def concatenate(tables: Sequence[T]) -> T:
    """Concatenates tables; modalities and captions that some lack are masked.

    Raises:
        UserError: there is no table.
    """
    if not tables:
        raise UserError("no clip to embed: the loader gave no batch")
    sizes = [len(table) for table in tables]
    columns = {
        name: _stack([getattr(table, name) for table in tables], sizes)
        for name in vars(tables[0])
        if name != "keys"
    }
    return replace(tables[0], keys=tuple(k for table in tables for k in table.keys), **columns)


def _stack(parts: Sequence[Tensor | None], sizes: list[int]) -> Tensor | None:
    """Concatenated rows, with zeros for absent parts or captions; None if all are absent."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    widths = [max(lengths) for lengths in zip(*(part.shape[1:] for part in present), strict=True)]
    rows = present[0].new_zeros(sum(sizes), *widths)
    for place, part in zip(rows.split(sizes), parts, strict=True):
        if part is not None:
            place[tuple(slice(length) for length in part.shape)] = part
    return rows
