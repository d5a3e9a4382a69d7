"""Several processes that make up one gloo group, or one training run."""

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WAIT_SECONDS = 120.0
PRELOAD = [
    "torch",
    "vatt.network.model",
    "vatt.network.contrastive_loss",
    "vatt.runs.training_cli",
    "datamodules.pretrain",
]


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
    codes = join(start(_run, world_size, function, world_size, folder, arguments))
    if any(codes):
        texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        raise AssertionError("\n".join(texts) or "the ranks wait for each other")
    return [torch.load(folder / f"{rank}.pt") for rank in range(world_size)]


def run_vatt(arguments: list[str], world_size: int, errors: Path) -> list[int | None]:
    """Exit codes of a `vatt` command in several processes, as torchrun would start them.

    Args:
        arguments: Of the command.
        world_size: Number of processes.
        errors: Where what rank r says goes, as `r.txt`.
    """
    if world_size > 1:
        arguments = [*arguments, f"--trainer.devices={world_size}"]
    errors.mkdir(exist_ok=True)
    return join(start(_run_vatt, world_size, arguments, world_size, free_port(), errors))


def start(target: Callable[..., None], world_size: int, *arguments: Any) -> list[BaseProcess]:
    """Processes of `target(rank, *arguments)`, which has no import to wait for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    processes: list[BaseProcess] = [
        context.Process(target=target, args=(rank, *arguments)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def join(processes: list[BaseProcess]) -> list[int | None]:
    """Exit codes; None of a process that had to be killed since it did not end."""
    end = time.monotonic() + WAIT_SECONDS
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def free_port() -> int:
    """One that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(
    rank: int,
    function: Callable[..., Any],
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


def _run_vatt(rank: int, arguments: list[str], world_size: int, port: int, errors: Path) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with (errors / f"{rank}.txt").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from vatt.cli import main

    raise SystemExit(main(arguments))
