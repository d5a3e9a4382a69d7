"""Zero-shot retrieval by the paper's protocol: several windows of each clip, averaged in two ways.

Source: paper section 4.4; google-research/vatt `utils/eval`, which reports both averages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from vatt.errors import Fault, UserError
from vatt.evaluation.clip_views import ItemViews, ViewPlan, read_items
from vatt.evaluation.embedding_table import EmbeddingTable, concatenate
from vatt.evaluation.retrieval import on_grid, retrieval
from vatt.network.model import VATT
from vatt.preprocess.tokenizer import Tokenizer
from vatt.sets.items import Item
from vatt.system.ranks import gather_objects, rank, world_size

Averaging = Literal["embeddings", "similarities"]
AVERAGINGS: tuple[Averaging, ...] = ("embeddings", "similarities")


@dataclass(frozen=True, kw_only=True)
class WindowedTables:
    """Embeddings of the clips of a set by both ways of averaging over windows, float64.

    Args:
        embeddings: Mean embedding of the windows of each clip, scaled to unit length.
        similarities: Mean of the unit vectors of the windows of each clip. Their dot products are
            means of cosines: over windows, and for video with audio over all pairs of windows.
        faults: Clips that could not be read, which have no row.
    """

    embeddings: EmbeddingTable
    similarities: EmbeddingTable
    faults: tuple[Fault, ...] = ()

    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """`{averaging: {direction: {"R@1": percent, …}}}`, see `retrieval`."""
        return {name: retrieval(getattr(self, name)) for name in AVERAGINGS}


def embed_items(
    model: VATT,
    tokenizer: Tokenizer | None,
    items: Sequence[Item],
    plan: ViewPlan,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
) -> WindowedTables:
    """Embeds all windows of every clip; each rank of a process group reads its share.

    Rank `r` of `W` embeds the clips `r::W` only, so no clip is embedded twice. All ranks get the
    table of all clips in their order.

    Args:
        model: Model with common spaces, in evaluation mode.
        tokenizer: Tokenizer of the captions. None: captions are left out.
        items: Clips with media and distinct keys.
        plan: Views of each clip.
        batch_size: Clips per batch.
        num_workers: Processes that read.

    Raises:
        UserError: the model has no common spaces, or no clip can be read.
    """
    if model.config.head is None:
        raise UserError("this model has no common spaces (its head is null): retrieval needs them")
    share = items[rank() :: world_size()]
    views = read_items(share, plan, num_workers=num_workers)
    pairs: list[tuple[EmbeddingTable, EmbeddingTable]] = []
    faults: list[Fault] = []
    clips = zip(share, views, strict=True)
    while batch := list(islice(clips, batch_size)):
        faults += [Fault(item.key, read.fault) for item, read in batch if read.fault]
        readable = [(item, read) for item, read in batch if not read.fault]
        if readable:
            pairs.append(_embed_batch(model, tokenizer, readable))
    shares = gather_objects((pairs, faults))
    together = [pair for of_rank, _ in shares for pair in of_rank]
    faults = [fault for _, of_rank in shares for fault in of_rank]
    if not together:
        raise UserError(f"none of {len(items)} clips can be read; the first: {faults[:1]}")
    order = {item.key: number for number, item in enumerate(items)}
    tables = [concatenate([pair[number] for pair in together]) for number in range(len(AVERAGINGS))]
    in_order = torch.tensor([order[key] for key in tables[0].keys]).argsort()
    embeddings, similarities = (table.select(in_order) for table in tables)
    faults.sort(key=lambda fault: order[fault.where])
    return WindowedTables(embeddings=embeddings, similarities=similarities, faults=tuple(faults))


def average_windows(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Averages the windows of clips in both ways.

    Args:
        embeddings: float `[N, windows, D]`, not normalised.

    Returns:
        The normalised mean, and the mean of normalised vectors, float64 `[N, D]`.
    """
    values = embeddings.double()
    mean = functional.normalize(values.mean(dim=1), dim=-1)
    return on_grid(mean), on_grid(functional.normalize(values, dim=-1).mean(dim=1))


@torch.no_grad()
def _embed_batch(
    model: VATT, tokenizer: Tokenizer | None, batch: Sequence[tuple[Item, ItemViews]]
) -> tuple[EmbeddingTable, EmbeddingTable]:
    """One row for each clip of a batch, by both averages."""
    video, video_mask = _embed_views(model, "video", [read.video for _, read in batch])
    audio, audio_mask = _embed_views(model, "audio", [read.audio for _, read in batch])
    text, text_mask = _embed_captions(model, tokenizer, [item.captions for item, _ in batch])
    tables = [
        EmbeddingTable(
            keys=tuple(item.key for item, _ in batch),
            video_va=_pick(video, "va", number),
            audio_va=_pick(audio, "va", number),
            video_vt=_pick(video, "vt", number),
            text_vt=text,
            video_mask=video_mask,
            audio_mask=audio_mask,
            text_mask=text_mask,
        )
        for number in range(len(AVERAGINGS))
    ]
    return tables[0], tables[1]


def _pick(spaces: dict[str, tuple[Tensor, Tensor]], space: str, number: int) -> Tensor | None:
    """The embedding in a space, or in the joint one, which stands for both."""
    pair = spaces.get(space, spaces.get("joint"))
    return None if pair is None else pair[number]


def _embed_views(
    model: VATT, modality: str, views: Sequence[Any]
) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor]:
    """Both averages in each space of a modality, zeros where a clip has none, and which have."""
    mask = torch.tensor([view is not None for view in views])
    if modality not in model.config.modalities or not mask.any():
        return {}, torch.zeros(len(views), dtype=torch.bool)
    device = next(model.parameters()).device
    present = [torch.from_numpy(view) for view in views if view is not None]
    embed = model.embed_video if modality == "video" else model.embed_audio
    embedded = embed(torch.cat(present).to(device))
    averages = {}
    for space, values in embedded.items():
        first, second = average_windows(values.cpu().unflatten(0, (len(present), -1)))
        averages[space] = _placed(first, mask), _placed(second, mask)
    return averages, mask


def _embed_captions(
    model: VATT, tokenizer: Tokenizer | None, captions: Sequence[tuple[str, ...]]
) -> tuple[Tensor | None, Tensor]:
    """Unit vectors of captions float64 `[N, K, D]`, and which are there, bool `[N, K]`."""
    most = max(1, *(len(texts) for texts in captions)) if captions else 1
    mask = torch.zeros(len(captions), most, dtype=torch.bool)
    if tokenizer is None or "text" not in model.config.modalities:
        return None, mask
    max_words = model.config.text.max_words
    ids = torch.zeros(len(captions), most, max_words, dtype=torch.int64)
    for row, texts in enumerate(captions):
        if texts:
            ids[row, : len(texts)] = tokenizer.encode(list(texts), max_words)
    mask = (ids != 0).any(dim=-1)
    if not mask.any():
        return None, mask
    embedded = model.embed_text(ids[mask].to(next(model.parameters()).device))
    values = embedded.get("vt", embedded.get("joint"))
    assert values is not None
    unit = on_grid(functional.normalize(values.cpu().double(), dim=-1))
    placed = torch.zeros(*mask.shape, unit.shape[-1], dtype=torch.float64)
    placed[mask] = unit
    return placed, mask


def _placed(rows: Tensor, mask: Tensor) -> Tensor:
    placed = rows.new_zeros(len(mask), rows.shape[1])
    placed[mask] = rows
    return placed


def evaluation_plan(
    model: VATT,
    *,
    num_windows: int = 4,
    num_crops: int = 1,
    frame_rate: float | None = None,
    stride: int = 2,
    modalities: Sequence[str] = ("video", "audio"),
) -> ViewPlan:
    """Plan of the views that a model reads in an evaluation.

    Args:
        model: Model whose clips have the sizes to read.
        num_windows: Windows of each clip.
        num_crops: Crops of each window, 1 or 3.
        frame_rate: Frames per second. None: the model's rate. The paper trains at 10 and evaluates
            at 12.5, every second frame of 25 [P, C].
        stride: Distance of the frames to read, in frames of the base rate.
        modalities: Modalities to read; those that the model lacks are left out.
    """
    config, wanted = model.config, set(modalities) & set(model.config.modalities)
    video = config.video if "video" in wanted else None
    if video is not None and frame_rate is not None:
        video = replace(video, frame_rate=frame_rate)
    return ViewPlan(
        video=video,
        audio=config.audio if "audio" in wanted else None,
        num_windows=num_windows,
        num_crops=num_crops,
        stride=stride,
    )
