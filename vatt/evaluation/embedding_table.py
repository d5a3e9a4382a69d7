"""Zero-shot retrieval: embeddings of a whole set, and the metrics of the four directions.

Shapes: `N` clips of the set, `K` captions of a clip, `D` width (the project's legend is in
`vatt.batch`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vatt.batch import Batch
from vatt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """What a model makes of a set of clips; one row is one clip.

    Rows that a mask excludes are zeros. A modality that no clip has is None.

    Args:
        keys: `N` names.
        video_va: float32 `[N, D_va]` on the CPU, of unit length, as all of these. A joint space
            stands for both.
        audio_va: float32 `[N, D_va]`.
        video_vt: float32 `[N, D_vt]`.
        text_vt: float32 `[N, K, D_vt]`; captions that a clip lacks are zeros.
        video_mask: bool `[N]`, True where the clip has a picture.
        audio_mask: bool `[N]`, True where the clip has sound.
        text_mask: bool `[N, K]`, True where the clip has that caption.
        metadata: One mapping for each clip, or nothing at all.
    """

    keys: tuple[str, ...]
    video_va: Tensor | None
    audio_va: Tensor | None
    video_vt: Tensor | None
    text_vt: Tensor | None
    video_mask: Tensor
    audio_mask: Tensor
    text_mask: Tensor
    metadata: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuses parts of different lengths."""
        rows = {name: len(value) for name, value in self._tensors().items()}
        if self.metadata:
            rows["metadata"] = len(self.metadata)
        wrong = {name: count for name, count in rows.items() if count != len(self)}
        if wrong:
            raise ValueError(f"the table has {len(self)} keys, but other numbers of rows: {wrong}")

    def __len__(self) -> int:
        """Number of clips, `N`."""
        return len(self.keys)

    def select(self, rows: Sequence[int] | Tensor) -> Self:
        """The table of these rows, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        numbers: list[int] = index.tolist()
        parts: dict[str, Any] = {name: value[index] for name, value in self._tensors().items()}
        absent: dict[str, Any] = {
            f.name: None for f in fields(self) if getattr(self, f.name) is None
        }
        keys = tuple(self.keys[i] for i in numbers)
        metadata = tuple(self.metadata[i] for i in numbers) if self.metadata else ()
        return type(self)(**parts, **absent, keys=keys, metadata=metadata)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            f.name: value
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }


def embed(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str | None = None
) -> EmbeddingTable:
    """Embeds every clip that a loader gives, in evaluation mode.

    Args:
        model: A `vatt.VATT`; keeps its mode, and moves to `device`.
        loader: Batches with all the captions of each clip.
        device: Where to compute. None: where the model is.

    Raises:
        UserError: the loader gives no batch.
    """
    if device is not None:
        model.to(device)
    was_training = model.training
    model.eval()
    try:
        return concatenate([embed_batch(model, batch) for batch in loader])
    finally:
        model.train(was_training)


@torch.no_grad()  # not inference_mode, in which FSDP2 would gather weights for inference only
def embed_batch(model: nn.Module, batch: Batch) -> EmbeddingTable:
    """The table of one batch, for a validation step; the model's mode is the caller's business."""
    device = next(model.parameters()).device
    embeddings: dict[str, Tensor] = model(batch.to(device)).embeddings
    unit = {
        name: functional.normalize(value.float(), dim=-1).cpu()
        for name, value in embeddings.items()
    }
    none = torch.zeros(len(batch), dtype=torch.bool)
    return EmbeddingTable(
        keys=batch.keys or ("",) * len(batch),
        video_va=unit.get("video_va", unit.get("video_joint")),
        audio_va=unit.get("audio_va", unit.get("audio_joint")),
        video_vt=unit.get("video_vt", unit.get("video_joint")),
        text_vt=unit.get("text_vt", unit.get("text_joint")),
        video_mask=none if batch.video_mask is None else batch.video_mask.cpu(),
        audio_mask=none if batch.audio_mask is None else batch.audio_mask.cpu(),
        text_mask=none[:, None] if batch.text_mask is None else batch.text_mask.cpu(),
    )


def concatenate(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """One table of several, in order; modalities that some lack, and missing captions, are masked.

    Raises:
        UserError: there is no table.
    """
    if not tables:
        raise UserError("no clip to embed: the loader gave no batch")
    num_rows = [len(table) for table in tables]
    names = [f.name for f in fields(EmbeddingTable) if f.name not in ("keys", "metadata")]
    parts: dict[str, Any] = {
        name: _stack_padded([getattr(table, name) for table in tables], num_rows) for name in names
    }
    return EmbeddingTable(
        keys=tuple(key for table in tables for key in table.keys),
        metadata=tuple(values for table in tables for values in table.metadata),
        **parts,
    )


def _stack_padded(parts: Sequence[Tensor | None], num_rows: Sequence[int]) -> Tensor | None:
    """Rows below each other, zeros where a part is absent or has fewer captions than another."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    sizes = [max(axis) for axis in zip(*(part.shape[1:] for part in present), strict=True)]
    stacked = present[0].new_zeros(sum(num_rows), *sizes)
    start = 0
    for part, rows in zip(parts, num_rows, strict=True):
        if part is not None:
            axes = (slice(size) for size in part.shape[1:])
            stacked[(slice(start, start + rows), *axes)] = part
        start += rows
    return stacked
