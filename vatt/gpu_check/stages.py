"""Stages of the check of a GPU, cheapest and most telling first; each runs in its own process."""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from vatt.gpu_check.options import StageName
from vatt.system.files import write_atomically

ROWS_FILE = "{name}.rows.json"  # figures of a stage so far


@dataclass(frozen=True)
class Stage:
    """A stage.

    Args:
        module: Module of `vatt.gpu_check`.
        function: Function of it that yields `Row`s for a `Place`.
        limit_seconds: Time after which it is stopped.
    """

    module: str
    function: str
    limit_seconds: float


# the limits are about twice the time that each should take on one H200 with 16 cores
STAGES: dict[StageName, Stage] = {
    "machine": Stage("machine", "measure_machine", 60),
    "parity": Stage("parity", "measure_parity", 90),
    "one-graph": Stage("one_graph", "measure_one_graph", 180),
    "compile": Stage("compiling", "measure_compiling", 180),
    "waits": Stage("waits", "measure_waits", 60),
    "ranks": Stage("ranks", "measure_ranks", 120),
    "speed": Stage("speed", "measure_speed", 240),
    "attention": Stage("speed", "measure_attention", 240),
    "profile": Stage("kernels", "measure_kernels", 90),
    "run": Stage("whole_run", "measure_run", 180),
    "loss": Stage("loss_memory", "measure_loss_memory", 90),
}


def main(arguments: list[str]) -> int:
    """Runs one stage in this process, and keeps its figures in a file as they come.

    Args:
        arguments: Stage, device, folder, and `quick` or `full`.
    """
    import torch

    from vatt.gpu_check.place import Place

    name, device, out, size = arguments
    stage = next(stage for known, stage in STAGES.items() if known == name)
    place = Place(device=torch.device(device), quick=size == "quick", out=Path(out))
    measure: Callable[[Place], Iterator[object]] = getattr(
        import_module(f"vatt.gpu_check.{stage.module}"), stage.function
    )
    rows = []
    for row in measure(place):
        rows.append(asdict(row))  # type: ignore[call-overload]
        write_atomically(place.out / ROWS_FILE.format(name=name), json.dumps(rows).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
