"""Options of the check of a GPU."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from vatt.config.checks import positive

StageName = Literal[
    "machine",
    "parity",
    "one-graph",
    "compile",
    "waits",
    "ranks",
    "speed",
    "attention",
    "profile",
    "run",
    "loss",
]


@dataclass(frozen=True, kw_only=True)
class GpuCheckOptions:
    """Options of `vatt doctor --gpu`.

    Args:
        only: Stages to run. None: all.
        minutes: Time for all stages; the one that runs is then stopped.
        out: Folder of `gpu.json` and of the output of each stage.
        quick: Use tiny sizes, to see that every stage runs.
        device: Device to check; with cpu only the program is tested.
    """

    only: tuple[StageName, ...] | None = None
    minutes: Annotated[float, positive] = 15.0
    out: Annotated[Path, "FOLDER", "-o", "--out"] = Path("gpu-check")
    quick: bool = False
    device: Literal["cuda", "cpu"] = "cuda"
