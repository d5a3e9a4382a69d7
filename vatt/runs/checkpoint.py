"""Checkpoints of a run, which are written completely or not at all."""

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

    A checkpoint between the accumulated batches of one step would lack their gradients.
    """
    return not trainer.fit_loop._should_accumulate()


class RunCheckpoint(Checkpoint):
    """Writes `last.ckpt` of a run every `every_n_steps` steps, and at the end.

    Args:
        folder: Folder of the checkpoint.
        every_n_steps: Steps from one write to the next.
        wandb: W&B run that gets a copy of each checkpoint. None: none is sent.

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
        """Refuses to continue training from averaged weights.

        Raises:
            UserError: the checkpoint's model is an average, and this run has no `ema_decay`.
        """
        callbacks = cast(Any, trainer).callbacks
        keeps_average = any(isinstance(callback, WeightAveraging) for callback in callbacks)
        if AVERAGING_STATE in checkpoint and not keeps_average:
            raise UserError(
                "the checkpoint holds averaged weights beside those in training: go on with the "
                "run.ema_decay of its run, or start a new run"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the checkpoint of a resumed run as written."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes a checkpoint when one is due, or after the last step."""
        due = trainer.should_stop or trainer.global_step % self.every_n_steps == 0
        if due and has_stepped(trainer):
            self.save_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes a checkpoint if training ended before its last step."""
        self.save_once(trainer)

    def save_once(self, trainer: Trainer) -> None:
        """Writes a checkpoint unless one of this step exists; all ranks must call this."""
        if trainer.global_step != self.saved_step:
            trainer.save_checkpoint(self.path)
            self.saved_step = trainer.global_step
            if self._wandb is not None:
                self._wandb.log_checkpoint(self.path, self.saved_step)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file and renames it; a failure keeps the old checkpoint.

    The file is written as a stream, because memory may be too small for a large model and its
    bytes.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; an interrupted write leaves no partial file.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
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
            UserError: the file is damaged or not a checkpoint.
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
