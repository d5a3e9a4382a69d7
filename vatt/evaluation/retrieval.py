"""Retrieval metrics: ranks, R@k, MedR, MeanR, and their size and confidence.

A rank is the position of the wanted candidate in descending order of scores, from 0. Shapes: `Q`
queries, `C` candidates, `D` width (the project's legend is in `vatt.batch`).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vatt.config.spaces import DIRECTIONS, Direction
from vatt.errors import UserError
from vatt.evaluation.embedding_table import EmbeddingTable

RECALL_AT = (1, 5, 10)
QUERIES_PER_CHUNK = 512  # 512 × 10,000 float32 scores = 20 MB
NORMAL_975 = 1.959964  # 97.5 % quantile of the normal distribution, for intervals of 95 %
GRID = 2.0**-25  # finer than the digits that float32 has near 1 / √D


def retrieval_ranks(scores: Tensor, target: Tensor) -> Tensor:
    """Rank of the wanted candidate among all, 0 = best.

    Each candidate that ties with the wanted one counts half, which is the mean over all orders of
    the tied ones. A model that gives every candidate the same score therefore ranks in the middle.
    A NaN score is worse than any number. If the wanted candidate scores NaN, the rank is infinite,
    so it is no hit at any k.

    Args:
        scores: float `[Q, C]`, higher is better.
        target: int64 `[Q]`, index of the wanted candidate, in [0, C).

    Returns:
        float64 `[Q]`: multiples of one half in [0, C − 1], or infinity.

    Raises:
        ValueError: shapes do not fit.
    """
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(
            "scores must be [Q, C] and target [Q], "
            f"got {tuple(scores.shape)}, {tuple(target.shape)}"
        )
    wanted = scores.gather(1, target[:, None])
    above = (scores > wanted).sum(dim=1)
    tied = (scores == wanted).sum(dim=1) - 1  # the wanted one ties with itself
    ranks = above.double() + 0.5 * tied.double()
    return ranks.masked_fill(wanted[:, 0].isnan(), torch.inf)


def on_grid(x: Tensor) -> Tensor:
    """Rounds embeddings so that their dot products are exact in any order of summation.

    Values become multiples of 2^-25. For vectors of length at most 1, every product is then a
    multiple of 2^-50 and every partial sum is at most 1, so float64 needs no rounding. Equal
    candidates therefore tie exactly, and ranks do not depend on chunks, threads or processes.

    Args:
        x: float of any shape; vectors along the last axis have length at most 1.

    Returns:
        float64 of the same shape; values differ from `x` by at most 2^-26.
    """
    return (x.double() / GRID).round() * GRID


def embedding_ranks(
    queries: Tensor,
    candidates: Tensor,
    target: Tensor,
    queries_per_chunk: int = QUERIES_PER_CHUNK,
) -> Tensor:
    """Ranks by dot product, computed in chunks of queries to save memory.

    Args:
        queries: float `[Q, D]`.
        candidates: float `[C, D]`.
        target: int64 `[Q]`, index of the wanted candidate, in [0, C).
        queries_per_chunk: Number of queries whose scores are in memory at a time.

    Returns:
        float64 `[Q]`, see `retrieval_ranks`.
    """
    chunks = zip(queries.split(queries_per_chunk), target.split(queries_per_chunk), strict=True)
    ranks = [retrieval_ranks(rows @ candidates.T, wanted) for rows, wanted in chunks]
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.float64)


def retrieval_metrics(ranks: Tensor) -> dict[str, float]:
    """R@1, R@5 and R@10 in percent; MedR and MeanR, median and mean of the ranks counted from 1.

    R@k counts ranks of at most k − 1, so a tie at the limit of the k best is no hit.

    Args:
        ranks: float `[Q]`, counted from 0.

    Raises:
        UserError: there are no ranks.
    """
    if ranks.numel() == 0:
        raise UserError("no query to take metrics over")
    values = ranks.detach().cpu().double().numpy()
    recalls = {f"R@{k}": 100.0 * float(np.mean(values <= k - 1)) for k in RECALL_AT}
    ranks_from_1 = {"MedR": float(np.median(values)) + 1.0, "MeanR": float(np.mean(values)) + 1.0}
    return {**recalls, **ranks_from_1}


def recall_interval(hits: float, queries: int, clips: int | None = None) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a recall such as R@1, in percent.

    With p = hits / queries, n independent trials and z = 1.96, its ends are
    `(p + z²/2n ± z √(p (1 − p)/n + z²/4n²)) / (1 + z²/n)`. Unlike p ± z √(p (1 − p)/n), it stays
    within 0 and 100 and has a width where no query or every query is a hit.

    Args:
        hits: Number of queries whose match is among the k best: R@k / 100 × queries.
        queries: Number of queries, at least 1.
        clips: Number of clips that the queries are about, which is n. Several captions of a clip
            are not independent, and the interval would be too narrow if each counted. None: one
            query per clip.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927), 209–212.

    Example:
        >>> low, high = recall_interval(hits=1, queries=4)  # R@1 25
        >>> f"{low:.1f} to {high:.1f}"
        '4.6 to 69.9'
    """
    n, z = queries if clips is None else clips, NORMAL_975
    if not (n > 0 and 0 <= hits <= queries):
        raise ValueError(f"{hits} hits of {queries} queries about {n} clips have no recall")
    p = hits / queries
    centre = p + z * z / (2 * n)
    margin = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (100 * (centre + m) / (1 + z * z / n) for m in (-margin, margin))
    return max(low, 0.0), min(high, 100.0)


@dataclass(frozen=True)
class Search:
    """Queries of one direction with the candidates of one gallery.

    Args:
        direction: Modalities of queries and candidates.
        queries: float `[Q, D]`.
        candidates: float `[C, D]`.
        target: int64 `[Q]`, index of each query's wanted candidate.
        query_numbers: int64 `[Q]`, number of each query among all of the direction, which may be
            asked in several galleries.
        query_rows: int64 `[Q]`, row of each query in the table.
        candidate_rows: int64 `[C]`, row of each candidate in the table.
    """

    direction: Direction
    queries: Tensor
    candidates: Tensor
    target: Tensor
    query_numbers: Tensor
    query_rows: Tensor
    candidate_rows: Tensor


def retrieval(table: EmbeddingTable) -> dict[str, dict[str, float]]:
    """Metrics of every direction; the only match of a clip is the clip itself.

    From text, every caption is a query. To text, the candidates are one caption per clip; this is
    repeated for each caption slot, and the metrics are averaged over the slots. A clip is a query
    if it has both modalities of the direction, and a candidate if it has the candidate's modality.

    Returns:
        `{direction: {"R@1": percent, …}}`, see `metrics_by_direction`, without directions that have
        no query or whose modalities share no space.
    """
    rows = torch.arange(len(table))
    return metrics_by_direction(searches(table, labels=rows, galleries=[rows]))


def metrics_by_direction(all_searches: Iterable[Search]) -> dict[str, dict[str, float]]:
    """Metrics of each direction over all its searches, and their size.

    Returns:
        `retrieval_metrics` by direction, and `num_queries`, which counts each query once, and
        `num_candidates`. If galleries differ in size, the latter is their harmonic mean over the
        queries, so that guessing has an R@1 of 100 / `num_candidates` percent.
    """
    parts: dict[str, list[tuple[Tensor, Tensor, float]]] = {}
    for search in all_searches:
        ranks = embedding_ranks(search.queries, search.candidates, search.target)
        guessed = len(ranks) / len(search.candidates)  # expected number of hits
        parts.setdefault(search.direction, []).append((ranks, search.query_numbers, guessed))
    metrics: dict[str, dict[str, float]] = {}
    for direction in DIRECTIONS:
        if direction in parts:
            all_ranks, numbers, hits = zip(*parts[direction], strict=True)
            ranks = torch.cat(all_ranks)
            metrics[direction] = {
                **retrieval_metrics(ranks),
                "num_queries": float(len(torch.cat(numbers).unique())),
                "num_candidates": round(len(ranks) / sum(hits), 6),
            }
    return metrics


def searches(
    table: EmbeddingTable, labels: Tensor, galleries: Sequence[Tensor]
) -> Iterator[Search]:
    """All searches of all directions.

    Args:
        table: Embeddings of `N` clips.
        labels: int64 `[N]`; the match of a query is the candidate with the same label.
        galleries: Rows of the table that are searched together.
    """
    for direction in DIRECTIONS:
        asked, sought = direction.split("_to_")
        if (vectors := table.shared(asked, sought)) is None:
            continue
        queries, candidates = vectors
        present = getattr(table, f"{asked}_mask").nonzero(as_tuple=True)  # rows, for text slots too
        columns = [(candidates, getattr(table, f"{sought}_mask"))]
        if sought == "text":  # one caption per clip at a time
            columns = [*zip(candidates.unbind(1), table.text_mask.unbind(1), strict=True)]
        yield from _search(direction, queries[present], present[0], columns, labels, galleries)


def _search(
    direction: Direction,
    queries: Tensor,
    query_rows: Tensor,
    columns: Sequence[tuple[Tensor, Tensor]],
    labels: Tensor,
    galleries: Sequence[Tensor],
) -> Iterator[Search]:
    """Yields the searches in each gallery of each column, `[N, D]` with its mask.

    Queries that have no match are left out.
    """
    for gallery in galleries:
        for column, mask in columns:
            shown = gallery[mask[gallery]]
            place = torch.full((int(labels.max()) + 1,), -1)
            place[labels[shown]] = torch.arange(len(shown))
            target = place[labels[query_rows]]
            keep = target >= 0
            if keep.any():
                yield Search(
                    direction=direction,
                    queries=queries[keep],
                    candidates=column[shown],
                    target=target[keep],
                    query_numbers=keep.nonzero()[:, 0],
                    query_rows=query_rows[keep],
                    candidate_rows=shown,
                )
