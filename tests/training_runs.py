"""Training runs for tests: the command line over the tiny corpus, and what a run left."""

import csv
import errno
import os
import signal
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, Trainer

STEPS = 10


def fit_arguments(shards: Path, run: Path, *more: str) -> list[str]:
    return [
        "fit",
        "--config=tiny",
        f"--data.init_args.train=[{shards / 'train'}]",
        f"--data.init_args.validation={shards / 'validation'}",
        f"--run.dir={run}",
        f"--trainer.max_steps={STEPS}",
        "--trainer.val_check_interval=4",
        "--trainer.limit_val_batches=2",
        "--run.checkpoint_every_n_steps=3",
        *more,
    ]


class FillDisk(Callback):
    """Fails as a full disk does, at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some.file")


class SendSignal(Callback):
    """Sends this process a signal: at a step, in the validation after it, or before training."""

    def __init__(
        self,
        when: Literal["start", "trial", "step", "validation"],
        number: int,
        times: int,
        step: int,
    ) -> None:
        self.when, self.number, self.times, self.step = when, number, times, step

    def on_fit_start(self, trainer: Trainer, *_: Any) -> None:
        self._send("start")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self._send("step")

    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.sanity_checking:
            self._send("trial")
        elif trainer.global_step == self.step:
            self._send("validation")

    def _send(self, moment: str) -> None:
        while moment == self.when and self.times:
            self.times -= 1
            os.kill(os.getpid(), self.number)


def signal_options(
    when: str, number: signal.Signals, *, step: int = 0, times: int = 1
) -> list[str]:
    return [
        "--trainer.callbacks+=training_runs.SendSignal",
        f"--trainer.callbacks.when={when}",
        f"--trainer.callbacks.number={int(number)}",
        f"--trainer.callbacks.times={times}",
        f"--trainer.callbacks.step={step}",
    ]


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_losses(run: Path) -> dict[int, str]:
    """Digits of the loss by step; a step that stands twice fails."""
    rows = [row for row in read_rows(run) if row["train/loss"]]
    losses = {int(row["step"]): row["train/loss"] for row in rows}
    assert len(losses) == len(rows)
    return losses
