"""Stopping of a run by a signal, with a checkpoint of the last complete step."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from vatt.errors import UserError
from vatt.runs.checkpoint import RunCheckpoint, has_stepped
from vatt.system.ranks import any_rank


def _is_whole(trainer: Trainer) -> bool:
    """Whether the weights include all batches that were read, and none partially."""
    fetcher = trainer.fit_loop._data_fetcher
    num_trained = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    return fetcher is not None and fetcher.fetched == num_trained and has_stepped(trainer)


class TrainingStoppedError(UserError):
    """Training was stopped by a signal; the message says how to resume."""


class StopOnSignal(Checkpoint):
    """On Ctrl-C or SIGTERM, finishes the step, writes a checkpoint for a resume, and ends.

    Before the first step, or on a second Ctrl-C, training ends at once. A signal during validation
    ends the validation: the checkpoint is that of the last step, and a resume does not repeat the
    validation. This is a `Checkpoint` because Lightning calls those last, so the saved state is
    that after all other callbacks.

    Args:
        checkpoint: Callback that writes the checkpoint.
        advice: How to resume, as the end of the message.
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
        """Context that handles the signals."""
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
        """Installs the handler of SIGTERM; Lightning's would end the run without a checkpoint.

        Lightning's ranks also ask each other at each step whether its handler was called, on the
        devices, so that nothing of the next step is queued before the last one ends.
        """
        self._training = True
        if signal.getsignal(signal.SIGINT) == self._receive:
            signal.signal(signal.SIGTERM, self._receive)
            cast(Any, trainer.fit_loop.epoch_loop)._broadcast_sigterm_tensor = lambda: None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Ends training if asked to; the last step is already saved and logged."""
        self._end_if_saved(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Saves if asked to stop; training ends after Lightning has logged this step."""
        self._save_if_asked(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends training if asked to, as before the next step."""
        self._end_if_saved(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any
    ) -> None:
        """Saves and ends if asked to, except in the sanity check before training."""
        if self._training:
            self._save_if_asked(trainer)
            self._end_if_saved(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Saves the last complete step; a signal to all processes may have killed readers."""
        alone = trainer.world_size == 1  # else the other ranks would have to save with this one
        if self._received is not None and self._training and alone and _is_whole(trainer):
            self.checkpoint.save_once(trainer)

    def error(self, trainer: Trainer) -> TrainingStoppedError:
        """Error that ends the command."""
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
        # the signal may reach only some ranks, or one a step later
        asked = any_rank(self._received is not None)
        if asked and has_stepped(trainer):
            self.checkpoint.save_once(trainer)
            self.asked = self._saved = True

    def _end_if_saved(self, trainer: Trainer) -> None:
        if self._saved:
            raise self.error(trainer)
