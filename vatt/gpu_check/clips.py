"""A data module that repeats one random batch."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from vatt.batch import Batch, MicroBatches
from vatt.config.model import VATTConfig
from vatt.gpu_check.batches import full_batch, labelled_batch


@dataclass(frozen=True)
class Repeated:
    """Loader of a batch that is there already, so that no time goes into loading.

    Args:
        batch: The batch.
        times: Number of steps.
    """

    batch: Batch | MicroBatches
    times: int

    def __len__(self) -> int:
        """Number of steps."""
        return self.times

    def __iter__(self) -> Iterator[Batch | MicroBatches]:
        """The batch again and again."""
        for _ in range(self.times):
            yield self.batch


class RandomClips(LightningDataModule):
    """One random batch for all steps, changed on the device as the data module of a recipe does.

    Args:
        recipe: Data module of the recipe; opens no file.
        config: Model of the recipe.
        batch_size: Clips of a step.
        micro_batch_size: Clips per micro-batch. None: no micro-batches.
        max_steps: Number of steps.
        validation_rows: Rows of the validation batch; 0: no validation.
    """

    def __init__(
        self,
        recipe: LightningDataModule,
        config: VATTConfig,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        max_steps: int,
        validation_rows: int,
    ) -> None:
        super().__init__()
        self.recipe = recipe
        self.max_steps = max_steps
        make = full_batch if config.classifier is None else labelled_batch
        torch.manual_seed(0)
        self.batch = _pinned(make(config, batch_size))
        self.micro_batch_size = micro_batch_size
        self.validation = _pinned(make(config, validation_rows)) if validation_rows else None

    def train_dataloader(self) -> Repeated:
        """Loader of the training batch, in micro-batches if the recipe has them."""
        batch: Batch | MicroBatches = self.batch
        if self.micro_batch_size is not None:
            batch = MicroBatches.split(self.batch, self.micro_batch_size)
        return Repeated(batch, self.max_steps)

    def val_dataloader(self) -> Repeated | list[Any]:
        """Loader of the validation batch."""
        return [] if self.validation is None else Repeated(self.validation, 1)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augments as the recipe's data module does."""
        self.recipe.trainer = self.trainer
        return self.recipe.on_after_batch_transfer(batch, dataloader_idx)


def _pinned(batch: Batch) -> Batch:
    return batch.pin_memory() if torch.cuda.is_available() else batch
