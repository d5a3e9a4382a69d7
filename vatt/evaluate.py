"""Zero-shot retrieval: embeddings of a whole set, and the metrics of the four directions.

Shapes: `N` clips of the set, `K` captions of a clip, `D` width (the project's legend is in
`vatt.batch`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations as subsets
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vatt.batch import Batch
from vatt.errors import UserError
from vatt.metrics import embedding_ranks, retrieval_metrics, top_candidates

Direction = Literal["text_to_video", "video_to_text", "audio_to_video", "video_to_audio"]
DIRECTIONS: tuple[Direction, ...] = (
    "text_to_video",
    "video_to_text",
    "audio_to_video",
    "video_to_audio",
)
ATTRIBUTES = ("shape", "colour", "motion")  # of the demo corpus, in the order of a combination
AUDIBLE_ATTRIBUTES = ("shape", "motion")  # timbre and melody; colour makes no sound


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


@dataclass(frozen=True)
class _Search:
    """Queries of one direction against one gallery; `*_rows` are rows of the table."""

    direction: Direction
    queries: Tensor
    candidates: Tensor
    target: Tensor
    query_rows: Tensor
    candidate_rows: Tensor


def retrieval(table: EmbeddingTable) -> dict[str, dict[str, float]]:
    """R@1, R@5, R@10 and MedR of every direction, where each clip is its own only answer.

    Every caption is a query of text→video. In video→text the candidates are one caption per clip,
    once for each caption slot, and the metrics are averages over the slots. A clip takes part in
    a direction if it has both modalities as query, and if it has the candidate's as candidate.

    Returns:
        `{direction: {"R@1": percent, …}}`, without the directions that have no query.
    """
    rows = torch.arange(len(table))
    return _metrics(_searches(table, labels=rows, galleries=[rows]))


def demo_retrieval(
    table: EmbeddingTable,
    combinations: Sequence[tuple[str, ...]],
    renderings: Sequence[int],
    attributes: Sequence[str] = ATTRIBUTES,
    audible: Sequence[str] = AUDIBLE_ATTRIBUTES,
) -> dict[str, dict[str, float]]:
    """Retrieval on the demo corpus, averaged over captions and renderings.

    A gallery is one rendering of every combination. Every caption, sound and video of every
    rendering is searched in every gallery (of captions: one slot of one rendering). The answer is
    the clip of the same combination, whoever rendered it: what a sound and its own picture share
    beyond the combination (speed, phase) helps in one gallery of several only.

    Args:
        table: Embeddings of the validation set.
        combinations: The attribute values of each row of the table.
        renderings: Number of the rendering of each row.
        attributes: Names of a combination's parts.
        audible: Those of them that sound can tell.

    Returns:
        As `retrieval`; the directions from and to sound also have `ceiling`, the R@1 in percent of
        an oracle that knows the audible attributes exactly and guesses among what fits.

    Raises:
        ValueError: a rendering that lacks a combination or has one twice.
    """
    metrics = _metrics(_demo_searches(table, combinations, renderings))
    ceiling = attribute_oracle(combinations, [list(attributes).index(name) for name in audible])
    for direction in metrics.keys() & {"audio_to_video", "video_to_audio"}:
        metrics[direction]["ceiling"] = ceiling
    return metrics


def attribute_oracle(combinations: Iterable[tuple[str, ...]], known: Sequence[int]) -> float:
    """Expected R@1 in percent of an oracle that knows some attributes and guesses the others.

    Args:
        combinations: Attribute values; repeated ones count once.
        known: Positions of the attributes that the oracle knows.
    """
    distinct = set(combinations)
    # n candidates that look alike: each is found with probability 1/n, together once
    return 100.0 * len({tuple(c[i] for i in known) for c in distinct}) / len(distinct)


def two_attribute_oracles(
    combinations: Iterable[tuple[str, ...]], attributes: Sequence[str] = ATTRIBUTES
) -> dict[str, float]:
    """`attribute_oracle` of every pair of attributes: `{"shape+colour": percent, …}`."""
    distinct = set(combinations)
    pairs = subsets(range(len(attributes)), 2)
    return {"+".join(attributes[i] for i in p): attribute_oracle(distinct, p) for p in pairs}


@dataclass(frozen=True)
class AttributeConfusion:
    """How often each value of an attribute was answered by each value.

    Args:
        values: The attribute's values, sorted.
        counts: int64 `[values, values]`: rows are what was asked, columns the best candidate's.
    """

    values: tuple[str, ...]
    counts: Tensor

    @property
    def accuracy(self) -> float:
        """Percent of queries whose best candidate has the attribute right."""
        return 100.0 * float(self.counts.diagonal().sum()) / max(int(self.counts.sum()), 1)


def demo_confusions(
    table: EmbeddingTable,
    combinations: Sequence[tuple[str, ...]],
    renderings: Sequence[int],
    attributes: Sequence[str] = ATTRIBUTES,
) -> dict[str, dict[str, AttributeConfusion]]:
    """What the best candidate has right and wrong: `{direction: {attribute: confusion}}`.

    Args:
        table: Embeddings of the validation set.
        combinations: The attribute values of each row of the table.
        renderings: Number of the rendering of each row.
        attributes: Names of a combination's parts.
    """
    values = [sorted({c[i] for c in combinations}) for i in range(len(attributes))]
    codes = torch.tensor(
        [[v.index(x) for v, x in zip(values, c, strict=True)] for c in combinations]
    )
    counts: dict[str, list[Tensor]] = {}
    for search in _demo_searches(table, combinations, renderings):
        _, best = top_candidates(search.queries, search.candidates, k=1)
        asked, answered = codes[search.query_rows], codes[search.candidate_rows[best[:, 0]]]
        zeros = [torch.zeros(len(v), len(v), dtype=torch.int64) for v in values]
        for i, table_VV in enumerate(counts.setdefault(search.direction, zeros)):
            index = (asked[:, i], answered[:, i])
            table_VV.index_put_(index, torch.ones_like(index[0]), accumulate=True)
    return {
        direction: {
            name: AttributeConfusion(tuple(v), table_VV)
            for name, v, table_VV in zip(attributes, values, tables, strict=True)
        }
        for direction, tables in counts.items()
    }


def _metrics(searches: Iterable[_Search]) -> dict[str, dict[str, float]]:
    ranks: dict[str, list[Tensor]] = {}
    for search in searches:
        found = embedding_ranks(search.queries, search.candidates, search.target)
        ranks.setdefault(search.direction, []).append(found)
    return {
        direction: retrieval_metrics(torch.cat(ranks[direction]))
        for direction in DIRECTIONS
        if direction in ranks
    }


def _demo_searches(
    table: EmbeddingTable, combinations: Sequence[tuple[str, ...]], renderings: Sequence[int]
) -> Iterator[_Search]:
    if not len(table) == len(combinations) == len(renderings):
        raise ValueError(
            f"{len(table)} clips need as many combinations and renderings, "
            f"got {len(combinations)} and {len(renderings)}"
        )
    numbers = {c: i for i, c in enumerate(sorted(set(combinations)))}
    labels = torch.tensor([numbers[c] for c in combinations])
    rendering = torch.tensor(list(renderings))
    galleries = []
    for number in rendering.unique():
        rows = (rendering == number).nonzero()[:, 0]
        if len(rows) != len(numbers) or len(labels[rows].unique()) != len(numbers):
            raise ValueError(
                f"rendering {int(number)} must hold each of the {len(numbers)} combinations once, "
                f"it has {len(rows)} clips of {len(labels[rows].unique())} combinations"
            )
        galleries.append(rows)
    yield from _searches(table, labels, galleries)


def _searches(
    table: EmbeddingTable, labels: Tensor, galleries: Sequence[Tensor]
) -> Iterator[_Search]:
    """Every search of every direction; `labels` `[N]` say which rows answer each other."""
    if table.video_vt is not None and table.text_vt is not None:
        videos = table.video_mask.nonzero()[:, 0]
        captions, slots = table.text_mask.nonzero(as_tuple=True)
        queries = table.text_vt[captions, slots]
        for gallery in galleries:
            shown = gallery[table.video_mask[gallery]]
            candidates = table.video_vt[shown]
            yield from _search("text_to_video", queries, captions, candidates, shown, labels)
            for slot in range(table.text_mask.shape[1]):
                written = gallery[table.text_mask[gallery, slot]]
                candidates = table.text_vt[written, slot]
                queries_v = table.video_vt[videos]
                yield from _search("video_to_text", queries_v, videos, candidates, written, labels)
    if table.video_va is not None and table.audio_va is not None:
        videos, sounds = table.video_mask.nonzero()[:, 0], table.audio_mask.nonzero()[:, 0]
        seen, heard = table.video_va[videos], table.audio_va[sounds]
        for gallery in galleries:
            shown = gallery[table.video_mask[gallery]]
            played = gallery[table.audio_mask[gallery]]
            yield from _search(
                "audio_to_video", heard, sounds, table.video_va[shown], shown, labels
            )
            yield from _search(
                "video_to_audio", seen, videos, table.audio_va[played], played, labels
            )


def _search(
    direction: Direction,
    queries: Tensor,
    query_rows: Tensor,
    candidates: Tensor,
    candidate_rows: Tensor,
    labels: Tensor,
) -> Iterator[_Search]:
    """The search without the queries that have no answer among the candidates, if any is left."""
    place = torch.full((int(labels.max()) + 1,), -1)
    place[labels[candidate_rows]] = torch.arange(len(candidate_rows))
    target = place[labels[query_rows]]
    keep = target >= 0
    if keep.any():
        yield _Search(
            direction, queries[keep], candidates, target[keep], query_rows[keep], candidate_rows
        )
