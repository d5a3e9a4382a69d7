"""Runs that are stopped: what is said, what is kept, and that they go on exactly."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import fit_arguments, read_losses, signal_options

from vatt.cli import main

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def whole_losses(trained_run: Path) -> dict[int, str]:
    """Losses of a run that nobody stops."""
    return read_losses(trained_run)


def resume(run: Path) -> int:
    """By the saved configuration, which is all that is needed, without the callback that sends."""
    config = f"--config={run / 'config.yaml'}"
    return main(["fit", config, "--ckpt_path=last", "--trainer.callbacks=null"])


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.slow
def test_killed_run_goes_on_with_identical_losses(
    tiny_shards: Path, whole_losses: dict[int, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = fit_arguments(tiny_shards, run, *signal_options("step", signal.SIGKILL, step=5))
    code = f"import sys; from vatt.cli import main; sys.exit(main({arguments!r}))"
    path = os.pathsep.join([str(ROOT / "tests/support"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(read_losses(run)) == [0, 1, 2, 3, 4]  # so far; the checkpoint is of step 3
    assert main(fit_arguments(tiny_shards, run, "--ckpt_path=last")) == 0
    assert read_losses(run) == whole_losses
    assert (run / "config.resume-1.yaml").exists()


@pytest.mark.parametrize(
    ("when", "number", "step"),
    [
        ("step", signal.SIGINT, 3),
        pytest.param("validation", signal.SIGTERM, 4, marks=pytest.mark.slow),
    ],
)
def test_signal_leaves_a_checkpoint_that_resumes_exactly(
    tiny_shards: Path,
    whole_losses: dict[int, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    when: str,
    number: signal.Signals,
    step: int,
) -> None:
    run, before = tmp_path / "run", handlers()
    code = main(fit_arguments(tiny_shards, run, *signal_options(when, number, step=step)))
    assert code == 128 + number
    message = capsys.readouterr().err
    assert f"stopped by {number.name} after step 4; go on with: vatt fit --config" in message
    assert handlers() == before
    assert resume(run) == 0
    assert read_losses(run) == whole_losses


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("when", ["start", "trial"])
def test_signal_before_the_first_step_ends_with_one_sentence_and_nothing_half_written(
    tiny_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    when: str,
    number: signal.Signals,
) -> None:
    run, before = tmp_path / "run", handlers()
    arguments = fit_arguments(tiny_shards, run, "--trainer.enable_progress_bar=false")
    assert main([*arguments, *signal_options(when, number)]) == 128 + number
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"vatt: stopped by {number.name}: nothing was trained yet, run the same command again"
    )
    assert handlers() == before
    assert {path.name for path in run.iterdir()} == {"config.yaml", "environment.json"}


@pytest.mark.slow
def test_second_ctrl_c_ends_at_once_and_says_what_is_saved(
    tiny_shards: Path,
    whole_losses: dict[int, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    twice = signal_options("step", signal.SIGINT, step=5, times=2)
    assert main(fit_arguments(tiny_shards, run, *twice)) == 130
    assert "within a step, step 3 is saved; go on with: vatt fit" in capsys.readouterr().err
    assert resume(run) == 0
    assert read_losses(run) == whole_losses


def test_second_ctrl_c_before_anything_is_saved_says_so(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twice = signal_options("step", signal.SIGINT, step=1, times=2)
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *twice)) == 130
    assert "nothing is saved yet, run the same command again" in capsys.readouterr().err


def test_ctrl_c_in_an_evaluation_is_one_sentence(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    validate = ["validate", f"--config={trained_run / 'config.yaml'}", "--ckpt_path=last"]
    assert main([*validate, *signal_options("validation", signal.SIGINT)]) == 130
    assert capsys.readouterr().err.endswith("vatt: Stopped.\n")
    assert handlers() == before


@pytest.mark.slow
def test_full_disk_says_how_the_run_goes_on(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = ["--trainer.callbacks+=training_runs.FillDisk", "--trainer.callbacks.step=4"]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *full)) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on the disk for some.file: free some, then go on with: " in message
    assert message.endswith(f"--config {tmp_path / 'run' / 'config.yaml'} --ckpt_path last")


@pytest.mark.slow
def test_stop_within_an_accumulated_step_waits_for_its_end(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.limit_val_batches=0"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(fit_arguments(tiny_shards, whole, *more)) == 0
    # a pass has 3 batches: steps of 2 and 1; the third step begins with the fourth batch
    options = signal_options("step", signal.SIGTERM, step=2)
    assert main(fit_arguments(tiny_shards, run, *more, *options)) == 143
    assert "stopped by SIGTERM after step 3" in capsys.readouterr().err
    assert resume(run) == 0
    assert read_losses(run) == read_losses(whole)
    assert len(read_losses(run)) == 10
