"""Zero-shot retrieval: embeddings of a whole set, and the metrics of the four directions.

Shapes: `N` clips of the set, `K` captions of a clip, `D` width (the project's legend is in
`vatt.batch`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vatt.batch import Batch
from vatt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EmbeddingTable:
    """Embeddings of a set of clips, one row per clip.

    Rows that a mask excludes are zeros. A modality that no clip has is None.

    Args:
        keys: Names of the `N` clips.
        video_va: float32 `[N, D_va]` on the CPU, of unit length, like all embeddings here. With a
            joint head, both spaces are the joint space.
        audio_va: float32 `[N, D_va]`.
        video_vt: float32 `[N, D_vt]`.
        text_vt: float32 `[N, K, D_vt]`; captions that a clip lacks are zeros.
        video_mask: bool `[N]`, True if the clip has a picture.
        audio_mask: bool `[N]`, True if the clip has sound.
        text_mask: bool `[N, K]`, True if the clip has that caption.
    """

    keys: tuple[str, ...]
    video_va: Tensor | None
    audio_va: Tensor | None
    video_vt: Tensor | None
    text_vt: Tensor | None
    video_mask: Tensor
    audio_mask: Tensor
    text_mask: Tensor

    def __post_init__(self) -> None:
        """Refuses parts of different lengths."""
        rows = {name: len(column) for name, column in vars(self).items() if column is not None}
        wrong = {name: count for name, count in rows.items() if count != len(self)}
        if wrong:
            raise ValueError(f"the table has {len(self)} keys, but other numbers of rows: {wrong}")

    def __len__(self) -> int:
        """Number of clips, `N`."""
        return len(self.keys)

    def select(self, rows: Sequence[int] | Tensor) -> "EmbeddingTable":
        """Table of these rows, in this order."""
        index = torch.as_tensor(rows, dtype=torch.int64)
        return EmbeddingTable(
            keys=tuple(self.keys[i] for i in index.tolist()),
            video_va=None if self.video_va is None else self.video_va[index],
            audio_va=None if self.audio_va is None else self.audio_va[index],
            video_vt=None if self.video_vt is None else self.video_vt[index],
            text_vt=None if self.text_vt is None else self.text_vt[index],
            video_mask=self.video_mask[index],
            audio_mask=self.audio_mask[index],
            text_mask=self.text_mask[index],
        )


def embed(
    model: nn.Module, loader: Iterable[Batch], device: torch.device | str | None = None
) -> EmbeddingTable:
    """Embeds all clips of a loader, in evaluation mode.

    Args:
        model: Model; it moves to `device` and keeps its mode.
        loader: Loader of batches with all captions of each clip.
        device: Device. None: that of the model.

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
    """Table of one batch, for a validation step; the caller sets the model's mode."""
    device = next(model.parameters()).device
    embeddings: dict[str, Tensor] = model(batch.to(device)).embeddings
    unit = {
        name: functional.normalize(value.float(), dim=-1).cpu()
        for name, value in embeddings.items()
    }
    absent = torch.zeros(len(batch), dtype=torch.bool)
    return EmbeddingTable(
        keys=batch.keys or ("",) * len(batch),
        video_va=unit.get("video_va", unit.get("video_joint")),
        audio_va=unit.get("audio_va", unit.get("audio_joint")),
        video_vt=unit.get("video_vt", unit.get("video_joint")),
        text_vt=unit.get("text_vt", unit.get("text_joint")),
        video_mask=absent if batch.video_mask is None else batch.video_mask.cpu(),
        audio_mask=absent if batch.audio_mask is None else batch.audio_mask.cpu(),
        text_mask=absent[:, None] if batch.text_mask is None else batch.text_mask.cpu(),
    )


def concatenate(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """Concatenates tables; modalities and captions that some lack are masked.

    Raises:
        UserError: there is no table.
    """
    if not tables:
        raise UserError("no clip to embed: the loader gave no batch")
    sizes = [len(table) for table in tables]
    num_captions = max(table.text_mask.shape[1] for table in tables)
    absent = [num_captions - table.text_mask.shape[1] for table in tables]
    return EmbeddingTable(
        keys=tuple(key for table in tables for key in table.keys),
        video_va=_stack([table.video_va for table in tables], sizes),
        audio_va=_stack([table.audio_va for table in tables], sizes),
        video_vt=_stack([table.video_vt for table in tables], sizes),
        text_vt=_stack(
            [
                None if table.text_vt is None else functional.pad(table.text_vt, (0, 0, 0, count))
                for table, count in zip(tables, absent, strict=True)
            ],
            sizes,
        ),
        video_mask=torch.cat([table.video_mask for table in tables]),
        audio_mask=torch.cat([table.audio_mask for table in tables]),
        text_mask=torch.cat(
            [functional.pad(t.text_mask, (0, n)) for t, n in zip(tables, absent, strict=True)]
        ),
    )


def _stack(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Rows below each other, zeros where a part is absent; None where all are."""
    present = next((part for part in parts if part is not None), None)
    if present is None:
        return None
    return torch.cat(
        [
            present.new_zeros(size, *present.shape[1:]) if part is None else part
            for part, size in zip(parts, sizes, strict=True)
        ]
    )
