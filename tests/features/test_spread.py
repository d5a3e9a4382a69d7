"""Spread of vectors beside their size."""

import pytest
import torch

from vatt.features.spread import Spread


def test_spread_is_what_cosines_of_all_pairs_lack() -> None:
    rows = torch.nn.functional.normalize(torch.randn(50, 8) + 1, dim=1)
    cosine = (rows @ rows.T).mean().item()
    assert Spread().add(rows).share == pytest.approx((1 - cosine) ** 0.5, rel=1e-5)


def test_parts_add_up_and_rows_without_a_vector_do_not_count() -> None:
    rows = torch.randn(20, 4)
    empty = torch.stack([torch.zeros(4), torch.full((4,), torch.nan)])
    parts = Spread().add(rows[:5]).add(empty) + Spread().add(rows[5:])
    assert parts.num_rows == 20
    assert parts.share == pytest.approx(Spread().add(rows).share)
    assert Spread().add(rows[:1]).share == Spread().add(empty).share == 0


def test_vectors_that_hardly_differ_are_told_with_the_remedy() -> None:
    alike = Spread().add(100 + torch.randn(20, 4))
    assert alike.is_small
    assert "standardise" in str(alike)
    assert str(Spread().add(torch.eye(4).repeat(5, 1))) == "differ by 87 % of their size"
    assert not Spread().add(100 + torch.randn(3, 4)).is_small  # too few to say
