"""Exact search is a plain loop, whatever it is cut into; approximate search is measured by it."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vatt.errors import UserError
from vatt.search.approximate import (
    approximate_rows,
    build_approximate,
    mean_recall,
    num_centres,
    open_approximate,
)
from vatt.search.exact import exact_scores, nearest_rows, unit_rows


def matrix_with_ties(rows: int, width: int, seed: int) -> np.ndarray:
    """Unit rows, of which many are equal and others differ in the last bit."""
    rng = np.random.default_rng(seed)
    distinct = unit_rows(rng.standard_normal((max(1, rows // 3), width)).astype(np.float32))
    made = distinct[rng.integers(len(distinct), size=rows)]
    made[::7, 0] = np.nextafter(made[::7, 0], np.float32(2))
    return made


def by_loop(matrix: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    """Rows by their products in float64; ties by row."""
    scores = [float((row.astype(float) * query.astype(float)).sum()) for row in matrix]
    return sorted(range(len(matrix)), key=lambda row: (-scores[row], row))[:k]


@settings(max_examples=60, deadline=None)
@example(rows=8, k=1, chunk_rows=1, seed=139_416)  # rows that differ by less than 1e-13
@given(
    rows=st.integers(1, 60),
    k=st.integers(1, 70),
    chunk_rows=st.integers(1, 64),
    seed=st.integers(0, 10**6),
)
def test_exact_search_is_a_plain_loop_with_ties_by_row(
    rows: int, k: int, chunk_rows: int, seed: int
) -> None:
    matrix = matrix_with_ties(rows, 8, seed)
    queries = unit_rows(np.random.default_rng(seed).standard_normal((2, 8)).astype(np.float32))
    for query, (scores, found) in zip(
        queries, nearest_rows(matrix, queries, k, chunk_rows), strict=True
    ):
        assert found.tolist() == by_loop(matrix, query, k)
        assert scores.tolist() == exact_scores(matrix, found, query).tolist()
        true = [math.fsum((matrix[row].astype(float) * query).tolist()) for row in found]
        assert scores == pytest.approx(true, abs=1e-15)


@pytest.mark.parametrize("width", [3, 64, 301])
def test_the_size_of_a_chunk_changes_not_a_bit(width: int) -> None:
    matrix = matrix_with_ties(1000, width, 1)
    query = unit_rows(np.random.default_rng(2).standard_normal((1, width)).astype(np.float32))
    scores, rows = nearest_rows(matrix, query, 200)[0]
    for chunk_rows in (1, 7, 199, 200, 201, 999, 1000, 4096):
        again = nearest_rows(matrix, query, 200, chunk_rows)[0]
        assert np.array_equal(again[0], scores)
        assert np.array_equal(again[1], rows)


def test_equal_rows_on_both_sides_of_a_chunks_border_come_in_their_order() -> None:
    matrix = np.tile(unit_rows(np.ones((1, 5), dtype=np.float32)), (20, 1))
    scores, rows = nearest_rows(matrix, matrix[:1], 12, chunk_rows=8)[0]
    assert rows.tolist() == list(range(12))
    assert len(set(scores.tolist())) == 1


def test_rows_get_unit_length_and_nothing_stays_nothing() -> None:
    made = unit_rows(np.array([[3, 4], [0, 0], [np.nan, 1]], dtype=np.float32))
    assert made[0].tolist() == [np.float32(0.6), np.float32(0.8)]
    assert made[1].tolist() == [0, 0]
    assert np.isnan(made[2]).any()


@pytest.fixture(scope="module")
def clustered() -> np.ndarray:
    rng = np.random.default_rng(3)
    centres = rng.standard_normal((150, 32))
    points = centres[rng.integers(150, size=6000)] + 0.5 * rng.standard_normal((6000, 32))
    return unit_rows(points.astype(np.float32))


def test_faiss_finds_nearly_all_and_scores_them_exactly(
    clustered: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.faiss"
    said = build_approximate(clustered, path)
    assert said["kind"] == f"IVF{num_centres(6000)},SQ8"
    assert said["recall@10"] >= 0.98
    assert said["groups"] < num_centres(6000)
    index = open_approximate(path, clustered)
    queries = clustered[:50]
    truth = nearest_rows(clustered, queries, 11)
    found = [approximate_rows(index, clustered, one, 11, said["groups"]) for one in queries]
    rows = [one for _, one in found]
    assert mean_recall([one for _, one in truth], rows, np.arange(50)) > 0.95
    for query, (scores, some) in zip(queries, found, strict=True):
        assert np.array_equal(scores, exact_scores(clustered, some, query))
    few = [approximate_rows(index, clustered, one, 11, 1)[1] for one in queries]
    assert mean_recall([one for _, one in truth], few, np.arange(50)) < said["recall@10"]


@pytest.mark.parametrize("rows", [1, 2, 39, 40, 90])
def test_faiss_takes_indexes_of_any_size(clustered: np.ndarray, tmp_path: Path, rows: int) -> None:
    said = build_approximate(clustered[:rows], tmp_path / "a.faiss")
    index = open_approximate(tmp_path / "a.faiss", clustered[:rows])
    assert approximate_rows(index, clustered[:rows], clustered[0], 3, said["groups"])[1][0] == 0


def test_an_index_that_claims_terabytes_or_other_rows_is_refused(
    clustered: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "a.faiss"
    build_approximate(clustered[:90], path)
    for width in (32, 16):
        with pytest.raises(UserError, match="a.faiss is missing or damaged"):
            open_approximate(path, clustered[:80, :width])
    whole = path.read_bytes()
    (codes,) = re.finditer(rb"IxFI", whole)  # the centres: a header of 33 bytes, then their bytes
    at = codes.end() + 33
    assert int.from_bytes(whole[at : at + 8], "little") < 10_000
    path.write_bytes(whole[:at] + (1 << 38).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(UserError, match="a.faiss is missing or damaged"):
        open_approximate(path, clustered[:90])


def test_recall_does_not_count_the_row_that_asks() -> None:
    truth = [np.array([4, 1, 2]), np.array([7, 9])]
    found = [np.array([4, 2]), np.array([7])]
    assert mean_recall(truth, found, np.array([4, 7])) == 0.25
    assert mean_recall([np.array([0])], [np.array([0])], np.array([0])) == 1.0


def test_searching_loads_no_library_that_it_does_not_need() -> None:
    code = (
        "import vatt.search.index, sys\n"
        "print({'av', 'torch', 'lightning', 'faiss', 'pyarrow'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
