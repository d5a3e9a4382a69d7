"""Checkpoints of a run, which are written completely or not at all, and how long they are kept."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging

from vatt.errors import CheckpointError, UserError
from vatt.models.checkpoint import check_archive, read_entry
from vatt.models.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from vatt.runs.loggers import RunWandb
from vatt.system.files import atomic_file, remove_leftovers

BEST_KEY = "vatt_best"  # in a checkpoint: the best validation so far
AVERAGING_STATE = "averaging_state"  # Lightning's key in a checkpoint whose model is an average


@dataclass(frozen=True, kw_only=True)
class KeepCheckpoints:
    """Checkpoints that a run keeps besides `checkpoints/last.ckpt`.

    Args:
        previous: Whether to keep the checkpoint before the last one, as `previous.ckpt`. If
            `last.ckpt` is missing or cut off, `--ckpt_path last` uses it.
        best_by: Metric that decides which validation is kept as `best.ckpt`, such as `val/mAP`.
            None: none is kept.
        best_mode: Which value of the metric is best. None: `min` for losses, `MedR` and `MeanR`,
            else `max`.
        every_n_steps: Steps from one checkpoint that is never replaced, `step-<step>.ckpt`, to the
            next. None: none is kept.

    Raises:
        UserError: the values contradict each other.
    """

    previous: bool = True
    best_by: str | None = None
    best_mode: Literal["max", "min"] | None = None
    every_n_steps: int | None = None

    def __post_init__(self) -> None:
        """Refuses invalid values."""
        if self.every_n_steps is not None and self.every_n_steps < 1:
            raise UserError(
                f"run.keep_checkpoints.every_n_steps must be at least 1, got {self.every_n_steps}: "
                "null is off"
            )
        if self.best_mode is not None and self.best_by is None:
            raise UserError(
                f"run.keep_checkpoints.best_mode is {self.best_mode}, but of no metric: set "
                "run.keep_checkpoints.best_by"
            )


def has_stepped(trainer: Trainer) -> bool:
    """Whether the optimiser stepped after the last batch.

    A checkpoint between the accumulated batches of one step would lack their gradients.
    """
    return not trainer.fit_loop._should_accumulate()


class RunCheckpoint(Checkpoint):
    """Writes `last.ckpt` of a run every `every_n_steps` steps, and at the end.

    `previous.ckpt` and `step-<step>.ckpt` are further names of files that were written as
    `last.ckpt` (hard links). Lightning's `ModelCheckpoint` would write them again, and after a
    resume it would write between the accumulated batches of a step.

    Args:
        folder: Folder of the checkpoint.
        every_n_steps: Steps from one write to the next.
        keep: Which checkpoints are kept.
        wandb: W&B run that gets a copy of each checkpoint. None: none is sent.

    Raises:
        UserError: `every_n_steps` is not positive.
    """

    def __init__(
        self,
        folder: Path,
        every_n_steps: int,
        keep: KeepCheckpoints = KeepCheckpoints(),  # frozen
        wandb: RunWandb | None = None,
    ) -> None:
        if every_n_steps < 1:
            raise UserError(f"a checkpoint every {every_n_steps} steps: it must be at least 1")
        self.path = folder / LAST_CHECKPOINT
        self.every_n_steps = every_n_steps
        self._keep = keep
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

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Corrects the step of logged metrics.

        After a resume from a checkpoint that a validation wrote, Lightning's count lacks one step
        unless the interval of validations asks for one at that step, too.
        """
        if pl_module.automatic_optimization:
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes a checkpoint when one is due, or after the last step."""
        due = trainer.should_stop or trainer.global_step % self.every_n_steps == 0
        if (due or self._is_kept(trainer.global_step)) and has_stepped(trainer):
            self.save_once(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes a checkpoint if training ended before its last step."""
        self.save_once(trainer)

    def save_once(self, trainer: Trainer) -> None:
        """Writes a checkpoint unless one of this step exists; all ranks must call this."""
        if trainer.global_step == self.saved_step:
            return
        keeps = self._keep.previous and trainer.is_global_zero and is_zipfile(self.path)
        with _second_name(self.path, PREVIOUS_CHECKPOINT) if keeps else nullcontext():
            trainer.save_checkpoint(self.path)
        self.saved_step = trainer.global_step
        if self._is_kept(self.saved_step) and trainer.is_global_zero:
            with _second_name(self.path, f"step-{self.saved_step}.ckpt"):
                pass
        if self._wandb is not None:
            self._wandb.log_checkpoint(self.path, self.saved_step)

    def _is_kept(self, step: int) -> bool:
        return self._keep.every_n_steps is not None and step % self._keep.every_n_steps == 0


@contextmanager
def _second_name(path: Path, name: str) -> Iterator[None]:
    """Context after which a file has a second name in its folder, even if it was replaced within.

    A failure leaves the file that has this name. A file system without hard links gets a copy.
    """
    other, waiting = path.with_name(name), path.with_name(f".{name}")
    waiting.unlink(missing_ok=True)
    try:
        try:
            waiting.hardlink_to(path)
        except OSError:
            with path.open("rb") as source, atomic_file(waiting) as file:
                shutil.copyfileobj(source, file)
        yield
        waiting.replace(other)
    finally:
        waiting.unlink(missing_ok=True)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint of the validation with the best value of a metric, `best.ckpt`.

    The file itself holds the value, so a resumed run goes on with the best of all validations in
    the run folder. Lightning would go on with that of the resumed checkpoint, which may be older,
    and would warn in every command that reads a checkpoint without this callback.

    Args:
        folder: Folder of the checkpoint.
        keep: Metric, and which of its values is best.
    """

    def __init__(self, folder: Path, keep: KeepCheckpoints) -> None:
        name = keep.best_by or ""
        is_error = "loss" in name or name.endswith(("MedR", "MeanR"))
        super().__init__(
            folder,
            Path(BEST_CHECKPOINT).stem,
            monitor=keep.best_by,
            mode=keep.best_mode or ("min" if is_error else "max"),
            save_on_train_epoch_end=False,  # but after validations
            enable_version_counter=False,  # the writer replaces the file in one step
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reads the best value so far, on the first rank for all."""
        super().setup(trainer, pl_module, stage)
        path = self.format_checkpoint_name({})
        stored = None
        if trainer.is_global_zero and Path(path).is_file():
            with suppress(CheckpointError):  # damaged: the next validation replaces it
                stored = read_entry(path, BEST_KEY)
        stored = trainer.strategy.broadcast(stored)
        if stored and (stored["metric"], stored["mode"]) == (self.monitor, self.mode):
            self.best_model_path = self.kth_best_model_path = path
            self.best_model_score = torch.tensor(stored["value"])
            self.best_k_models = {path: self.best_model_score}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses a run without validation.

        Raises:
            UserError: the run has none.
        """
        super().on_train_start(trainer, pl_module)
        if not cast(Any, trainer).enable_validation or trainer.val_dataloaders == []:
            raise UserError(
                f"run.keep_checkpoints.best_by is {self.monitor}, but the run has no validation: "
                "set data.validation, or best_by to null"
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the checkpoint if this validation is the best.

        Raises:
            UserError: there is no such metric, or the step is not complete yet.
        """
        if not trainer.sanity_checking and not has_stepped(trainer):
            raise UserError(
                "best.ckpt between the accumulated batches of a step would lack their gradients: "
                "set trainer.val_check_interval to a multiple of trainer.accumulate_grad_batches"
            )
        metrics = trainer.callback_metrics
        if self.monitor in metrics:
            super().on_validation_end(trainer, pl_module)
            return
        fault = f"run.keep_checkpoints.best_by is {self.monitor}, but the run logs only "
        fault += ", ".join(sorted(metrics))
        if not trainer.sanity_checking:
            raise UserError(fault)
        if trainer.is_global_zero:  # a whole set may have metrics that its first clips have not
            print(fault, file=sys.stderr)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores the best value so far."""
        if self.best_model_score is not None:
            value = float(self.best_model_score)
            checkpoint[BEST_KEY] = {"metric": self.monitor, "mode": self.mode, "value": value}

    def state_dict(self) -> dict[str, Any]:
        """Empty: `best.ckpt` holds the state."""
        return {}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file, reads it, and renames it.

    A failure keeps the old checkpoint. The file is written as a stream, because memory may be too
    small for a large model and its bytes.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; an interrupted write leaves no partial file.

        Raises:
            OSError: the file cannot be written, for example because the disk is full.
            CheckpointError: what was written cannot be read, or differs by its checksums.
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
            file.flush()
            _verify(Path(file.name), path)

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
            check_archive(Path(path))
            checkpoint = super().load_checkpoint(path, map_location, weights_only)
        except (OSError, CheckpointError):
            raise
        except Exception as error:  # torch raises many kinds, by what the file is instead
            raise UserError(f"{path} is damaged, or no checkpoint: {remedy}") from error
        if not isinstance(checkpoint, dict) or "pytorch-lightning_version" not in checkpoint:
            raise UserError(f"{path} is not a checkpoint of a training run: {remedy}")
        return checkpoint


def _verify(written: Path, path: Path) -> None:
    """Reads all parts of an archive and compares their checksums; a second for a gigabyte."""
    try:
        with ZipFile(written) as archive:
            part = archive.testzip()
    except BadZipFile:
        part = "its table of contents"
    if part is not None:
        raise CheckpointError(
            f"{path} was not written correctly ({part} is damaged), and the checkpoint before it "
            "is kept: check the disk"
        )
