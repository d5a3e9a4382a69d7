"""Approximate search with faiss: choice of the index, its construction and its recall.

Vectors are grouped around centres, and a search covers the groups with the nearest centres. Groups
store one byte per number. Rows found there are scored again with the exact vectors. Rows can
therefore be missing, but scores and their order are those of exact search.
"""

import contextlib
import math
from collections.abc import Iterator
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
from vatt.system.extras import load_extra

MOST_EXACT_ROWS = 1_000_000  # more are searched approximately, where faiss is installed
RECALL_AT = 10
NUM_QUERIES = 200  # rows held out of training to measure recall
GOAL = 0.98  # recall@10 on them; the number of groups searched is raised until it is reached
ROWS_PER_CENTRE = 40  # for training; faiss warns below 39, and more gain little
FIND_MORE = 4  # candidates scored exactly, per row asked for


def load_faiss() -> ModuleType:
    """Imports the optional package faiss, or raises a UserError."""
    need = 'approximate search needs faiss: pip install "vatt[search]"'
    return load_extra("faiss", UserError(need, 2))


def num_centres(rows: int) -> int:
    """Number of groups: about 4 √rows, a power of two, each with enough rows to train on."""
    wanted = 2 ** round(math.log2(4 * math.sqrt(rows)))
    most = max(1, (rows - NUM_QUERIES) // ROWS_PER_CENTRE)
    return min(wanted, 2 ** int(math.log2(most)))


def build_approximate(matrix: NDArray[np.float32], path: Path) -> dict[str, Any]:
    """Trains, fills, measures and writes an index.

    Args:
        matrix: Unit vectors, float32 `[N, D]`, memory-mapped; N at least 1.
        path: File to write.

    Returns:
        `kind` of the index as faiss names it, number of `groups` to search, `recall@10` against
        exact search for held-out rows, and their number, `queries`.
    """
    faiss = load_faiss()
    rows, width = matrix.shape
    centres = num_centres(rows)
    kind = f"IVF{centres},SQ8"
    index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    held_out = spread(NUM_QUERIES, rows)
    sample = np.setdiff1d(spread(centres * ROWS_PER_CENTRE + NUM_QUERIES, rows), held_out)
    index.train(_gather(matrix, sample if len(sample) >= centres else np.arange(rows)))
    for start in range(0, rows, CHUNK_ROWS):
        index.add(np.ascontiguousarray(matrix[start : start + CHUNK_ROWS]))
        release(matrix)
    groups, recall = _choose_groups(index, matrix, held_out, centres)
    faiss.write_index(index, str(path))
    recalls = {f"recall@{RECALL_AT}": round(recall, 4)}
    return {"kind": kind, "groups": groups, **recalls, "queries": len(held_out)}


def _gather(matrix: NDArray[np.float32], rows: Rows) -> NDArray[np.float32]:
    """Copies some rows part by part, so that little of the file is mapped at a time."""
    copied = np.empty((len(rows), matrix.shape[1]), dtype=np.float32)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        copied[part] = matrix[rows[part]]
        release(matrix)
    return copied


def _choose_groups(
    index: Any, matrix: NDArray[np.float32], held_out: Rows, centres: int
) -> tuple[int, float]:
    """The fewest groups that reach the goal, or all; and their recall."""
    queries = np.ascontiguousarray(matrix[held_out])
    truth = [rows for _, rows in nearest_rows(matrix, queries, RECALL_AT + 1)]
    groups = 1
    while True:
        answers = [
            approximate_rows(index, matrix, query, RECALL_AT + 1, groups)[1] for query in queries
        ]
        recall = mean_recall(truth, answers, held_out)
        if recall >= GOAL or groups >= centres:
            return groups, recall
        groups = min(2 * groups, centres)


def mean_recall(truth: list[Rows], answers: list[Rows], queries: Rows) -> float:
    """Mean share, in [0, 1], of the true nearest rows that an approximate search finds.

    The row of the query itself does not count.

    Args:
        truth: The `RECALL_AT + 1` nearest rows of each query by exact search.
        answers: Nearest rows of each query by approximate search.
        queries: Row of each query.
    """
    shares = []
    for nearest, answer, query in zip(truth, answers, queries.tolist(), strict=True):
        wanted = [row for row in nearest.tolist() if row != query][:RECALL_AT]
        if wanted:
            shares.append(len(set(wanted) & set(answer.tolist())) / len(wanted))
    return float(np.mean(shares)) if shares else 1.0


def open_approximate(path: Path, matrix: NDArray[np.float32]) -> Any:
    """Opens an index of `build_approximate`; its groups stay on disk until they are searched.

    Args:
        path: The file.
        matrix: The vectors that it was built from, `[N, D]`.

    Raises:
        UserError: the index is damaged, or faiss is missing.
    """
    faiss = load_faiss()
    try:
        with _vectors_within(faiss, path.stat().st_size):
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
        if (index.ntotal, index.d) != matrix.shape:
            raise RuntimeError(f"is of {index.ntotal} rows of {index.d}")
        return index
    except (RuntimeError, OSError, MemoryError) as error:
        raise UserError(f"{path} is missing or damaged: make the index anew", 2) from error


@contextlib.contextmanager
def _vectors_within(faiss: ModuleType, most_bytes: int) -> Iterator[None]:
    """Context in which faiss refuses a list that claims more bytes than its file has."""
    if not hasattr(faiss, "set_deserialization_vector_byte_limit"):  # before faiss 1.15
        yield
        return
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(most_bytes)
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before)


def approximate_rows(
    index: Any, matrix: NDArray[np.float32], query: NDArray[np.float32], k: int, groups: int
) -> tuple[Scores, Rows]:
    """Rows near a query, with their exact scores; fewer than `k` if the groups contain fewer.

    Args:
        index: Index of faiss.
        matrix: Unit vectors, float32 `[N, D]`.
        query: Unit vector, float32 `[D]`.
        k: Number of rows.
        groups: Number of groups to search.
    """
    index.nprobe = groups
    _, candidates = index.search(query[None], min(FIND_MORE * k, len(matrix)))
    found = (candidates[0] >= 0) & (candidates[0] < len(matrix))
    rows = np.sort(candidates[0][found]).astype(np.int64)
    return best_of(exact_scores(matrix, rows, query), rows, k)
