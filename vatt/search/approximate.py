"""Approximate search with faiss: which index, how it is made, and how much of the truth it finds.

Vectors are grouped around centres; a search looks into the groups whose centres are nearest. The
groups keep one byte a number. What they find is scored again by the exact vectors, so that only
rows can be missing: scores and their order are those of exact search.
"""

import math
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vatt.errors import UserError
from vatt.search.exact import (
    CHUNK_ROWS,
    Rows,
    Scores,
    best_of,
    exact_scores,
    nearest_rows,
    release,
    spread,
)

MOST_EXACT_ROWS = 1_000_000  # more are searched approximately, where faiss is installed
RECALL_AT = 10
NUM_QUERIES = 200  # held out, to measure with
GOAL = 0.98  # recall@10 on them: as many groups are looked into as it takes
ROWS_A_CENTRE = 40  # to train with; faiss warns below 39, and more gain little
FIND_MORE = 4  # times the rows asked for, to be scored exactly


def load_faiss() -> ModuleType:
    """The optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise UserError('approximate search needs faiss: pip install "vatt[search]"', 2) from error


def num_centres(rows: int) -> int:
    """Groups for so many rows: about 4 √rows, a power of two, each with enough to train from."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(rows)))
    most = max(1, (rows - NUM_QUERIES) // ROWS_A_CENTRE)  # without those that are held out
    return min(wanted, 2 ** int(math.log2(most)))


def build_approximate(matrix: NDArray[np.float32], path: Path) -> dict[str, Any]:
    """Trains, fills, measures and writes an index.

    Args:
        matrix: float32 `[N, D]` of unit length, memory-mapped; N at least 1.
        path: File to write.

    Returns:
        `kind` of the index in faiss's language, `groups` looked into, `recall@10` against exact
        search for held-out rows, and how many `queries` those were.
    """
    faiss = load_faiss()
    rows, width = matrix.shape
    centres = num_centres(rows)
    kind = f"IVF{centres},SQ8"
    index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    held_out = spread(NUM_QUERIES, rows)
    sample = np.setdiff1d(spread(centres * ROWS_A_CENTRE + NUM_QUERIES, rows), held_out)
    index.train(_gather(matrix, sample if len(sample) >= centres else np.arange(rows)))
    for start in range(0, rows, CHUNK_ROWS):
        index.add(np.ascontiguousarray(matrix[start : start + CHUNK_ROWS]))
        release(matrix)
    measured = _choose_groups(index, matrix, held_out, centres)
    faiss.write_index(index, str(path))
    return {"kind": kind, **measured, "queries": len(held_out)}


def _gather(matrix: NDArray[np.float32], rows: Rows) -> NDArray[np.float32]:
    """Some rows, copied part by part: else as good as the whole file would be mapped at once."""
    copied = np.empty((len(rows), matrix.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        copied[part] = matrix[rows[part]]
        release(matrix)
    return copied


def _choose_groups(
    index: Any, matrix: NDArray[np.float32], held_out: Rows, centres: int
) -> dict[str, Any]:
    """As few groups as reach the goal, or all."""
    queries = np.ascontiguousarray(matrix[held_out])
    truth = [rows for _, rows in nearest_rows(matrix, queries, RECALL_AT + 1)]
    groups = 1
    while True:
        index.nprobe = groups
        found = [
            approximate_rows(index, matrix, query, RECALL_AT + 1, groups)[1] for query in queries
        ]
        recall = mean_recall(truth, found, held_out)
        if recall >= GOAL or groups >= centres:
            return {"groups": groups, f"recall@{RECALL_AT}": round(recall, 4)}
        groups = min(2 * groups, centres)


def mean_recall(truth: list[Rows], found: list[Rows], queries: Rows) -> float:
    """Share of the true nearest rows that were found; a row that asks does not count as an answer.

    Args:
        truth: Of each query, the nearest rows by exact search, one more than counts.
        found: The same by another search.
        queries: Rows that asked.
    """
    shares = []
    for true, got, own in zip(truth, found, queries.tolist(), strict=True):
        wanted = [row for row in true.tolist() if row != own][:RECALL_AT]
        if wanted:
            shares.append(len(set(wanted) & set(got.tolist())) / len(wanted))
    return float(np.mean(shares)) if shares else 1.0


def open_approximate(path: Path, described: Mapping[str, Any]) -> Any:
    """An index of `build_approximate`; its groups stay on disk until they are looked into.

    Raises:
        UserError: it is damaged, or faiss is missing.
    """
    faiss = load_faiss()
    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise UserError(f"{path} is missing or damaged: make the index anew", 2) from error
    index.nprobe = described["groups"]
    return index


def approximate_rows(
    index: Any, matrix: NDArray[np.float32], query: NDArray[np.float32], k: int, groups: int
) -> tuple[Scores, Rows]:
    """Rows near a query, with their exact scores; fewer than `k` where the groups hold no more.

    Args:
        index: Of faiss.
        matrix: float32 `[N, D]` of unit length.
        query: float32 `[D]` of unit length.
        k: How many.
        groups: To look into.
    """
    index.nprobe = groups
    _, found = index.search(query[None], min(FIND_MORE * k, len(matrix)))
    rows = np.sort(found[0][found[0] >= 0]).astype(np.int64)
    return best_of(exact_scores(matrix, rows, query), rows, k)
