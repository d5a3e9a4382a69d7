"""Exchange between the processes of a distributed run, with gradient.

Every exchange is a collective: all ranks must call it in the same order, even a rank without data.
A single process gets its own values back.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

T = TypeVar("T")

LOST_RANK = "another process of the run ended or cannot be reached: see its last messages"
HANG_MINUTES = 10.0  # of waiting for another rank in training, then it hangs; torch's own for NCCL
LONGEST_WAIT = timedelta(days=30)  # for a rank with longer files; gloo's own 30 minutes are few


def num_processes() -> int:
    """Number of processes of torchrun; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Context with a process group, if torchrun started this process.

    The back end is gloo, because ranks exchange objects, not gradients.
    """
    if num_processes() == 1:
        yield
        return
    dist.init_process_group("gloo", timeout=LONGEST_WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class RowLayout(NamedTuple):
    """Distribution of the clips of all ranks, `G` rows, over the ranks.

    Args:
        rows: Number of clips of each rank.
        num_candidates: Size `K` of the largest bag of captions of any rank.
    """

    rows: tuple[int, ...]
    num_candidates: int

    @property
    def first(self) -> int:
        """Index of this rank's first row among those of all ranks."""
        return sum(self.rows[: rank()])

    @property
    def total(self) -> int:
        """Number of rows over all ranks, `G`."""
        return sum(self.rows)


def exchange_layout(num_rows: int, num_candidates: int) -> RowLayout:
    """Exchanges the number of clips, and of captions per clip, between all ranks.

    A collective of the hosts, which waits for no GPU.
    """
    if world_size() == 1:
        return RowLayout((num_rows,), num_candidates)
    counts = torch.tensor([num_rows, num_candidates])
    everyone = counts.new_empty(world_size(), 2)
    dist.all_gather(list(everyone.unbind()), counts, group=_hosts(dist.group.WORLD))
    rows, candidates = everyone.T.tolist()
    return RowLayout(tuple(rows), max(candidates))


def gather_rows(x: Tensor, layout: RowLayout) -> Tensor:
    """Rows of all ranks in rank order, with gradient: `[B, …]` → `[G, …]`; a collective.

    Args:
        x: float, or bool, of `layout.rows[rank()]` rows.
        layout: Rows of each rank.
    """
    if world_size() == 1:
        return x
    if x.dtype == torch.bool:
        return gather_rows(x.to(torch.uint8), layout).bool()
    most = max(layout.rows)
    if len(x) < most:
        x = torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    everyone: Tensor = _Gather.apply(x)
    if min(layout.rows) == most:
        return everyone.flatten(0, 1)
    parts = zip(everyone.unbind(), layout.rows, strict=True)
    return torch.cat([part[:num_rows] for part, num_rows in parts])


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum over all ranks, with gradient; a collective. With one process, the tensor itself."""
    return x if world_size() == 1 else _Sum.apply(x)


def gather_objects(value: T) -> list[T]:
    """Objects of all ranks, in rank order; a collective."""
    everyone: list[Any] = [value]
    if world_size() > 1:
        everyone = [None] * world_size()
        dist.all_gather_object(everyone, value)
    return everyone


def gather_to_first(value: T) -> list[T] | None:
    """Objects of all ranks, in rank order, on the first rank; None on the others.

    A collective of the hosts: nothing passes through the memory of GPUs.
    """
    if world_size() == 1:
        return [value]
    everyone: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, everyone, dst=0, group=_hosts(dist.group.WORLD))
    return everyone


def object_of_first(value: T | None) -> T:
    """Object of the first rank, for which the others wait as long as it takes.

    A collective of the hosts; the value of other ranks is not used.
    """
    if world_size() > 1:
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=_patient_hosts(dist.group.WORLD))
        (value,) = holder
    return cast(T, value)


def any_rank(value: bool) -> bool:
    """Whether a value is true on any rank; a collective of the hosts, which waits for no GPU."""
    if world_size() == 1:
        return value
    votes = torch.tensor(int(value))
    dist.all_reduce(votes, group=_hosts(dist.group.WORLD))
    return bool(votes)


def of_first_rank(value: float) -> float:
    """Value of the first rank; a collective of the hosts, which waits for no GPU."""
    if world_size() == 1:
        return value
    number = torch.tensor(value, dtype=torch.float64)
    dist.broadcast(number, 0, group=_hosts(dist.group.WORLD))
    return float(number)


@lru_cache(maxsize=1)
def _hosts(world: Any) -> Any:
    """Group of all ranks whose back end needs no GPU; a collective at its first call."""
    takes_cpu_tensors = dist.get_backend(world) in ("gloo", "mpi", "fake")
    wait = timedelta(minutes=HANG_MINUTES)
    return world if takes_cpu_tensors else dist.new_group(backend="gloo", timeout=wait)


@lru_cache(maxsize=1)
def _patient_hosts(world: Any) -> Any:
    """Group of the hosts that waits for one that computes; a collective at its first call."""
    return dist.new_group(backend="gloo", timeout=LONGEST_WAIT)


def places_in_set(keys_of_ranks: Sequence[Sequence[str]]) -> list[int]:
    """Row of each item of a set, in the set's order; rank `r` of `W` has the items `r::W`.

    Some ranks repeat first items, so that all make the same number of steps. Repeated items are
    left out.

    Args:
        keys_of_ranks: Names of the rows of each rank, unique in the set.

    Returns:
        Indices into the concatenated rows of all ranks.
    """
    places, start = [], 0  # item, then its row
    for rank_index, keys in enumerate(keys_of_ranks):
        step = len(keys_of_ranks)
        places += [(rank_index + step * row, start + row) for row in range(len(keys))]
        start += len(keys)
    rows = [row for _, row in sorted(places)]
    joined = [key for keys in keys_of_ranks for key in keys]
    keys = [joined[row] for row in rows]
    counts = range(len(keys_of_ranks) - 1, 0, -1)
    repeated = (n for n in counts if all(keys[:n]) and keys[-n:] == keys[:n])
    return rows[: len(rows) - next(repeated, 0)]


def is_lost_rank(error: BaseException) -> bool:
    """Whether an exchange failed because another rank died; gloo has no error class for this."""
    return isinstance(error, dist.DistBackendError) or "gloo/transport" in str(error)


# torch.distributed.nn.functional has both, deprecated since torch 2.13 in favour of functions that
# torch 2.11 lacks.
class _Gather(torch.autograd.Function):
    """`[B, …]` → `[W, B, …]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        everyone = x.new_empty(world_size(), *x.shape)
        dist.all_gather(list(everyone.unbind()), x.contiguous())
        return everyone

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # a reduce-scatter would send half as much, but not every back end has it; these are small
        return _sum(gradient)[rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _sum(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _sum(x: Tensor) -> Tensor:
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
