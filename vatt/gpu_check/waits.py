"""Stage `waits`: lines at which the host waits for the GPU, so that it cannot queue work ahead."""

import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vatt.gpu_check.figures import Row
from vatt.gpu_check.place import Place
from vatt.gpu_check.recipes import Recipe, train

WARM_UP, STEPS = 3, 4
MOST = 1  # of a step


class WatchWaits(Callback):
    """Notes where the host waits in each step after the first ones; on a CPU there is nothing."""

    def __init__(self) -> None:
        self.places: Counter[str] = Counter()
        self.num_steps = 0
        self._caught = warnings.catch_warnings(record=True)
        self._seen: list[warnings.WarningMessage] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Starts after the warm-up; afterwards counts steps."""
        if batch_idx == WARM_UP - 1:
            self._seen = self._caught.__enter__() or []
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
        elif batch_idx >= WARM_UP:
            self.num_steps += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds up the warnings by line."""
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
        self._caught.__exit__(None, None, None)
        for one in self._seen:
            if "synchronizing CUDA operation" in str(one.message):
                self.places[f"{'/'.join(Path(one.filename).parts[-3:])}:{one.lineno}"] += 1


def measure_waits(place: Place) -> Iterator[Row]:
    """Waits of a step of a run, between two lines of its log."""
    options = ("--trainer.log_every_n_steps=1000",)
    for case, size in (("a batch", "null"), ("micro-batches", "2")):
        watch = WatchWaits()
        recipe = Recipe(
            config="tiny",
            batch_size=8,
            options=(*options, f"--model.init_args.micro_batch_size={size}"),
            max_steps=WARM_UP + STEPS,
        )
        train(recipe, place.device, [watch])
        for line, count in watch.places.most_common():
            yield Row(case, f"waits at {line}", count / watch.num_steps, "per step")
        total = sum(watch.places.values()) / watch.num_steps
        yield Row(case, "waits of the host", total, "per step", at_most=MOST)
