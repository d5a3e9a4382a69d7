"""Training runs of shipped configurations on random clips, and the measuring of their steps."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vatt.batch import Batch
from vatt.config.model import VATTConfig
from vatt.gpu_check.clips import RandomClips
from vatt.gpu_check.figures import wait_for
from vatt.runs.checkpoint import RunCheckpoint
from vatt.runs.training_cli import TrainingCLI
from vatt.runs.training_cli import main as training_main


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A shipped configuration with the clips to train it on.

    Args:
        config: Name of the configuration.
        batch_size: Clips of a step.
        options: Further options of `vatt fit`.
        max_steps: Number of steps.
        validation_rows: Rows of a validation batch before the first step; 0: no validation.
        saves: Whether the run writes checkpoints.
    """

    config: str
    batch_size: int
    options: tuple[str, ...] = ()
    max_steps: int = 7
    validation_rows: int = 0
    saves: bool = False


class RandomRun(TrainingCLI):
    """A training run on random clips.

    Args:
        args: Arguments of `vatt`.
        recipe: Recipe that the arguments stand for.
        callbacks: Callbacks that measure.
        starts: Whether to train; else model, data and trainer are only built.
    """

    def __init__(
        self,
        args: Sequence[str],
        *,
        recipe: Recipe,
        callbacks: Sequence[Callback] = (),
        starts: bool = True,
    ) -> None:
        self.recipe, self.added, self.starts = recipe, callbacks, starts
        super().__init__(args)

    def fit(self, **kwargs: Any) -> None:
        """Trains on random clips in place of the files of the recipe's data module."""
        if not self.starts:
            return
        trainer: Any = self.trainer
        if not self.recipe.saves:
            kept = (c for c in trainer.callbacks if not isinstance(c, RunCheckpoint))
            trainer.callbacks = list(kept)
        trainer.callbacks += self.added
        kwargs["datamodule"] = RandomClips(
            kwargs["datamodule"],
            self.model.network.config,
            batch_size=self.recipe.batch_size,
            micro_batch_size=getattr(self.model, "micro_batch_size", None),
            max_steps=self.recipe.max_steps,
            validation_rows=self.recipe.validation_rows,
        )
        super().fit(**kwargs)

    def after_fit(self) -> None:
        """Prints nothing: the run has no use."""


def train(
    recipe: Recipe,
    device: torch.device,
    callbacks: Sequence[Callback] = (),
    *,
    run_dir: str | None = None,
    starts: bool = True,
) -> RandomRun:
    """Trains a recipe on one device, without compiling unless its options say so.

    Args:
        recipe: What to train.
        device: Device to train on.
        callbacks: Callbacks that measure.
        run_dir: Run folder. None: one that is deleted.
        starts: Whether to train; else model, data and trainer are only built.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            "fit",
            f"--config={recipe.config}",
            f"--run.dir={run_dir or folder}",
            "--run.wandb=disabled",
            "--data.init_args.train=[random]",
            f"--data.init_args.batch_size={recipe.batch_size}",
            f"--trainer.accelerator={'gpu' if device.type == 'cuda' else 'cpu'}",
            "--trainer.devices=1",
            "--trainer.enable_progress_bar=false",
            f"--trainer.max_steps={recipe.max_steps}",
            "--trainer.val_check_interval=1000000",
            "--model.init_args.schedule.warmup_steps=0",  # of a recipe's 5,000 there are too few
            "--model.init_args.compile_towers=false",  # it takes minutes for each recipe
            *recipe.options,
        ]
        kind = partial(RandomRun, recipe=recipe, callbacks=callbacks, starts=starts)
        run = training_main(arguments, kind)
        assert isinstance(run, RandomRun)
        return run


def augmentation(config: str, device: torch.device) -> Callable[[Batch], Batch]:
    """Random changes of training clips by a shipped configuration."""
    run = train(Recipe(config=config, batch_size=8), device, starts=False)
    data: Any = run.datamodule
    data.trainer = run.trainer
    run.trainer.training = True
    return partial(data.on_after_batch_transfer, dataloader_idx=0)


def network_config(run: RandomRun) -> VATTConfig:
    """Configuration of the network that a run trains."""
    config: VATTConfig = run.model.network.config
    return config


class Losses(Callback):
    """Loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Notes the loss of a step."""
        self.values.append(float(trainer.callback_metrics["train/loss"]))


@dataclass
class StepParts(Callback):
    """Time of a step and of its parts, and the most memory that steps and validation take.

    Args:
        warm_up: Number of first steps that do not count.
    """

    warm_up: int = 2
    seconds: float = field(default=0.0, init=False)  # of a step
    first_seconds: float = field(default=0.0, init=False)  # of the first step, with compiling
    parts: dict[str, float] = field(default_factory=dict, init=False)  # seconds of a step
    peak: int = field(default=0, init=False)  # bytes of a step; 0 on a CPU
    validation_peak: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Begins without marks."""
        self._marks: list[tuple[str, Any]] = []
        self._num_steps = 0
        self._began = 0.0

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes the memory of validation."""
        self.validation_peak = _peak(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends the copy of the batch to the device, and its augmentation."""
        if self._num_steps == self.warm_up - 1:
            self._forget(pl_module.device)
        self._mark("copy and augmentation", pl_module.device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends the forward pass."""
        self._mark("forward", pl_module.device)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the backward pass."""
        self._mark("backward", pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Ends a step; the clock is read only between warm-up and the last step."""
        device = pl_module.device
        self._num_steps += 1
        self._mark("optimizer", device)
        if self._num_steps == 1:
            wait_for(device)
            self.first_seconds = time.perf_counter() - self._began
        if self._num_steps == self.warm_up:
            wait_for(device)
            self._marks = self._marks[-1:]
            self._began = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds up."""
        wait_for(pl_module.device)
        counted = self._num_steps - self.warm_up
        self.seconds = (time.perf_counter() - self._began) / counted
        for (_, before), (name, after) in zip(self._marks, self._marks[1:], strict=False):
            self.parts[name] = self.parts.get(name, 0.0) + _between(before, after) / counted
        self.peak = _peak(pl_module.device)

    def _mark(self, name: str, device: torch.device) -> None:
        if device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((name, event))
        else:
            self._marks.append((name, time.perf_counter()))

    def _forget(self, device: torch.device) -> None:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def _between(before: Any, after: Any) -> float:
    """Seconds between two marks."""
    if isinstance(before, float):
        return float(after - before)
    return float(before.elapsed_time(after)) / 1e3


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
