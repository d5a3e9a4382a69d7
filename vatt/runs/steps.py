"""Callbacks of a training run for seeds, time and the last step."""

import time
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vatt.errors import UserError
from vatt.runs.checkpoint import has_stepped
from vatt.system.ranks import of_first_rank
from vatt.training.utilisation import FlopMeter, flop_meter

TIME_SLACK = 0.1  # share of a time budget before time can lead, see `TimeBudget`


class StepSeed(Callback):
    """Seeds each training step by seed, rank and step.

    Dropout and DropToken then repeat exactly after a resume, whatever random numbers were drawn
    elsewhere: by validation, by loader workers or before the interruption. No random state needs
    to be restored.

    Args:
        seed: Seed of the run. On a resume, the seed in the checkpoint replaces it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds torch's generators; accumulated batches of one step get different seeds."""
        numbers = (self.seed, trainer.global_rank, trainer.fit_loop.total_batch_idx)
        mixed = np.random.SeedSequence([number % 2**32 for number in numbers])
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))

    def state_dict(self) -> dict[str, Any]:
        """Seed of the run."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the seed of the interrupted run."""
        self.seed = state_dict["seed"]


class StepClock(Callback):
    """Measures training time, from the request for a batch to the end of its step; logs speed.

    Validation, checkpoints and logging do not count as training time. `PositionedLoader` measures
    the time spent waiting for data; with other loaders, a step begins when its batch arrives. Logs
    `perf/step_seconds`, `perf/data_wait_share` in [0, 1] and `perf/clips_per_second` over all
    ranks, each as the mean since the last logged step. A step is an optimiser step with all batches
    that it accumulates. If the peak rate of the device is known (`vatt.training.utilisation`), also
    logs `perf/model_flops_utilisation` of the first rank, in [0, 1].
    """

    def __init__(self) -> None:
        self.training_seconds = 0.0  # since the start of the run, resumed runs included
        self.ran = False  # whether this process trained at all
        self._step_began = 0.0
        self._wait_seconds = 0.0  # these four: since the last logged step
        self._step_seconds = 0.0
        self._num_clips = 0
        self._num_steps = 0
        self._meter: FlopMeter | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks up the peak rate of the device."""
        network, precision = getattr(pl_module, "network", None), str(trainer.precision)
        self._meter = flop_meter(network, trainer.strategy.root_device, precision)

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts a step, if the loader does not report when its batch was requested."""
        self.ran = True
        self._step_began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the time of the step."""
        loader = trainer.train_dataloader
        seconds = time.perf_counter() - getattr(loader, "asked_at", self._step_began)
        self._wait_seconds += getattr(loader, "wait_seconds", 0.0)
        self.training_seconds += seconds
        self._step_seconds += seconds
        self._num_clips += len(batch) * trainer.world_size
        if self._meter is not None:
            self._meter.add(batch)
        if not has_stepped(trainer):
            return
        self._num_steps += 1
        interval = cast(Any, trainer).log_every_n_steps
        if interval and trainer.global_step % interval == 0:
            self.log_speed(pl_module)

    def log_speed(self, pl_module: LightningModule) -> None:
        """Logs the means since the last logged step, if there are any."""
        if not self._num_steps:
            return
        values = {
            "perf/step_seconds": self._step_seconds / self._num_steps,
            "perf/data_wait_share": self._wait_seconds / self._step_seconds,
            "perf/clips_per_second": self._num_clips / self._step_seconds,
        }
        if self._meter is not None:
            share = self._meter.utilisation(self._step_seconds)
            values["perf/model_flops_utilisation"] = share
        pl_module.log_dict(values, batch_size=1)
        self._wait_seconds = self._step_seconds = 0.0
        self._num_clips = self._num_steps = 0

    def state_dict(self) -> dict[str, Any]:
        """Training time so far."""
        return {"training_seconds": self.training_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the training time of an interrupted run."""
        self.training_seconds = state_dict["training_seconds"]


class TimeBudget(Callback):
    """Ends training within a time budget, and completes the learning-rate schedule within it.

    The progress of the schedule is the larger of two shares: that of the steps, and that of the
    time, where a share t of the budget counts as (t - 0.1) / 0.9. A machine that is fast enough to
    make all steps within the budget therefore follows the steps, even if pauses take up to a tenth
    of the budget: the same seed then gives the same losses.

    Args:
        clock: Measures the training time. The checkpoint stores it, so a resumed run continues it.
        seconds: Time budget of the whole run.

    Raises:
        UserError: the budget is not positive.
    """

    def __init__(self, clock: StepClock, seconds: float) -> None:
        if seconds <= 0:
            raise UserError(f"the time budget must be positive, got {seconds} seconds")
        self.clock = clock
        self.seconds = seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continues with the training time of an interrupted run; trains no step if it is spent."""
        trainer.should_stop = self._share(trainer, pl_module) >= 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Updates the progress of the schedule, and stops training when the time is used up."""
        if self._share(trainer, pl_module) >= 1 and has_stepped(trainer):
            trainer.should_stop = True

    def _share(self, trainer: Trainer, pl_module: LightningModule) -> float:
        # ranks must agree on the learning rate and on stopping
        share = of_first_rank(self.clock.training_seconds / self.seconds)
        cast(Any, pl_module).time_share = max(0.0, (share - TIME_SLACK) / (1 - TIME_SLACK))
        return share


class EndOfRun(Callback):
    """Validates and logs at the last step of a run, whatever the intervals.

    Must be the last of the callbacks that can end a run.

    Args:
        clock: Clock that logs the speed of the last steps.
    """

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Asks Lightning to stop, which then validates if the run has validation."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
        untyped = cast(Any, trainer)
        if trainer.should_stop and untyped.log_every_n_steps and has_stepped(trainer):
            self.clock.log_speed(pl_module)
            untyped.log_every_n_steps = 1  # this row too; there is none after it
