"""Exponential moving average of weights."""

import warnings
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vatt.errors import UserError
from vatt.runs.checkpoint import AVERAGING_STATE


class WeightAverage(WeightAveraging):
    """Exponential moving average of the weights, for validation and as the final model.

    In a checkpoint, the average is the model, and the training weights are stored beside it for a
    resume. The whole state of the module is averaged, including the running statistics of
    BatchNorm, because statistics of the training weights would not fit the averaged weights. (Keras
    averages trainable variables only.)

    This differs from Lightning's callback in three ways. The average is on the device of the model;
    Lightning's stays on the CPU, because it is made before the model moves. A checkpoint that is
    written while both are exchanged (in an interrupted validation, or at the end of training) does
    not mix them up. And the callback has no state of its own, which Lightning would require in
    every command that reads the checkpoint.

    Args:
        decay: Share of the old average in the new one, at each optimiser step, in (0, 1).

    Raises:
        UserError: the decay is out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(
                f"run.ema_decay must be in (0, 1), got {decay}: 0.999 averages over about 1000 "
                "steps, null is off"
            )
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))
        self._exchanged = False  # the module has the average now, and the average its weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Creates the average.

        Raises:
            UserError: the weights are sharded, or their precision is too low for averaging.
        """
        precision = str(trainer.precision)
        if precision.endswith("true") and not precision.startswith(("32", "64")):
            raise UserError(
                f"run.ema_decay needs float32 weights, those of trainer.precision {precision} are "
                "too coarse: set it to bf16-mixed, or ema_decay to null"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            strategy = type(trainer.strategy).__name__
            raise UserError(
                f"run.ema_decay needs all weights in every process, which {strategy} does not "
                "promise: set it to null, or trainer.strategy to ddp"
            )
        self._device = trainer.strategy.root_device
        with warnings.catch_warnings():  # that configure_model might shard: not in these strategies
            warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the average and the training weights.

        Raises:
            UserError: the checkpoint has no average.
        """
        if AVERAGING_STATE not in checkpoint:
            raise UserError(
                "the checkpoint is of a run without run.ema_decay and holds no averaged weights: "
                "go on without it (null), or start a new run"
            )
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues after the steps that the average already contains."""
        self._latest_update_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module, and the training weights for the checkpoint."""
        self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as the model."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._exchanged:
            training, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint |= {"state_dict": average, "current_model_state": training}

    def state_dict(self) -> dict[str, Any]:
        """Empty: the step of the checkpoint is enough."""
        return {}

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._exchanged = not self._exchanged
