"""The checkpoint of a run: when it is written, that it is whole, and how a signal ends the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from vatt.errors import UserError
from vatt.runs.loggers import RunWandb
from vatt.system.files import atomic_file, remove_leftovers

LAST_CHECKPOINT = "last.ckpt"
AVERAGING_STATE = "averaging_state"  # Lightning's key in a checkpoint whose model is an average


def has_stepped(trainer: Trainer) -> bool:
    """Whether the optimiser stepped after the last batch.

    Between the batches that one step accumulates, their gradients are in no checkpoint.
    """
    return not trainer.fit_loop._should_accumulate()


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

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path, path.parent)
        with atomic_file(path) as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's writer fails a second time while it closes, and hides the reason
                reason = error.__context__
                if not isinstance(reason, OSError):
                    raise
                raise OSError(reason.errno, reason.strerror) from error

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
