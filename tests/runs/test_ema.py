"""The moving average of the weights: validated, saved as the model, and exact after a resume."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from training_runs import STEPS, fit_arguments, read_losses, read_rows, signal_options

from vatt.cli import main
from vatt.errors import UserError
from vatt.models.checkpoint import load_model
from vatt.runs.weight_average import WeightAverage

DECAY = 0.8
AVERAGE = f"--run.ema_decay={DECAY}"
SHORT = "--trainer.max_steps=3"


@pytest.fixture(scope="module")
def whole_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stops, its recorded weights beside it."""
    run = tmp_path_factory.mktemp("ema") / "run"
    record = "--trainer.callbacks+=training_runs.RecordWeights"
    assert main(fit_arguments(tiny_shards, run, AVERAGE, record)) == 0
    return run


def read_checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def recorded(run: Path, kind: str, step: int) -> dict[str, Tensor]:
    return torch.load(run.parent / f"{kind}-{step}.pt", weights_only=True)


def averages(run: Path) -> dict[int, dict[str, Tensor]]:
    """The average after each step, from the recorded weights: it begins with the first step's."""
    average = recorded(run, "trained", 1)
    found = {1: average}
    for step in range(2, STEPS + 1):
        weights = recorded(run, "trained", step)
        average = {k: DECAY * average[k] + (1 - DECAY) * weights[k] for k in weights}
        found[step] = average
    return found


def same(a: Any, b: Any) -> bool:
    """Whether two parts of checkpoints are equal bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)


def test_validation_uses_the_average_and_training_goes_on_with_its_own(whole_run: Path) -> None:
    expected = averages(whole_run)
    for step in (4, 8, STEPS):
        torch.testing.assert_close(recorded(whole_run, "validated", step), expected[step])
    assert not same(recorded(whole_run, "trained", STEPS), recorded(whole_run, "validated", STEPS))


def test_checkpoint_holds_the_average_as_the_model_and_the_training_weights(
    whole_run: Path,
) -> None:
    checkpoint = read_checkpoint(whole_run)
    torch.testing.assert_close(checkpoint["state_dict"], averages(whole_run)[STEPS])
    assert same(checkpoint["current_model_state"], recorded(whole_run, "trained", STEPS))
    assert not same(checkpoint["state_dict"], checkpoint["current_model_state"])


def test_model_that_is_loaded_is_the_average_with_its_batch_statistics(whole_run: Path) -> None:
    weights = load_model(whole_run / "checkpoints" / "last.ckpt").state_dict()
    expected = {f"network.{name}": value for name, value in weights.items()}
    average = averages(whole_run)[STEPS]
    torch.testing.assert_close(expected, {name: average[name] for name in expected})
    assert any("running_mean" in name for name in expected)


def test_validate_repeats_the_metrics_of_the_average(
    whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f"--config={whole_run / 'config.yaml'}"
    assert main(["validate", config, "--ckpt_path=last", "--trainer.callbacks=null"]) == 0
    printed = capsys.readouterr().out.splitlines()
    line = next(line for line in printed if line.strip().startswith("text → video"))
    assert f"MedR {float(read_rows(whole_run)[-1]['val/text_to_video/MedR']):5.1f}" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop",
    [
        signal_options("step", signal.SIGINT, step=4),
        signal_options("validation", signal.SIGTERM, step=4),  # while the average is in the module
        signal_options("validation", signal.SIGINT, step=8, times=2),
        ["--trainer.max_epochs=2", "--run.checkpoint_every_n_steps=100"],  # written at the end
    ],
    ids=["step", "validation", "twice", "end"],
)
def test_stopped_run_goes_on_with_both_kinds_of_weights_bit_for_bit(
    tiny_shards: Path, whole_run: Path, tmp_path: Path, stop: list[str]
) -> None:
    run = tmp_path / "run"
    main(fit_arguments(tiny_shards, run, AVERAGE, *stop))
    assert 0 < read_checkpoint(run)["global_step"] < STEPS
    config = f"--config={run / 'config.yaml'}"
    go_on = ["--ckpt_path=last", "--trainer.callbacks=null", "--trainer.max_epochs=-1"]
    assert main(["fit", config, *go_on]) == 0
    assert read_losses(run) == read_losses(whole_run)
    resumed, whole = read_checkpoint(run), read_checkpoint(whole_run)
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert same(resumed[part], whole[part]), part


@pytest.mark.slow
def test_accumulated_batches_count_once_after_a_resume(tiny_shards: Path, tmp_path: Path) -> None:
    more = [AVERAGE, "--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=0"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(fit_arguments(tiny_shards, whole, *more)) == 0
    # a pass has 3 batches, steps of 2 and 1: the fifth step has two again
    assert main(fit_arguments(tiny_shards, run, *more, "--trainer.max_steps=4")) == 0
    assert main(fit_arguments(tiny_shards, run, *more, "--ckpt_path=last")) == 0
    ours, theirs = read_checkpoint(run), read_checkpoint(whole)
    assert ours["averaging_state"]["n_averaged"] == STEPS
    assert theirs["averaging_state"]["n_averaged"] == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ([AVERAGE], [], "the checkpoint holds averaged weights beside those in training"),
        ([], [AVERAGE], "the checkpoint is of a run without run.ema_decay"),
    ],
)
def test_switching_the_average_on_or_off_in_a_run_is_refused(
    tiny_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: list[str],
    then: list[str],
    message: str,
) -> None:
    run = tmp_path / "run"
    assert main(fit_arguments(tiny_shards, run, SHORT, *first)) == 0
    assert main(fit_arguments(tiny_shards, run, *then, "--ckpt_path=last")) == 1
    assert f"vatt: {message}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("decay", [0, 1, 1.5])
def test_decay_that_averages_nothing_is_refused(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], decay: float
) -> None:
    assert main(fit_arguments(tiny_shards, tmp_path / "run", f"--run.ema_decay={decay}")) == 1
    assert "run.ema_decay must be in (0, 1), got" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_evaluates_and_keeps_the_average(tmp_path: Path) -> None:
    sizes = ["--num-train=24", "--num-renderings=1", SHORT, "--trainer.limit_val_batches=0"]
    assert main(["demo", f"--out={tmp_path}", "--config=tiny", *sizes, AVERAGE]) == 0
    checkpoint = read_checkpoint(tmp_path / "run")
    kept = {f"network.{k}": v for k, v in load_model(tmp_path / "model").state_dict().items()}
    assert same(kept, {name: checkpoint["state_dict"][name] for name in kept})
    assert not same(kept, {name: checkpoint["current_model_state"][name] for name in kept})


def test_weights_too_coarse_to_be_averaged_are_refused(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = "--trainer.precision=bf16-true"
    assert main(fit_arguments(tiny_shards, tmp_path / "run", AVERAGE, SHORT, coarse)) == 1
    assert "set it to bf16-mixed, or ema_decay to null" in capsys.readouterr().err


def test_weights_that_are_spread_over_processes_are_refused() -> None:
    trainer = Trainer(accelerator="cpu", strategy=ModelParallelStrategy(), logger=False)
    with pytest.raises(UserError, match="ModelParallelStrategy does not promise"):
        WeightAverage(0.9).setup(trainer, LightningModule(), "fit")
