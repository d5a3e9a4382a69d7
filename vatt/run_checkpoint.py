"""The checkpoint of a run: when it is written, that it is whole, and how a signal ends the run."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from vatt.errors import UserError
from vatt.loggers import RunWandb

LAST_CHECKPOINT = "last.ckpt"
AVERAGING_STATE = "averaging_state"  # Lightning's key in a checkpoint whose model is an average


def has_stepped(trainer: Trainer) -> bool:
    """Whether the optimiser stepped after the last batch.

    Between the batches that one step accumulates, their gradients are in no checkpoint.
    """
    return not trainer.fit_loop._should_accumulate()


def _is_whole(trainer: Trainer) -> bool:
    """Whether all batches that were taken from the data are in the weights, and none halfway."""
    fetcher = trainer.fit_loop._data_fetcher
    num_trained = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return fetcher is not None and fetcher.fetched == num_trained and has_stepped(trainer)


class RunCheckpoint(Checkpoint):
    """Keeps `last.ckpt` of a run: every so many steps, and at the end.

    Args:
        folder: Where it is written.
        every_n_steps: Steps between two writes.
        wandb: Gets a copy of each that is written; None: none is sent.

    Raises:
        UserError: `every_n_steps` is not positive.
    """

    def __init__(self, folder: Path, every_n_steps: int, wandb: RunWandb | None = None) -> None:
        if every_n_steps < 1:
            raise UserError(f"a checkpoint every {every_n_steps} steps: it must be at least 1")
        self.path = folder / LAST_CHECKPOINT
        self.every_n_steps = every_n_steps
        self._wandb = wandb
        self.saved_step = 0

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuses to train averaged weights on, as if they were those that the optimiser moved.

        Raises:
            UserError: the checkpoint's model is an average, and this run keeps none.
        """
        callbacks = cast(Any, trainer).callbacks
        keeps_average = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if AVERAGING_STATE in checkpoint and not keeps_average:
            raise UserError(
                "the checkpoint holds averaged weights beside those in training: go on with the "
                "run.ema_decay of its run, or start a new run"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run need not write what it was read from."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Writes when it is time, or when this was the last step."""
        due = trainer.should_stop or trainer.global_step % self.every_n_steps == 0
        if due and has_stepped(trainer):
            self.save_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes if training ended otherwise than by its steps."""
        self.save_once(trainer)

    def save_once(self, trainer: Trainer) -> None:
        """Writes unless this step is written; every rank must call this."""
        if trainer.global_step != self.saved_step:
            trainer.save_checkpoint(self.path)
            self.saved_step = trainer.global_step
            if self._wandb is not None:
                self._wandb.log_checkpoint(self.path, self.saved_step)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it; a failure leaves the old one good.

    It is written as a stream: beside a large model there is no room for its bytes.
    """

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

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Reads a checkpoint.

        Raises:
            UserError: it is damaged, or a file of another kind.
        """
        remedy = "give --ckpt_path a checkpoint that `vatt fit` wrote, whole"
        try:
            checkpoint = super().load_checkpoint(path, map_location, weights_only)
        except OSError:
            raise
        except Exception as error:  # torch raises many kinds, by what the file is instead
            raise UserError(f"{path} is damaged, or no checkpoint: {remedy}") from error
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise UserError(f"{path} is not a checkpoint of a training run: {remedy}")
        return checkpoint


class TrainingStoppedError(UserError):
    """Training ended early because somebody asked; the message says how to go on."""


class StopOnSignal(Checkpoint):
    """On Ctrl-C or SIGTERM finishes the step, writes a checkpoint that resumes, and ends.

    Before the first step, and with a second Ctrl-C, it ends at once. During validation the
    validation is cut short: the checkpoint is that of the last step, and the validation is not
    repeated on resume. A `Checkpoint` because Lightning calls those last: what is saved is the
    state after all other callbacks.

    Args:
        checkpoint: Writes the checkpoint.
        advice: How to go on, the end of the message.
    """

    def __init__(self, checkpoint: RunCheckpoint, advice: str) -> None:
        self.checkpoint = checkpoint
        self.advice = advice
        self.asked = False  # a signal came, here or at another rank
        self._received: int | None = None
        self._saved = False  # what the signal asked for is done
        self._training = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the signals while the block runs."""
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._receive)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on there is something to save; Lightning's own handler would not save it."""
        self._training = True
        if signal.getsignal(signal.SIGINT) == self._receive:
            signal.signal(signal.SIGTERM, self._receive)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends here, the last step being saved and logged."""
        self._end_if_saved(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Saves if asked to stop; ending waits until Lightning has logged this step."""
        self._save_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends here, as before the next step."""
        self._end_if_saved(trainer)

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
        if self._training:
            self._save_if_asked(trainer)
            self._end_if_saved(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves what is whole: a signal to all processes may have ended those that read data."""
        alone = trainer.world_size == 1  # else the other ranks would have to save with this one
        if self._received is not None and self._training and alone and _is_whole(trainer):
            self.checkpoint.save_once(trainer)

    def error(self, trainer: Trainer) -> TrainingStoppedError:
        """What ends the command."""
        number = self._received or signal.SIGTERM
        if not self._training:
            rest = ": nothing was trained yet, run the same command again"
        elif not self.checkpoint.path.exists():
            rest = ": nothing is saved yet, run the same command again"
        elif self.checkpoint.saved_step == trainer.global_step:
            rest = f" after step {trainer.global_step}; {self.advice}"
        else:
            rest = f" within a step, step {self.checkpoint.saved_step} is saved; {self.advice}"
        name = signal.Signals(number).name
        return TrainingStoppedError(f"stopped by {name}{rest}", exit_code=128 + number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        again, self._received = self._received is not None, number
        self.asked = True
        if not self._training or (again and number == signal.SIGINT):
            raise KeyboardInterrupt
        os.write(2, b"\nStopping after this step; once more Ctrl-C stops at once.\n")

    def _save_if_asked(self, trainer: Trainer) -> None:
        asked = self._received is not None
        if trainer.world_size > 1:  # the signal may reach only some ranks, or one a step later
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked and has_stepped(trainer):
            self.checkpoint.save_once(trainer)
            self.asked = self._saved = True

    def _end_if_saved(self, trainer: Trainer) -> None:
        if self._saved:
            raise self.error(trainer)
