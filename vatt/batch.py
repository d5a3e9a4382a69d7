"""The batch, the only interface between data and model.

Shape legend of the project: `B` clips in the batch · `G` clips over all ranks · `T` frames · `H W`
pixels · `C` channels · `S` waveform samples · `M` windows of a spectrogram · `F` mel bins · `L`
tokens · `D` width · `N` heads · `E` width per head · `K` candidate captions · `J` words · `P`
values in a patch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import chain
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class Facts(NamedTuple):
    """Facts about a batch as plain numbers, one per clip, which need no transfer from a device.

    Args:
        video: 1 if the clip has a picture, else 0.
        audio: 1 if the clip has sound, else 0.
        text: Number of captions of the clip.
        longest: Length of its longest caption, including padding between words.
        fewest: Number of words of its shortest caption.
        lowest_id: Smallest token id of its captions, at most 0.
        highest_id: Largest token id of its captions.
    """

    video: tuple[int, ...]
    audio: tuple[int, ...]
    text: tuple[int, ...]
    longest: tuple[int, ...]
    fewest: tuple[int, ...]
    lowest_id: tuple[int, ...]
    highest_id: tuple[int, ...]

    def num_rows(self, modality: str) -> int:
        """Number of clips that have a picture or sound, or of captions."""
        return sum(getattr(self, modality))

    def coverage(self, modality: str) -> float:
        """Share of the clips that have a modality, in [0, 1]."""
        return sum(count > 0 for count in getattr(self, modality)) / len(self.video)

    @property
    def longest_caption(self) -> int:
        """Length of the longest caption, at least 1."""
        return max((1, *self.longest))

    @property
    def has_padding(self) -> bool:
        """Whether a caption has fewer words than the longest one."""
        return min(self.fewest, default=0) < self.longest_caption

    def select(self, rows: slice) -> "Facts":
        """Facts about some of the clips."""
        return Facts(*(column[rows] for column in self))


@dataclass(kw_only=True)
class Batch:
    """Clips; each may lack some modalities.

    Row i of all three modalities belongs to clip i. If a mask is False, the values of that row are
    zeros without meaning. A modality that the whole batch lacks may be None.

    Args:
        video: uint8 `[B, T, H, W, C]` in 0…255, or float in [-1, 1].
        audio: float32 `[B, S]` in [-1, 1]; or log-mel spectrograms in [0, 1], `[B, M, F]`.
        text: int64 `[B, K, J]` token ids, 0 = padding.
        video_mask: bool `[B]`, True if the clip has a picture. None: all True.
        audio_mask: bool `[B]`, True if the clip has sound. None: all True.
        text_mask: bool `[B, K]`, True for captions with words. None: derived from the ids, True
            unless all are 0.
        seeds: int64 `[B]`, seeds of the random changes of each clip (colours, noise, masks), which
            therefore do not depend on batch, worker or rank. None: no random changes, as in
            evaluation.
        keys: Names of the clips for error messages.

    Raises:
        ValueError: a tensor has a wrong rank, dtype or number of rows.
    """

    video: Tensor | None = None
    audio: Tensor | None = None
    text: Tensor | None = None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None
    text_mask: Tensor | None = None
    seeds: Tensor | None = None
    keys: tuple[str, ...] = ()
    _facts: Facts | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Checks ranks, dtypes and rows, fills the masks, and notes the facts of a host's batch."""
        for name, ranks, wanted, is_wanted in (
            ("video", (5,), "uint8 or floating point", _is_picture),
            ("audio", (2, 3), "floating point in [-1, 1]", Tensor.is_floating_point),
            ("text", (3,), "int64 token ids", lambda text: text.dtype == torch.int64),
        ):
            value = getattr(self, name)
            if value is not None and value.ndim not in ranks:
                axes = " or ".join(map(str, ranks))
                raise ValueError(f"batch.{name} must have {axes} axes, got {tuple(value.shape)}")
            if value is not None and not is_wanted(value):
                raise ValueError(f"batch.{name} must be {wanted}, got {value.dtype}")
        if self.seeds is not None and (self.seeds.dtype != torch.int64 or self.seeds.ndim != 1):
            raise ValueError(
                f"batch.seeds must be int64 [B], got {self.seeds.dtype} {list(self.seeds.shape)}"
            )
        self._check_rows()
        self._fill_masks()
        if self.device.type == "cpu":
            self._facts = self._read_facts()

    def _check_rows(self) -> None:
        rows = {name: value.shape[0] for name, value in self._tensors().items()}
        if not rows.keys() & {"video", "audio", "text"}:
            raise ValueError("a batch needs at least one modality")
        if len(set(rows.values())) > 1:
            raise ValueError(f"all parts of a batch must have the same number of rows, got {rows}")
        if self.keys and len(self.keys) != len(self):
            raise ValueError(f"a batch of {len(self)} rows has {len(self.keys)} keys")

    def _fill_masks(self) -> None:
        """Makes the masks that are not given; they have one bool for each clip or caption."""
        for name in ("video", "audio", "text"):
            value, mask = getattr(self, name), getattr(self, f"{name}_mask")
            if value is None:
                continue
            wanted = list(value.shape[: 2 if name == "text" else 1])
            if mask is None:
                everywhere = torch.ones(wanted, dtype=torch.bool, device=value.device)
                mask = (value != 0).any(dim=-1) if name == "text" else everywhere
                setattr(self, f"{name}_mask", mask)
            if mask.dtype != torch.bool or list(mask.shape) != wanted:
                raise ValueError(
                    f"batch.{name}_mask must be bool {wanted}, got {mask.dtype} {list(mask.shape)}"
                )

    def __len__(self) -> int:
        """Number of clips, `B`."""
        first = next(v for v in (self.video, self.audio, self.text) if v is not None)
        return first.shape[0]

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by modality, bool `[B]` or `[B, K]`; absent modalities have no entry."""
        masks = ((name, getattr(self, f"{name}_mask")) for name in ("video", "audio", "text"))
        return {name: mask for name, mask in masks if mask is not None}

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(v for v in (self.video, self.audio, self.text) if v is not None).device

    @property
    def facts(self) -> Facts:
        """Facts about the clips; for a batch made on a device, read at first use."""
        if self._facts is None:
            self._facts = self._read_facts()
        return self._facts

    def _read_facts(self) -> Facts:
        text, text_mask = self.text, self.text_mask
        absent = torch.zeros(len(self), dtype=torch.bool, device=self.device)
        if text is None or text_mask is None:
            text = torch.zeros(len(self), 0, 0, dtype=torch.int64, device=self.device)
            text_mask = absent[:, None][:, :0]
        # one more caption, absent, and one more word, padding: there is something to reduce
        present_BK = F.pad(text_mask, (0, 1))
        ids_BKJ = F.pad(text, (0, 1, 0, 1)).masked_fill(~present_BK[..., None], 0)
        places_J = torch.arange(1, ids_BKJ.shape[2] + 1, device=self.device)
        num_words_BK = (ids_BKJ != 0).sum(dim=2).masked_fill(~present_BK, len(places_J))
        columns = (
            absent if self.video is None or self.video_mask is None else self.video_mask,
            absent if self.audio is None or self.audio_mask is None else self.audio_mask,
            present_BK.sum(dim=1),
            ((ids_BKJ != 0) * places_J).amax(dim=(1, 2)),
            num_words_BK.amin(dim=1),
            ids_BKJ.amin(dim=(1, 2)),
            ids_BKJ.amax(dim=(1, 2)),
        )
        return Facts(*map(tuple, torch.stack([column.long() for column in columns]).tolist()))

    def with_inputs(self, **changes: Tensor | None) -> Self:
        """The same clips with some tensors replaced, such as moved or augmented ones.

        `dataclasses.replace` would read the facts again, and wait for the device; this keeps them.

        Args:
            changes: New values of fields by name. Rows, masks and captions must not change.
        """
        changed = replace(self, **changes)  # type: ignore[arg-type]
        changed._facts = self._facts
        return changed

    def _tensors(self) -> dict[str, Tensor]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same batch on another device; the host does not wait for copies to a GPU.

        They run beside the computation that is queued there.

        Args:
            device: Device to copy to.
            non_blocking: Whether the host may go on before a copy to the CPU is there, too.
        """
        target = torch.device(device)
        non_blocking = non_blocking or target.type == "cuda"
        tensors = self._tensors()
        if target.type == "cuda" and self.device.type == "cpu" and torch.cuda.is_available():
            return self.with_inputs(**_copied_beside(tensors, target))
        moved = {n: v.to(device, non_blocking=non_blocking) for n, v in tensors.items()}
        return self.with_inputs(**moved)

    def pin_memory(self) -> Self:
        """The same batch in page-locked memory; a DataLoader calls this."""
        return self.with_inputs(**{n: v.pin_memory() for n, v in self._tensors().items()})


@dataclass(kw_only=True)
class LabelledBatch(Batch):
    """Clips with their labels.

    In evaluation the rows are views; the views of a clip follow each other and have its labels and
    key.

    Args:
        labels: float32 `[B, C]`, where `C` are classes: 1 for the classes of a clip, 0 for others,
            or shares in between after mixup.
        num_views: Number of rows per clip.

    Raises:
        ValueError: labels have another rank or dtype, or the rows are not all views of all clips.
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
    """A batch in parts, each of which moves to the device only when it is read.

    Args:
        parts: Batches of any size.
        device: Device to which a part moves when it is read.
        change: Function that is applied to a part on the device whenever it is read.
    """

    parts: tuple[Batch, ...]
    device: torch.device
    change: Callable[[Batch], Batch] | None = None
    _masks: dict[str, Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def split(cls, batch: Batch, size: int) -> Self:
        """Splits a batch into parts of `size` clips; the last may be smaller."""
        parts = []
        for start in range(0, len(batch), size):
            rows = slice(start, start + size)
            part = Batch(**{n: v[rows] for n, v in batch._tensors().items()}, keys=batch.keys[rows])
            part._facts = batch.facts.select(rows)
            parts.append(part)
        return cls(parts=tuple(parts), device=batch.device)

    def __len__(self) -> int:
        """Number of clips of all parts, `B`."""
        return sum(len(part) for part in self.parts)

    def __iter__(self) -> Iterator[Batch]:
        """The parts in turn, on the device and changed."""
        for part in self.parts:
            moved = part.to(self.device)
            yield moved if self.change is None else self.change(moved)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same parts, to be moved to another device."""
        return replace(self, device=torch.device(device))

    @property
    def keys(self) -> tuple[str, ...]:
        """Names of the clips."""
        return tuple(key for part in self.parts for key in part.keys)

    @property
    def facts(self) -> Facts:
        """Facts about the clips of all parts."""
        columns = zip(*(part.facts for part in self.parts), strict=True)
        return Facts(*(tuple(chain(*column)) for column in columns))

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks on the device by modality: bool `[B]`, or `[B, K]` with the largest `K`.

        They are copied to the device once, without waiting for it.
        """
        if self._masks is None:
            self._masks = self._read_masks()
        return dict(self._masks)

    def _read_masks(self) -> dict[str, Tensor]:
        masks, parts = {}, [part.masks for part in self.parts]
        for name in dict.fromkeys(name for part in parts for name in part):
            rest = max(part[name].shape[1:] for part in parts if name in part)
            rows = [
                _padded(part.get(name), len(batch), rest)
                for part, batch in zip(parts, self.parts, strict=True)
            ]
            masks[name] = torch.cat(rows).to(self.device, non_blocking=True)
        return masks


def _padded(mask: Tensor | None, num_clips: int, rest: tuple[int, ...]) -> Tensor:
    """A mask `[B, *rest]`, of which `rest` is `(K,)` for text; False is added, or all there is."""
    if mask is None:
        return torch.zeros(num_clips, *rest, dtype=torch.bool)
    return F.pad(mask, (0, rest[0] - mask.shape[1])) if rest else mask


def _copied_beside(tensors: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies on a GPU, made on a stream of their own; the current stream waits for them."""
    current, beside = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(beside):
        copies = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
    current.wait_stream(beside)
    for copy in copies.values():
        copy.record_stream(
            current
        )  # its memory is not used again before the current stream is done
    return copies


@lru_cache(maxsize=8)
def _copy_stream(device: torch.device) -> "torch.cuda.Stream":
    return torch.cuda.Stream(device)


def _is_picture(video: Tensor) -> bool:
    return video.dtype == torch.uint8 or video.is_floating_point()


def described(value: Tensor) -> str:
    """Dtype and shape of a tensor, for messages."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
