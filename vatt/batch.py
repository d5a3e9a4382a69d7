"""Batch: the one contract between data and model.

Shape legend of the project: `B` clips in the batch · `G` clips over all ranks · `T` frames · `H W`
pixels · `C` channels · `S` waveform samples · `M` windows of a spectrogram · `F` mel bins · `L`
tokens · `D` width · `N` heads · `E` width per head · `K` candidate captions · `J` words · `P`
values in a patch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(kw_only=True)
class Batch:
    """Clips with whichever modalities each of them has.

    Rows of the three modalities belong together; where a mask is False the values of that row are
    zeros and mean nothing. A modality that the whole batch lacks may be left out (None).

    Args:
        video: uint8 `[B, T, H, W, C]` in 0…255, or float in [-1, 1].
        audio: float32 `[B, S]` in [-1, 1]; or log-mel spectrograms in [0, 1], `[B, M, F]`.
        text: int64 `[B, K, J]` token ids, 0 = padding.
        video_mask: bool `[B]`, True where the clip has a picture. None: every row has.
        audio_mask: bool `[B]`, True where the clip has sound. None: every row has.
        text_mask: bool `[B, K]`, True for captions that say something. None: derived, ids not all
            zero.
        seeds: int64 `[B]`, names the random changes of each clip (colours, noise, masks): the same
            clip in another batch, worker or rank is changed alike. None: nothing is drawn, as in
            evaluation.
        keys: `B` names of the clips, for error messages.

    Raises:
        ValueError: wrong rank, dtype or number of rows.
    """

    video: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None
    text_mask: Tensor | None = None
    seeds: Tensor | None = None
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks ranks, dtypes and rows, and fills the masks."""
        for name, ranks in (("video", (5,)), ("audio", (2, 3)), ("text", (3,))):
            value = getattr(self, name)
            if value is not None and value.ndim not in ranks:
                wanted = " or ".join(map(str, ranks))
                raise ValueError(f"batch.{name} must have {wanted} axes, got {tuple(value.shape)}")
        if self.text is not None and self.text.dtype != torch.int64:
            raise ValueError(f"batch.text must be int64 token ids, got {self.text.dtype}")
        if self.audio is not None and not self.audio.is_floating_point():
            raise ValueError(
                f"batch.audio must be floating point in [-1, 1], got {self.audio.dtype}"
            )
        if (
            self.video is not None
            and self.video.dtype != torch.uint8
            and not self.video.is_floating_point()
        ):
            raise ValueError(f"batch.video must be uint8 or floating point, got {self.video.dtype}")
        if self.seeds is not None and (self.seeds.dtype != torch.int64 or self.seeds.ndim != 1):
            raise ValueError(
                f"batch.seeds must be int64 [B], got {self.seeds.dtype} {list(self.seeds.shape)}"
            )
        self._check_rows()
        self._fill_masks()
        self._check_masks()

    def _check_rows(self) -> None:
        tensors = {
            f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        rows = {name: value.shape[0] for name, value in tensors.items()}
        if not rows.keys() & {"video", "audio", "text"}:
            raise ValueError("a batch needs at least one modality")
        if len(set(rows.values())) > 1:
            raise ValueError(f"all parts of a batch must have the same number of rows, got {rows}")
        if self.keys and len(self.keys) != len(self):
            raise ValueError(f"a batch of {len(self)} rows has {len(self.keys)} keys")

    def _fill_masks(self) -> None:
        if self.video is not None and self.video_mask is None:
            self.video_mask = torch.ones(len(self), dtype=torch.bool, device=self.video.device)
        if self.audio is not None and self.audio_mask is None:
            self.audio_mask = torch.ones(len(self), dtype=torch.bool, device=self.audio.device)
        if self.text is not None and self.text_mask is None:
            self.text_mask = (self.text != 0).any(dim=-1)

    def _check_masks(self) -> None:
        """One bool for each clip, or for each caption."""
        for name in ("video", "audio", "text"):
            value, mask = getattr(self, name), getattr(self, f"{name}_mask")
            if value is None or mask is None:
                continue
            wanted = value.shape[:2] if name == "text" else value.shape[:1]
            if mask.dtype != torch.bool or tuple(mask.shape) != tuple(wanted):
                raise ValueError(
                    f"batch.{name}_mask must be bool {list(wanted)}, "
                    f"got {mask.dtype} {list(mask.shape)}"
                )

    def __len__(self) -> int:
        """Number of clips, `B`."""
        first = next(v for v in (self.video, self.audio, self.text) if v is not None)
        return first.shape[0]

    @property
    def masks(self) -> dict[str, Tensor]:
        """By modality, bool `[B]` or `[B, K]`; a modality that the batch lacks has none."""
        masks = ((name, getattr(self, f"{name}_mask")) for name in ("video", "audio", "text"))
        return {name: mask for name, mask in masks if mask is not None}

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return next(v for v in (self.video, self.audio, self.text) if v is not None).device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=non_blocking)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; a DataLoader calls this."""
        pinned: dict[str, Any] = {
            f.name: value.pin_memory()
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **pinned)


@dataclass(kw_only=True)
class LabelledBatch(Batch):
    """Clips with what they show.

    In evaluation the rows are views, those of a clip one after another, each with its clip's labels
    and key.

    Args:
        labels: float32 `[B, C]`, 1 for the classes of a clip, 0 for others; shares between them
            where clips are mixed. Here `C` are classes.
        num_views: Rows of each clip.

    Raises:
        ValueError: labels of another rank or dtype, or rows that are not views of whole clips.
    """

    labels: Tensor
    num_views: int = 1

    def __post_init__(self) -> None:
        """Checks labels and views, too."""
        super().__post_init__()
        if self.labels.ndim != 2 or not self.labels.is_floating_point():
            raise ValueError(
                "batch.labels must be floating point [B, C], "
                f"got {self.labels.dtype} {list(self.labels.shape)}"
            )
        if self.num_views < 1 or len(self) % self.num_views:
            raise ValueError(f"{len(self)} rows are not {self.num_views} views each of some clips")


@dataclass(kw_only=True)
class MicroBatches:
    """One batch in parts, which stay where they are until they are looked at.

    Args:
        parts: Batches of any size.
        device: Where each part goes when its turn comes.
        change: What is done to each part there, every time anew.
    """

    parts: tuple[Batch, ...]
    device: torch.device
    change: Callable[[Batch], Batch] | None = None

    @classmethod
    def split(cls, batch: Batch, size: int) -> Self:
        """A batch in parts of `size` clips; the last may be smaller."""
        columns = {f.name: getattr(batch, f.name) for f in fields(batch)}
        given = {name: value for name, value in columns.items() if value is not None and len(value)}
        starts = range(0, len(batch), size)
        parts = [
            Batch(**{n: v[start : start + size] for n, v in given.items()}) for start in starts
        ]
        return cls(parts=tuple(parts), device=batch.device)

    def __len__(self) -> int:
        """Number of clips of all parts, `B`."""
        return sum(len(part) for part in self.parts)

    def __iter__(self) -> Iterator[Batch]:
        """The parts in turn, on the device and changed."""
        for part in self.parts:
            moved = part.to(self.device, non_blocking=True)
            yield moved if self.change is None else self.change(moved)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same parts, each bound for another device."""
        return replace(self, device=torch.device(device))

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the clips."""
        return tuple(key for part in self.parts for key in part.keys)

    @property
    def masks(self) -> dict[str, Tensor]:
        """On the device, by modality: bool `[B]`, or `[B, K]` with `K` of the largest part."""
        masks, parts = {}, [part.masks for part in self.parts]
        for name in dict.fromkeys(name for part in parts for name in part):
            rest = max(part[name].shape[1:] for part in parts if name in part)
            rows = [
                _padded(part.get(name), len(batch), rest)
                for part, batch in zip(parts, self.parts, strict=True)
            ]
            masks[name] = torch.cat(rows).to(self.device)
        return masks


def _padded(mask: Tensor | None, num_clips: int, rest: tuple[int, ...]) -> Tensor:
    """A mask `[B, *rest]`, of which `rest` is `(K,)` for text; False is added, or all there is."""
    if mask is None:
        return torch.zeros(num_clips, *rest, dtype=torch.bool)
    return F.pad(mask, (0, rest[0] - mask.shape[1])) if rest else mask
