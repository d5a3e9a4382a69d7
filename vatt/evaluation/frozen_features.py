"""Features of a frozen model, stored on disk, so that a stopped evaluation can resume.

A file contains the clips of one chunk. Its name is a digest of all that they depend on: weights,
views, and name, size and time of each media file.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vatt.encoders.encoder import Encoder
from vatt.errors import Fault, UserError
from vatt.evaluation.clip_views import ViewPlan, read_items
from vatt.sets.items import Item
from vatt.system.files import write_atomically

CHUNK_ITEMS = 64


@dataclass(frozen=True, kw_only=True)
class FrozenFeatures:
    """Features of all readable clips of a set.

    Args:
        items: Readable clips.
        values: float32 `[N, views, D]`, pooled features of the backbone.
        faults: Unreadable clips, with reasons.
    """

    items: tuple[Item, ...]
    values: Tensor
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(
        cls, items: Sequence[Item], values: Sequence[Tensor], reasons: Mapping[str, str]
    ) -> "FrozenFeatures":
        """Features of parts of the items, and why the others have none, by key.

        Raises:
            UserError: no clip can be read.
        """
        faults = tuple(Fault(key, reason) for key, reason in reasons.items())
        if len(faults) == len(items):
            raise UserError(f"none of {len(items)} clips can be read; the first: {faults[:1]}")
        readable = tuple(item for item in items if item.key not in reasons)
        rows = torch.cat([part for part in values if len(part)])
        return cls(items=readable, values=rows, faults=faults)


def extract_features(
    encoder: Encoder,
    items: Sequence[Item],
    plan: ViewPlan,
    *,
    modality: Literal["video", "audio"],
    digest: str,
    cache: Path | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> FrozenFeatures:
    """Features of every view of each clip, from the cache if it has them.

    Args:
        encoder: The model.
        items: Clips with media.
        plan: Views of each clip.
        modality: Modality to encode.
        digest: Digest of the model, see `Encoder.digest`.
        cache: Folder that stores the features. None: they are not stored.
        batch_size: Clips per batch.
        num_workers: Processes that read.

    Raises:
        UserError: the model lacks the modality, or no clip can be read.
    """
    chunks = [items[start : start + CHUNK_ITEMS] for start in range(0, len(items), CHUNK_ITEMS)]
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    values: list[Tensor] = []
    reasons: dict[str, str] = {}
    for chunk in chunks:
        path = None if cache is None else cache / f"{_name(chunk, plan, modality, digest)}.features"
        features = None if path is None else _load(path)
        if features is None:
            features = encode_clips(
                encoder, chunk, plan, modality, None, batch_size=batch_size, num_workers=num_workers
            )
            if path is not None:
                _save(path, *features)
        values.append(features[0])
        reasons |= features[1]
    return FrozenFeatures.of(items, values, reasons)


@torch.no_grad()
def encode_clips(
    encoder: Encoder,
    items: Sequence[Item],
    plan: ViewPlan,
    modality: Literal["video", "audio"],
    space: str | None,
    *,
    batch_size: int,
    num_workers: int,
) -> tuple[Tensor, dict[str, str]]:
    """Encodes every view of the clips that can be read.

    Args:
        encoder: The model.
        items: Clips with media.
        plan: The views of each clip.
        modality: The modality that is encoded.
        space: Common space of the vectors. None: features of the backbone.
        batch_size: Clips that are encoded at once.
        num_workers: Processes that read.

    Returns:
        float32 `[n, views, D]` on the CPU; and by key why the other clips have none.

    Raises:
        UserError: the model lacks the modality.
    """
    encoder.check_modality(modality)
    rows: list[Tensor] = []
    waiting: list[Tensor] = []
    reasons: dict[str, str] = {}

    def encode_waiting() -> None:
        if waiting:
            windows = [window for views in waiting for window in views]
            vectors = encoder.encode(modality, windows, [space])[space].cpu()
            rows.append(vectors.unflatten(0, (len(waiting), -1)))
            waiting.clear()

    for item, read in zip(items, read_items(items, plan, num_workers=num_workers), strict=True):
        views = read.video if modality == "video" else read.audio
        if read.fault or views is None:
            reasons[item.key] = read.fault or f"has no {modality}"
            continue
        waiting.append(torch.from_numpy(views))
        if len(waiting) == batch_size:
            encode_waiting()
    encode_waiting()
    return torch.cat(rows) if rows else torch.zeros(0), reasons


def _name(items: Sequence[Item], plan: ViewPlan, modality: str, digest: str) -> str:
    # the last two are those of earlier plans, which could have others
    described: list[Any] = [digest, modality, {**asdict(plan), "num_crops": 1, "stride": 2}]
    for item in items:
        described.append([item.key, item.start_seconds, item.end_seconds, _state(item.source)])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _state(source: Any) -> Any:
    """Name, size and modification time of a media file."""
    if not isinstance(source, str):
        return repr(source)
    try:
        status = Path(source).stat()
    except OSError:
        return source  # is reported when it is read
    return [source, status.st_size, status.st_mtime_ns]


def _save(path: Path, values: Tensor, reasons: dict[str, str]) -> None:
    from safetensors.torch import save

    metadata = {"reasons": json.dumps(reasons)}
    write_atomically(path, save({"values": values.contiguous()}, metadata=metadata))


def _load(path: Path) -> tuple[Tensor, dict[str, str]] | None:
    """Features and faults in a file; None if there is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.get_tensor("values"), json.loads(file.metadata()["reasons"])
    except FileNotFoundError:
        return None
    except (SafetensorError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it") from error
