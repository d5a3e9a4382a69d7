"""Standardised features before a classifier."""

import pytest
import torch
from rank_processes import run_ranks

from vatt.config.model import ClassifierConfig
from vatt.network.heads import Classifier, Standardize


def parallel_features(num_rows: int) -> torch.Tensor:
    """Features that differ by a hundredth of a percent of their size, float32 `[rows, 16]`."""
    generator = torch.Generator().manual_seed(num_rows)
    return 10 + 1e-3 * torch.randn(num_rows, 16, generator=generator)


def test_features_that_hardly_differ_have_variance_one_in_training_and_evaluation() -> None:
    standardize = Standardize(16)
    trained = standardize(parallel_features(64))
    assert trained.mean(dim=0).abs().max() < 0.01
    assert trained.var(dim=0, correction=0) == pytest.approx(torch.ones(16), abs=0.01)
    evaluated = standardize.eval()(parallel_features(500))  # after a single batch
    assert evaluated.mean(dim=0).abs().max() < 0.5
    assert evaluated.std(dim=0) == pytest.approx(torch.ones(16), abs=0.4)


def test_running_statistics_are_means_of_ten_batches_and_then_follow() -> None:
    standardize = Standardize(1)
    for value in (0.0, 2.0, 4.0):
        standardize(torch.tensor([[value], [value + 2]]))
    assert standardize.running_mean.item() == pytest.approx(3)
    assert standardize.running_variance.item() == pytest.approx(1)
    for _ in range(30):
        standardize(torch.tensor([[9.0], [11.0]]))
    assert standardize.running_mean.item() == pytest.approx(10, abs=1)


def test_statistics_catch_up_with_weights_only_if_they_lag() -> None:
    standardize = Standardize(16)
    standardize(parallel_features(64))
    before = standardize.running_mean.clone()
    standardize.catch_up(parallel_features(65))  # differs by chance
    assert torch.equal(standardize.running_mean, before)
    moved = parallel_features(64) + 0.01  # ten standard deviations, one per mille
    standardize.catch_up(moved)
    assert standardize.eval()(moved).mean(dim=0).abs().max() < 0.01


def test_a_single_row_does_not_change_the_statistics() -> None:
    standardize = Standardize(16)
    standardize(parallel_features(8))
    before = standardize.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    assert bool(standardize(parallel_features(1)).isfinite().all())
    for name, value in standardize.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_half_model_gives_logits() -> None:
    config = ClassifierConfig(num_classes=3, dropout=0.0, standardize=True)
    head = Classifier(config, 16).to(torch.bfloat16).eval()
    assert head(torch.randn(2, 16, dtype=torch.bfloat16)).dtype == torch.float32


def rows_of_this_rank() -> list[float]:
    standardize = Standardize(16).double()
    whole = parallel_features(10).double()
    rows = whole[:7] if torch.distributed.get_rank() == 0 else whole[7:]
    values = standardize(rows.requires_grad_())
    values.square().mul(torch.arange(16)).sum().backward()
    return [*values.sum(dim=0).tolist(), *standardize.running_variance.tolist()]


@pytest.mark.slow
@pytest.mark.ddp
def test_ranks_standardize_as_one(tmp_path) -> None:
    standardize = Standardize(16).double()
    values = standardize(parallel_features(10).double())
    first, second = run_ranks(rows_of_this_rank, 2, tmp_path)
    assert [a + b for a, b in zip(first[:16], second[:16], strict=True)] == pytest.approx(
        values.sum(dim=0).tolist(), abs=1e-9
    )
    assert first[16:] == second[16:] == pytest.approx(standardize.running_variance.tolist())
