"""Device and sizes of the measurements of a stage."""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, kw_only=True)
class Place:
    """Device and size of a stage.

    Args:
        device: Device to check.
        quick: Whether sizes are tiny, only to see that the stage runs.
        out: Folder for files of the stage.
    """

    device: torch.device
    quick: bool
    out: Path

    @property
    def backend(self) -> str:
        """Backend of `torch.compile`: Inductor, or quickly one that runs graphs as they are."""
        return "eager" if self.quick else "inductor"
