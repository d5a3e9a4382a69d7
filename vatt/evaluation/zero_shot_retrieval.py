"""Zero-shot retrieval by the paper's protocol: several windows of each clip, averaged in two ways.

Source: paper section 4.4; google-research/vatt `utils/eval`, which reports both averages.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import compress, islice
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from vatt.config.spaces import DIRECTIONS
from vatt.encoders.encoder import Encoder
from vatt.errors import Fault, UserError
from vatt.evaluation.clip_views import ItemViews, ViewPlan, read_items
from vatt.evaluation.embedding_table import EmbeddingTable, concatenate, table_of
from vatt.evaluation.retrieval import on_grid, retrieval
from vatt.features.embedder import Embedder
from vatt.network.model import place_rows
from vatt.preprocess.windows import Geometry
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
    encoder: Encoder,
    items: Sequence[Item],
    plan: ViewPlan,
    *,
    modalities: Sequence[str] | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
) -> WindowedTables:
    """Embeds all windows of every clip; each rank of a process group reads its share.

    Rank `r` of `W` embeds the clips `r::W` only, so no clip is embedded twice. All ranks get the
    table of all clips in their order.

    Args:
        encoder: Model with common spaces.
        items: Clips with media and distinct keys.
        plan: Views of each clip.
        modalities: Modalities to embed. None: all of the model.
        batch_size: Clips per batch.
        num_workers: Processes that read.

    Raises:
        UserError: no two modalities have a common space, or no clip can be read.
    """
    spaces = _spaces(encoder, encoder.modalities if modalities is None else modalities)
    share = items[rank() :: world_size()]
    views = read_items(share, plan, num_workers=num_workers)
    pairs: list[tuple[EmbeddingTable, ...]] = []
    faults: list[Fault] = []
    clips = zip(share, views, strict=True)
    while batch := list(islice(clips, batch_size)):
        faults += [Fault(item.key, read.fault) for item, read in batch if read.fault]
        readable = [(item, read) for item, read in batch if not read.fault]
        if readable:
            pairs.append(_embed_batch(encoder, spaces, readable))
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


def _spaces(encoder: Encoder, modalities: Sequence[str]) -> dict[str, list[str]]:
    """Spaces by modality in which a table has columns.

    Raises:
        UserError: no two modalities have a common space.
    """
    shared = Embedder(encoder).shared_spaces
    pairs = (direction.split("_to_") for direction in DIRECTIONS)
    if not any(shared(*pair) for pair in pairs if {*pair} <= {*modalities}):
        raise UserError(
            "this model has no common spaces: retrieval needs two modalities that share one"
        )
    columns = {column.name for column in fields(EmbeddingTable)}
    return {
        name: [one for one in encoder.spaces(name) if one == "joint" or f"{name}_{one}" in columns]
        for name in modalities
    }


@torch.no_grad()
def _embed_batch(
    encoder: Encoder, spaces: Mapping[str, Sequence[str]], batch: Sequence[tuple[Item, ItemViews]]
) -> tuple[EmbeddingTable, ...]:
    """One row per clip of a batch, by both averages; zeros if a clip lacks the modality."""
    pairs: dict[str, tuple[Tensor, ...]] = {}
    masks: dict[str, Tensor] = {}
    for modality in ("video", "audio"):
        views = [getattr(read, modality) for _, read in batch]
        present = [torch.from_numpy(view) for view in views if view is not None]
        masks[modality] = mask = torch.tensor([view is not None for view in views])
        if not present:
            continue
        windows = [window for view in present for window in view]
        for space, rows in encoder.encode(modality, windows, spaces[modality]).items():
            averages = average_windows(rows.cpu().unflatten(0, (len(present), -1)))
            pairs[f"{modality}_{space}"] = tuple(place_rows(rows, mask) for rows in averages)
    if "text" in spaces:
        captions = [item.captions for item, _ in batch]
        texts = [caption for of_clip in captions for caption in of_clip]
        known = torch.tensor([encoder.count_tokens(text) > 0 for text in texts], dtype=torch.bool)
        parts = known.split([len(of_clip) for of_clip in captions])
        masks["text"] = mask = pad_sequence(list(parts), batch_first=True)
        texts = list(compress(texts, known))
        vectors = encoder.encode("text", texts, spaces["text"]) if texts else {}
        for space, rows in vectors.items():
            unit = on_grid(functional.normalize(rows.cpu().double(), dim=-1))
            pairs[f"text_{space}"] = (place_rows(unit, mask),) * len(AVERAGINGS)
    keys = tuple(item.key for item, _ in batch)
    return tuple(
        table_of(keys, {name: pair[number] for name, pair in pairs.items()}, masks)
        for number in range(len(AVERAGINGS))
    )


def evaluation_plan(
    geometry: Geometry,
    *,
    num_windows: int = 4,
    frame_rate: float | None = None,
    modalities: Sequence[str] = ("video", "audio"),
) -> ViewPlan:
    """Plan of the views that a model reads in an evaluation.

    Args:
        geometry: Sizes of the model's windows: an encoder, or a VATT's configuration.
        num_windows: Windows of each clip.
        frame_rate: Frames per second. None: the model's rate. The paper trains at 10 and evaluates
            at 12.5, every second frame of 25 [P, C].
        modalities: Modalities to read; those that the model lacks are left out.
    """
    wanted = set(modalities) & set(geometry.media_modalities)
    video = geometry.video if "video" in wanted else None
    if video is not None and frame_rate is not None:
        video = replace(video, frame_rate=frame_rate)
    audio = geometry.audio if "audio" in wanted else None
    return ViewPlan(video=video, audio=audio, num_windows=num_windows)
