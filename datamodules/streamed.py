"""What data modules with a training stream have in common: its position, and who shares it."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Dataset

from vatt.data.loader import PositionedLoader
from vatt.data.order import GlobalOrder


class StreamedData(LightningDataModule):
    """Carries the position of a training stream; subclasses say what is in it.

    Lightning forgets the state of a loader that it has asked for before it reads the checkpoint,
    so the module keeps it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loader: PositionedLoader | None = None
        self._state: dict[str, Any] | None = None

    def open(self, stage: str | None) -> None:
        """Opens what a stage needs, once."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Opens what a stage needs; a fit begins the stream anew unless a state is loaded."""
        if stage == "fit":
            self._close()
            self._loader = self._state = None
        self.open(stage)

    def teardown(self, stage: str | None = None) -> None:
        """Ends the reading processes; the position stays, for a checkpoint that is saved later."""
        if stage == "fit":
            self._close()

    def stream(self, samples: Dataset[Any], order: GlobalOrder, **options: Any) -> PositionedLoader:
        """This rank's share of a stream, where the loaded state or the last such loader stands.

        Args:
            samples: As of `PositionedLoader`.
            order: The global order.
            options: Further ones of `PositionedLoader`.
        """
        self._close()
        state = self._state if self._loader is None else self._loader.state_dict()
        self._loader = PositionedLoader(
            samples,
            order,
            rank=self.rank,
            world_size=self.world_size,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
        if state is not None:
            self._loader.load_state_dict(state)
        return self._loader

    @property
    def position(self) -> dict[str, Any] | None:
        """State of the stream; None: there is none yet."""
        return None if self._loader is None else self._loader.state_dict()

    def go_to(self, position: dict[str, Any]) -> None:
        """Takes the stream there, now or when it is made; nothing is the start."""
        self._state = position or None
        if self._loader is not None and self._state is not None:
            self._loader.load_state_dict(self._state)

    @property
    def rank(self) -> int:
        """This process among those of the run."""
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return 1 if self.trainer is None else self.trainer.world_size

    def _close(self) -> None:
        if self._loader is not None:
            self._loader.close()
