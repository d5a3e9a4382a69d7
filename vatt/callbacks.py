"""What a training run needs besides the network: repeatable draws, time, the end, its data."""

import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from vatt.errors import UserError
from vatt.machine import num_cores
from vatt.run_checkpoint import AVERAGING_STATE, has_stepped
from vatt.text import Tokenizer
from vatt.utilisation import FlopMeter, flop_meter

FETCH = "train_dataloader_next"  # end of the name under which Lightning profiles waiting for data
TOKENIZER = "tokenizer.json"  # of a run, in its directory
TIME_SLACK = 0.1  # share of a time budget before time can lead, see `TimeBudget`


class StepSeed(Callback):
    """Makes the random draws of a training step a function of seed, rank and step.

    Dropout and DropToken then repeat exactly after a resume, whatever validation, another number of
    loader workers or the interruption itself drew in between: there is no random state to restore.

    Args:
        seed: The run's seed. A checkpoint's seed replaces it on resume.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seeds torch's generators; micro-batches of one step differ."""
        numbers = (self.seed, trainer.global_rank, trainer.fit_loop.total_batch_idx)
        mixed = np.random.SeedSequence([number % 2**32 for number in numbers])
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0]))

    def state_dict(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the seed of the interrupted run."""
        self.seed = state_dict["seed"]


class StepClock(Callback):
    """Measures training time, from asking for a batch to the end of its step, and logs speed.

    Validation, checkpoints and logging are not training time. Logs `perf/step_seconds`,
    `perf/data_wait_share`, in [0, 1], and `perf/clips_per_second`, over all ranks, each as the mean
    since the last logged step. A step is one of the optimiser, with all batches it accumulates.
    Where the device's peak is known (`vatt.utilisation`), also `perf/model_flops_utilisation` of
    the first rank, in [0, 1].
    """

    def __init__(self) -> None:
        self.training_seconds = 0.0  # since the start of the run, resumed runs included
        self.ran = False  # whether this process trained at all
        self._fetch_began = 0.0
        self._wait_seconds = 0.0  # these four: since the last logged step
        self._step_seconds = 0.0
        self._num_clips = 0
        self._num_steps = 0
        self._meter: FlopMeter | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens to the trainer's profiler, which is told when a batch is asked for."""
        self.ran = True
        network, precision = getattr(pl_module, "network", None), str(trainer.precision)
        self._meter = flop_meter(network, trainer.strategy.root_device, precision)
        untyped = cast(
            Any, trainer
        )  # Lightning sets the attribute where type checkers do not see it
        untyped.profiler = _FetchListener(untyped.profiler, self)
        self._fetch_began = time.perf_counter()

    def fetch_started(self) -> None:
        """A batch is asked for."""
        self._fetch_began = time.perf_counter()

    def fetch_ended(self) -> None:
        """The batch is there."""
        self._wait_seconds += time.perf_counter() - self._fetch_began

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Adds the step's time."""
        seconds = time.perf_counter() - self._fetch_began
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
        """Logs what was measured since the last time, if there is anything."""
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
        """The time spent so far."""
        return {"training_seconds": self.training_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
        self.training_seconds = state_dict["training_seconds"]


class _FetchListener(Profiler):
    """Tells a `StepClock` of fetches and passes everything on to the trainer's own profiler."""

    def __init__(self, inner: Profiler, clock: StepClock) -> None:
        super().__init__()
        self._inner = inner
        self._clock = clock

    def start(self, action_name: str) -> None:
        if action_name.endswith(FETCH):
            self._clock.fetch_started()
        self._inner.start(action_name)

    def stop(self, action_name: str) -> None:
        self._inner.stop(action_name)
        if action_name.endswith(FETCH):
            self._clock.fetch_ended()

    def summary(self) -> str:
        return self._inner.summary()

    def describe(self) -> None:
        self._inner.describe()

    def teardown(self, stage: str | None) -> None:
        self._inner.teardown(stage)


class TimeBudget(Callback):
    """Ends training within a time, however slow the machine, with the schedule carried out.

    The module's progress becomes the further of its share of the steps and of the time, where a
    share t of the budget counts as (t - 0.1) / 0.9: 0 at first, 1 at the end. On a machine that
    needs the budget or less for all steps, a slow first step or another pause of up to a tenth of
    it leaves the lead with the steps: the same seed then gives the same losses.

    Args:
        clock: Measures the training time; part of the checkpoint, so a resume goes on with it.
        seconds: Training time of the whole run.

    Raises:
        UserError: the budget is not positive.
    """

    def __init__(self, clock: StepClock, seconds: float) -> None:
        if seconds <= 0:
            raise UserError(f"the time budget must be positive, got {seconds} seconds")
        self.clock = clock
        self.seconds = seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes up the time of an interrupted run."""
        self._share(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Tells the module how much time is spent, and stops when it is all."""
        if self._share(trainer, pl_module) >= 1 and has_stepped(trainer):
            trainer.should_stop = True

    def _share(self, trainer: Trainer, pl_module: LightningModule) -> float:
        share = self.clock.training_seconds / self.seconds
        if trainer.world_size > 1:  # ranks must agree on the learning rate and on stopping
            share = trainer.strategy.broadcast(share)
        cast(Any, pl_module).time_share = max(0.0, (share - TIME_SLACK) / (1 - TIME_SLACK))
        return share


class EndOfRun(Callback):
    """Lets a run validate and log at its last step, whatever the intervals.

    Comes after whatever may end a run.

    Args:
        clock: Logs its part of the row.
    """

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Asks Lightning to stop; it validates then, unless there is no validation at all."""
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True
        untyped = cast(Any, trainer)
        if trainer.should_stop and untyped.log_every_n_steps and has_stepped(trainer):
            self.clock.log_speed(pl_module)
            untyped.log_every_n_steps = 1  # this row too; there is none after it


class WeightAverage(WeightAveraging):
    """Keeps an exponential moving average of the weights, for validation and for use.

    In a checkpoint the average is the model, so that whoever loads it gets the average; the
    training weights are beside it for a resume. Everything in the module's state is averaged, the
    running statistics of BatchNorm too: those of the training weights would not fit the averaged
    ones (Keras averages trainable variables only).

    Lightning's callback with these differences: the average is where the model is, on the CPU
    otherwise, since Lightning makes it before it moves the model; a checkpoint written while the
    two are exchanged, in a validation that is interrupted or at the end of the training, does not
    mix them up; and there is no state of the callback itself, for which Lightning asks in every
    command that reads the checkpoint.

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
        super().__init__(multi_avg_fn=_moving_average(decay))
        self._exchanged = False  # the module has the average now, and the average its weights

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average.

        Raises:
            UserError: the weights are spread over processes, or too coarse to be averaged.
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
        """Goes on with both kinds of weights.

        Raises:
            UserError: the checkpoint has only one.
        """
        if AVERAGING_STATE not in checkpoint:
            raise UserError(
                "the checkpoint is of a run without run.ema_decay and holds no averaged weights: "
                "go on without it (null), or start a new run"
            )
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The steps of an interrupted run are in the average."""
        self._latest_update_step = trainer.global_step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average in the module, and keeps the training weights for the checkpoint."""
        self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as the model, wherever it is at the moment."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._exchanged:
            training, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint |= {"state_dict": average, "current_model_state": training}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step of the checkpoint says it all."""
        return {}

    def _swap_models(self, pl_module: LightningModule) -> None:
        super()._swap_models(pl_module)
        self._exchanged = not self._exchanged


def _moving_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Any], None]:
    """What `torch.optim.swa_utils.AveragedModel` calls with tensors of one kind and their number.

    Torch's own rounds whole numbers down a little: 7 times 0.9 and 0.1 is not always 7.
    """

    @torch.no_grad()
    def update(averages: list[Tensor], weights: list[Tensor], _: Any) -> None:
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, weights, 1 - decay)
        else:  # counts and indices
            torch._foreach_copy_(averages, weights)

    return update


class DataReport(Callback):
    """What a run does about its data, where the datamodule has it as `datamodules.PretrainData`.

    Fills the cache before training, keeps the tokenizer or the classes in the run directory, and
    logs `data/decode_failures`.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decodes ahead what the cache will hold, so that training does not wait for it."""
        data = cast(Any, trainer).datamodule
        if getattr(data, "cache_bytes", 0):
            data.warm_up_cache(num_workers=num_cores(), show_progress=sys.stderr.isatty())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keeps tokenizer or classes: the weights mean nothing with other ids or numbers."""
        if not trainer.is_global_zero:
            return
        data, folder = cast(Any, trainer).datamodule, Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = getattr(data, "tokenizer", None)
        if isinstance(tokenizer, Tokenizer):
            tokenizer.save(folder / TOKENIZER)
        if hasattr(data, "save_classes"):
            data.save_classes(folder)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Logs the count so far."""
        failures = getattr(cast(Any, trainer).datamodule, "decode_failures", None)
        if failures is not None:
            pl_module.log("data/decode_failures", float(failures), batch_size=1)
