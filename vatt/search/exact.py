"""Exact search: the rows of a matrix that are nearest to a vector.

Products are first taken in float32, whose rounding depends on how rows are grouped; all rows that
could be among the best are then scored again in float64, one by one. So scores, order and ties are
the same for any chunk size, any number of threads, and for a plain loop.
"""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 16_384  # 16 MiB of 256 floats: fewer are slower, more are not faster
Rows = NDArray[np.int64]
Scores = NDArray[np.float64]


def exact_scores(matrix: NDArray[np.float32], rows: Rows, query: NDArray[np.float32]) -> Scores:
    """Dot products of some rows with a vector.

    Args:
        matrix: float32 `[N, D]`, may be memory-mapped.
        rows: int64 `[n]`.
        query: float32 `[D]`.

    Returns:
        float64 `[n]`; the score of a row does not depend on the other rows.
    """
    scores = np.empty(len(rows), dtype=np.float64)
    wide = query.astype(np.float64)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        # summed row by row: a matrix product would group rows, and round by their number
        scores[part] = (matrix[rows[part]].astype(np.float64) * wide).sum(axis=1)
    return scores


def best_of(scores: Scores, rows: Rows, k: int) -> tuple[Scores, Rows]:
    """The `k` best rows, highest score first; ties go to the lower row."""
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def nearest_rows(
    matrix: NDArray[np.float32],
    queries: NDArray[np.float32],
    k: int,
    chunk_rows: int = CHUNK_ROWS,
) -> list[tuple[Scores, Rows]]:
    """The rows with the highest product with each query, in memory that does not grow with N.

    Args:
        matrix: float32 `[N, D]` of unit length, may be memory-mapped.
        queries: float32 `[Q, D]` of unit length.
        k: Number of rows; all if there are fewer.
        chunk_rows: Rows read at a time; no influence on the result.

    Returns:
        For each query float64 scores, the highest first, and int64 rows; ties by row.
    """
    nothing = (np.empty(0), np.empty(0, dtype=np.int64))
    best: list[tuple[Scores, Rows]] = [nothing for _ in queries]
    # |error| of a float32 product of D terms of unit vectors is at most D · 2⁻²⁴; twice that here
    error = matrix.shape[1] * 2.0**-23
    for start in range(0, len(matrix), chunk_rows):
        chunk = np.asarray(matrix[start : start + chunk_rows])
        rough = chunk @ queries.T
        for number, query in enumerate(queries):
            candidates = _candidates(rough[:, number], best[number][0], k, 2 * error)
            scores = exact_scores(chunk, candidates, query)
            old_scores, old_rows = best[number]
            best[number] = best_of(
                np.concatenate([old_scores, scores]),
                np.concatenate([old_rows, candidates + start]),
                k,
            )
        release(matrix)
    return best


def _candidates(rough: NDArray[np.float32], best: Scores, k: int, margin: float) -> Rows:
    """Rows of a chunk that could be among the best `k` of all."""
    least = best[k - 1] if len(best) >= k else -np.inf
    if len(rough) > k:
        least = max(least, float(np.partition(rough, len(rough) - k)[len(rough) - k]))
    return np.flatnonzero(rough >= least - margin)


def release(array: NDArray[Any]) -> None:
    """Releases the pages of a memory-mapped array; they remain in the system's cache."""
    mapped: mmap.mmap | None = getattr(array, "_mmap", None)  # numpy has no public name for it
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to unit length, float32; rows of zeros or NaN do not change."""
    norms = np.sqrt(np.square(vectors, dtype=np.float64).sum(axis=1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(norms > 0, vectors / norms, vectors).astype(np.float32)


def spread(count: int, total: int) -> Rows:
    """Sorted numbers below `total`, drawn without replacement, the same in each call."""
    drawn = np.random.default_rng(0).choice(total, size=min(count, total), replace=False)
    return np.sort(drawn).astype(np.int64)
