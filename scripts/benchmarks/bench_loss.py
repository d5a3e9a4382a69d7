"""Measures memory and time of the contrastive loss and of cached accumulation.

    python scripts/benchmarks/bench_loss.py                # a few minutes on two cores
    python scripts/benchmarks/bench_loss.py --quick        # small sizes, to see that it works

Memory on a CPU is the process's largest resident size (Linux) over what it was before; on CUDA,
torch's own count. Each measurement runs in a process of its own.
"""

import dataclasses
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from bench_table import benchmark_parser, run_sections
from torch.multiprocessing import spawn

from vatt import ContrastiveLoss, LossConfig, preset
from vatt.batch import MicroBatches
from vatt.gpu_check.batches import full_batch
from vatt.gpu_check.figures import MIB, Row, median_seconds, peak_bytes, return_freed_memory
from vatt.gpu_check.loss_memory import CANDIDATES, FORMS, WIDTH, measure_loss
from vatt.network.model import VATT
from vatt.system.ranks import exchange_layout, gather_rows
from vatt.training.accumulation import forward_cached


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Extent of the measurements."""

    columns: tuple[int, ...] = (4096, 8192, 16384, 32768)  # clips of all ranks, `G`
    repeats: int = 3  # the median counts
    parts: tuple[int, ...] = (1, 4)  # numbers of micro-batches
    micro_batch_size: int = 64
    network: str = "tiny"


QUICK = Sizes(columns=(256, 512), repeats=1, parts=(1, 2), micro_batch_size=4)


def measure_gather(num_columns: int, repeats: int) -> float:
    """Seconds of gathering both sides' rows in two gloo processes, forward and backward."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_gather, args=(Path(folder), num_columns, repeats), nprocs=2)
        return float((Path(folder) / "seconds").read_text())


def _gather(rank: int, folder: Path, num_columns: int, repeats: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2
    )
    rows = torch.randn(num_columns // 2, WIDTH, requires_grad=True)

    def step() -> None:
        layout = exchange_layout(len(rows), CANDIDATES)
        for _ in range(2):  # first and second modality
            gather_rows(rows, layout).sum().backward()

    seconds = median_seconds({"step": step}, repeats, rows.device)["step"]
    if rank == 0:
        (folder / "seconds").write_text(str(seconds))
    dist.destroy_process_group()


def measure_accumulation(num_parts: int | None, sizes: Sizes, device_name: str) -> dict[str, float]:
    """A step of micro-batches (None: of one plain batch): memory beyond weights and raw clips."""
    return_freed_memory()
    device = torch.device(device_name)
    torch.manual_seed(0)
    config = preset(sizes.network)
    network = VATT(config).to(device).train()
    loss = ContrastiveLoss(LossConfig())
    batch = dataclasses.replace(full_batch(config, sizes.micro_batch_size), seeds=None)
    parts = (batch,) * (num_parts or 1)
    batches = MicroBatches(parts=parts, device=device)

    def step() -> None:
        if num_parts is None:
            total = loss(network(parts[0].to(device)), parts[0]).total
        else:
            total = loss(forward_cached(network, batches), batches).total
        total.backward()
        network.zero_grad()

    step()
    mib = peak_bytes(step, device) / MIB
    return {"mib": mib, "seconds": median_seconds({"step": step}, sizes.repeats, device)["step"]}


def in_a_process(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Calls a function in a new process, where nothing was allocated before."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def loss_figures(sizes: Sizes, device: str) -> list[Row]:
    """Forward and backward of a rank's rows, in all forms of the loss."""
    rows = []
    for form in FORMS:
        for num_columns in sizes.columns:
            result = in_a_process(
                measure_loss, form, num_columns, sizes.repeats, torch.device(device)
            )
            case = f"{form}, G {num_columns}"
            rows += [
                Row(case, "forward + backward", result["seconds"] * 1e3, "ms"),
                Row(case, "memory beyond embeddings and gradients", result["mib"], "MiB"),
            ]
    return rows


def gather_figures(sizes: Sizes) -> list[Row]:
    """Gather of both sides in two processes."""
    what = "two processes, forward + backward"
    return [
        Row(f"G {count}", what, measure_gather(count, sizes.repeats) * 1e3, "ms")
        for count in sizes.columns
    ]


def accumulation_figures(sizes: Sizes, device: str) -> list[Row]:
    """Steps of several micro-batches, and a step of one batch without them."""
    rows = []
    for num_parts in (None, *sizes.parts):
        result = in_a_process(measure_accumulation, num_parts, sizes, device)
        clips = (num_parts or 1) * sizes.micro_batch_size
        case = f"{clips} clips, {num_parts or 'without'} micro-batches"
        rows += [
            Row(case, "memory", result["mib"], "MiB"),
            Row(case, "speed", clips / result["seconds"], "clips/s"),
        ]
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    sizes = QUICK if options.quick else Sizes()
    measures = {
        "loss": partial(loss_figures, sizes, options.device),
        "gather": partial(gather_figures, sizes),
        "steps": partial(accumulation_figures, sizes, options.device),
    }
    return run_sections(measures, options)


if __name__ == "__main__":
    sys.exit(main())
