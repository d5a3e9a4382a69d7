"""The checkpoint of a run: when it is written, that it is whole, and how a signal ends the run."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vatt.errors import UserError

LAST_CHECKPOINT = "last.ckpt"


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` of a run: every so many steps, and at the end.

    Args:
        folder: Where it is written.
        every_n_steps: Steps between two writes.

    Raises:
        ValueError: `every_n_steps` is not positive.
    """

    def __init__(self, folder: Path, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"a checkpoint every {every_n_steps} steps: it must be at least 1")
        self.path = folder / LAST_CHECKPOINT
        self.every_n_steps = every_n_steps
        self._saved_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run need not write what it was read from."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes when it is time, or when this was the last step."""
        step = trainer.global_step
        if trainer.should_stop or step % self.every_n_steps == 0:
            self.save_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes if training ended otherwise than by its steps."""
        self.save_once(trainer)

    def save_once(self, trainer: Trainer) -> None:
        """Writes unless this step is written; every rank must call this."""
        if trainer.global_step != self._saved_step:
            trainer.save_checkpoint(self.path)
            self._saved_step = trainer.global_step


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; a failure leaves the old one good."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes `path` as a whole or not at all.

        Raises:
            OSError: the file cannot be written, for example for want of space.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            # torch's writer fails a second time while it closes, and hides the reason
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        finally:
            partial.unlink(missing_ok=True)


class TrainingStoppedError(UserError):
    """Training ended early because somebody asked; a checkpoint was written."""


class StopOnSignal(Checkpoint):
    """On Ctrl-C or SIGTERM finishes the step, writes a checkpoint that resumes, and ends.

    A second Ctrl-C ends at once. During validation the validation is cut short: the checkpoint is
    that of the last step, and the validation is not repeated on resume. A `Checkpoint` because
    Lightning calls those last: what is saved is the state after all other callbacks.

    Args:
        checkpoint: Writes the checkpoint.
        advice: How to go on, the end of the message.
    """

    def __init__(self, checkpoint: RunCheckpoint, advice: str) -> None:
        self.checkpoint = checkpoint
        self.advice = advice
        self.stopping = False  # a signal came, and what it asked to be saved is saved
        self._received: int | None = None
        self._in_step = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens from here on: before the first step there is nothing to save."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends here, the last step being saved and logged."""
        self._end_if_stopping(trainer)
        self._in_step = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves if asked to stop; ending waits until Lightning has logged this step."""
        self._in_step = False
        self._save_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends here, as before the next step."""
        self._end_if_stopping(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Saves and ends if asked to; not in the trial run before training."""
        if self._previous:
            self._save_if_asked(trainer)
            self._end_if_stopping(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves what is whole: a signal to all processes may have ended those that read data."""
        self._give_back()
        alone = trainer.world_size == 1  # else the other ranks would have to save with this one
        if self._received is not None and alone and not self._in_step:
            self.checkpoint.save_once(trainer)
            self.stopping = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gives the signals back."""
        self._give_back()

    def error(self, trainer: Trainer) -> TrainingStoppedError:
        """What ends the command."""
        number = self._received or signal.SIGTERM
        return TrainingStoppedError(
            f"stopped by {signal.Signals(number).name} after step {trainer.global_step}. "
            f"{self.advice}",
            exit_code=128 + number,
        )

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        os.write(2, b"\nStopping after this step; once more Ctrl-C stops at once.\n")

    def _save_if_asked(self, trainer: Trainer) -> None:
        asked = self._received is not None
        if trainer.world_size > 1:  # the signal may reach only some ranks, or one a step later
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.checkpoint.save_once(trainer)
            self.stopping = True

    def _end_if_stopping(self, trainer: Trainer) -> None:
        if self.stopping:
            raise self.error(trainer)

    def _give_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
