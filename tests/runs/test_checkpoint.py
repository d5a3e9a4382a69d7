"""Which checkpoints a run keeps, and that it goes on exactly from each of them."""

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training_runs import STEPS, fit_arguments, read_losses, read_rows, signal_options

from vatt.cli import main
from vatt.errors import UserError
from vatt.models.checkpoint import read_steps
from vatt.models.training_facts import find_model
from vatt.runs.checkpoint import KeepCheckpoints

RANK = "val/text_to_video/MedR"
RATE = "train/learning_rate"


def keep(**settings: Any) -> list[str]:
    return [f"--run.keep_checkpoints.{name}={value}" for name, value in settings.items()]


def saved_steps(run: Path) -> dict[str, int | None]:
    return {path.stem: read_steps(path) for path in (run / "checkpoints").glob("*.ckpt")}


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory, tiny_shards: Path) -> Path:
    """Run of ten steps with validations after 4, 8 and 10 of them, that keeps what it can."""
    run = tmp_path_factory.mktemp("kept") / "run"
    assert main(fit_arguments(tiny_shards, run, *keep(best_by=RANK, every_n_steps=4))) == 0
    return run


def test_run_keeps_the_last_two_the_best_and_every_nth_checkpoint(kept_run: Path) -> None:
    rows = [row for row in read_rows(kept_run) if row[RANK]]
    best = min(rows, key=lambda row: float(row[RANK]))
    steps = {"last": 10, "previous": 9, "step-4": 4, "step-8": 8, "best": int(best["step"]) + 1}
    assert saved_steps(kept_run) == steps


def test_summary_and_validation_find_the_best(
    tiny_shards: Path, kept_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = min(float(row[RANK]) for row in read_rows(kept_run) if row[RANK])
    config = kept_run / "config.yaml"
    assert main(["validate", f"--config={config}", "--ckpt_path=best"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "text → video" in line)
    assert f"MedR {best:5.1f}" in line


def test_keeping_checkpoints_changes_no_loss(kept_run: Path, trained_run: Path) -> None:
    assert read_losses(kept_run) == read_losses(trained_run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["previous", "step-4", "step-8"])
def test_run_goes_on_exactly_from_a_kept_checkpoint(
    tiny_shards: Path, kept_run: Path, tmp_path: Path, name: str
) -> None:
    run = shutil.copytree(kept_run, tmp_path / "run")
    start = f"--ckpt_path={run / 'checkpoints' / f'{name}.ckpt'}"
    assert main(fit_arguments(tiny_shards, run, start, *keep(best_by=RANK))) == 0
    assert read_losses(run) == read_losses(kept_run)


# a pass has 3 batches: the first validation ends within the second pass, or with the first
@pytest.mark.parametrize("interval", [4, pytest.param(3, marks=pytest.mark.slow)])
def test_run_goes_on_exactly_from_the_best_checkpoint_and_remembers_it(
    tiny_shards: Path,
    trained_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interval: int,
) -> None:
    run = tmp_path / "run"
    more = [f"--trainer.val_check_interval={interval}", *keep(best_by=RATE, best_mode="max")]
    stop = signal_options("step", signal.SIGTERM, step=interval + 1)
    assert main(fit_arguments(tiny_shards, run, *more, *stop)) == 128 + signal.SIGTERM
    assert saved_steps(run)["best"] == interval

    def refuse(*_: Any) -> None:  # as a file system without hard links does
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert main(fit_arguments(tiny_shards, run, *more, "--ckpt_path=best")) == 0
    assert read_losses(run) == read_losses(trained_run)
    assert saved_steps(run) == {"best": interval, "last": 10, "previous": 9}


@pytest.mark.slow
def test_best_checkpoint_of_the_last_validation_goes_on_as_the_last_does(
    tiny_shards: Path, tmp_path: Path
) -> None:
    whole, more = tmp_path / "whole", keep(best_by=RATE, best_mode="min")
    assert main(fit_arguments(tiny_shards, whole, *more)) == 0
    assert saved_steps(whole)["best"] == STEPS
    losses = []
    for start in ("last", "best"):
        run = shutil.copytree(whole, tmp_path / start)
        longer = [f"--ckpt_path={start}", f"--trainer.max_steps={STEPS + 5}"]
        assert main(fit_arguments(tiny_shards, run, *more, *longer)) == 0
        losses.append(read_losses(run))
    assert losses[0] == losses[1]
    assert sorted(losses[0]) == list(range(STEPS + 5))


def test_best_checkpoint_is_refused_between_the_accumulated_batches_of_a_step(
    tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=1"]
    assert main(fit_arguments(tiny_shards, tmp_path / "run", *more, *keep(best_by=RANK))) == 1
    assert "val_check_interval to a multiple of trainer.acc" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_checkpoint_before_the_last_takes_the_place_of_a_damaged_one(
    tiny_shards: Path,
    trained_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.unlink()
    if damage == "cut":
        last.write_bytes(content[:-1000])
    assert main(fit_arguments(tiny_shards, run)) == 1
    assert "already holds a run" in capsys.readouterr().err
    assert find_model(run) == (last.with_name("previous.ckpt"), run)
    assert main(fit_arguments(tiny_shards, run, "--ckpt_path=last")) == 0
    message = f"{last} is missing or damaged: using {last.with_name('previous.ckpt')}, the one"
    assert message in capsys.readouterr().err
    assert read_losses(run) == read_losses(trained_run)
    assert saved_steps(run) == {"last": 10, "previous": 9}  # not the damaged one


def test_best_checkpoint_that_is_not_there_is_explained(
    trained_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", f"--config={trained_run / 'config.yaml'}", "--ckpt_path=best"]) == 2
    message = capsys.readouterr().err
    assert f"no checkpoint {trained_run / 'checkpoints' / 'best.ckpt'}: training keeps" in message
    train = f"--data.init_args.train=[{trained_run}]"
    unnamed = ["fit", "--config=tiny", train, "--ckpt_path=best"]
    assert main(unnamed) == 2
    assert "--ckpt_path best needs --out (--run.dir)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.limit_val_batches=0"], "but the run has no validation: set data.validation"),
        (["--data.init_args.validation=null"], "but the run has no validation: set data.valid"),
        (["--trainer.max_steps=4"], "is val/R@1, but the run logs only data/"),
    ],
)
def test_metric_that_cannot_decide_is_refused(
    tiny_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    arguments = fit_arguments(tiny_shards, tmp_path / "run", *keep(best_by="val/R@1"), *more)
    assert main(arguments) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"best_mode": "max"}, "best_mode is max, but of no metric"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        KeepCheckpoints(**settings)
