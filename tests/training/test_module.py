"""Metrics of a set whose clips the ranks share: the same numbers whoever computes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_ranks
from torch._subclasses.fake_tensor import FakeTensorMode

from vatt.evaluation.embedding_table import EmbeddingTable
from vatt.evaluation.retrieval import retrieval
from vatt.system.ranks import rank, world_size
from vatt.training import module

NUM_CLIPS = 13  # no multiple of the ranks: some repeat the first ones


def table_of(rows: list[int], num_captions: int = 3, width: int = 16) -> EmbeddingTable:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        vectors = torch.randn(NUM_CLIPS, *shape, width, generator=generator)
        return torch.nn.functional.normalize(vectors, dim=-1)[rows]

    return EmbeddingTable(
        keys=tuple(f"clip {row}" for row in rows),
        video_va=drawn(),
        audio_va=drawn(),
        video_vt=drawn(),
        text_vt=drawn(num_captions),
        video_mask=torch.ones(len(rows), dtype=torch.bool),
        audio_mask=torch.ones(len(rows), dtype=torch.bool),
        text_mask=torch.ones(len(rows), num_captions, dtype=torch.bool),
    )


def measure_on_rank(largest: int) -> dict[str, Any]:
    """Metrics, and the number of rows that this rank measured."""
    module.LARGEST_SHARED_SET = largest
    measured: list[int] = []

    def measure(table: EmbeddingTable) -> dict[str, float]:
        measured.append(len(table))
        return {
            f"{a}/{b}": value for a, row in retrieval(table).items() for b, value in row.items()
        }

    steps = -(-NUM_CLIPS // world_size())
    rows = [(rank() + world_size() * step) % NUM_CLIPS for step in range(steps)]
    tables = [table_of(rows[start : start + 2]) for start in range(0, steps, 2)]
    return {"metrics": module.measure_set(tables, measure), "measured": measured}


@pytest.mark.ddp
def test_a_large_set_is_measured_by_the_first_rank_with_the_same_numbers(tmp_path: Path) -> None:
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    small = run_ranks(measure_on_rank, 2, tmp_path / "small", 1_000)
    large = run_ranks(measure_on_rank, 2, tmp_path / "large", 10)
    assert [one["measured"] for one in small] == [[NUM_CLIPS], [NUM_CLIPS]]
    assert [one["measured"] for one in large] == [[NUM_CLIPS], []]
    expected = measure_on_rank(10)["metrics"]  # of one process
    assert len(expected) > 10
    assert all(one["metrics"] == expected for one in [*small, *large])


def test_the_largest_set_that_every_rank_gets_takes_half_a_gigabyte() -> None:
    with FakeTensorMode():
        clips, captions = module.LARGEST_SHARED_SET, 20
        widths = {"video_va": 512, "audio_va": 512, "video_vt": 256}
        table = EmbeddingTable(
            keys=("",) * clips,
            **{name: torch.empty(clips, width) for name, width in widths.items()},
            text_vt=torch.empty(clips, captions, 256),
            video_mask=torch.empty(clips, dtype=torch.bool),
            audio_mask=torch.empty(clips, dtype=torch.bool),
            text_mask=torch.empty(clips, captions, dtype=torch.bool),
        )
    columns = [value for value in vars(table).values() if torch.is_tensor(value)]
    assert sum(column.nbytes for column in columns) == clips * 25_622  # bytes of a clip
    assert clips * 25_622 < 0.52e9
