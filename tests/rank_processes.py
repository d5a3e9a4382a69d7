"""A function in several processes that make up one gloo group."""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WAIT_SECONDS = 120.0


def run_ranks(
    function: Callable[..., Any], world_size: int, folder: Path, *arguments: Any
) -> list[Any]:
    """What `function(*arguments)` returns in each of `world_size` ranks, in their order.

    Args:
        function: Of a module's top level; what it returns must be loadable without executing code.
        world_size: Number of processes.
        folder: An empty one, for the processes to meet and to leave their results.
        arguments: Of the function.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "vatt.model", "vatt.losses"])
    processes = [
        context.Process(target=_run, args=(function, rank, world_size, folder, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + WAIT_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive() or process.exitcode:
            for other in processes:
                other.kill()
            texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
            raise AssertionError("\n".join(texts) or "the ranks wait for each other")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def _run(
    function: Callable[..., Any],
    rank: int,
    world_size: int,
    folder: Path,
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=world_size
        )
        torch.save(function(*arguments), folder / f"{rank}.pt")
        dist.destroy_process_group()
    except BaseException:
        (folder / f"{rank}.txt").write_text(f"rank {rank}: {traceback.format_exc()}")
        raise
