"""Loader whose position is the number of samples read so far, over all ranks.

Lightning stores the state of rank 0's loader only, and may read it at any time. The state therefore
does not depend on ranks or workers: it counts batches that left the loader, not batches that
workers have prepared.
"""

import itertools
import math
import multiprocessing
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader, Dataset

from vatt.batch import Batch, MicroBatches
from vatt.data.draws import SampleRef
from vatt.data.order import GlobalOrder
from vatt.errors import UserError, VattError
from vatt.system.machine import num_cores

PRELOADED = "vatt.data.samples"  # by the server that forks worker processes


StartMethod = Literal["fork", "forkserver", "spawn"]


class PositionedLoader:
    """Loader of batches from an endless stream of samples; it can resume at any position.

    Rank `r` of `W` reads the references `r::W` of every global batch. All ranks therefore make the
    same number of steps, and a run can resume with another number of ranks or workers. Workers stay
    alive between passes. The loader has a length, because Lightning otherwise loses a batch on
    resume. It advances its position before it yields, because Lightning never exhausts a sized
    loader.

    Args:
        samples: Map-style data set over `SampleRef`; its `__getitems__` makes the batch of a list
            of references.
        order: Order of the samples; sets with weights are mixed evenly within each batch.
        batch_size: Samples per global batch, over all ranks.
        micro_batch_size: Samples per micro-batch, if a rank's share is yielded as `MicroBatches`,
            which are read separately. None: one batch.
        rank: Index of this process.
        world_size: Number of processes.
        batches_per_epoch: Batches per pass, which is Lightning's nominal epoch. None: as many whole
            batches as all sets give.
        num_workers: Processes that read; 0: this process.
        start_method: How the processes start: `forkserver` is safe with threads and CUDA, `fork` is
            faster.
        pin_memory: Whether to yield batches in page-locked memory.
        announce: Function that is called with each position before its batch is made.

    Raises:
        UserError: the ranks cannot share the batch size equally, or the number of workers is
            negative.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        order: GlobalOrder,
        *,
        batch_size: int,
        micro_batch_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        start_method: StartMethod = "forkserver",
        pin_memory: bool = False,
        announce: Callable[[int], object] | None = None,
    ) -> None:
        share = share_of_batch(batch_size, world_size, micro_batch_size)
        self._num_parts = None if micro_batch_size is None else share // micro_batch_size
        self.order = order
        self.order.mix_within(batch_size)
        self.batch_size = batch_size
        self.position = 0  # global samples handed out since the start of the run
        self.asked_at = 0.0  # for the last batch, by the clock of `time.perf_counter`
        self.wait_seconds = 0.0  # until it was there
        self._batches_per_epoch = batches_per_epoch or max(1, len(order) // batch_size)
        self._batches_in_pass = 0
        self._resumed = False
        self._stream: Iterator[Any] | None = None
        offsets = range(rank, batch_size, world_size)
        size = micro_batch_size or share
        parts = [offsets[place : place + size] for place in range(0, share, size)]
        self._batches = _GlobalBatches(order, batch_size, parts, announce)
        # two steps are read in advance, since a step waits for the last of its parts
        per_worker = max(2, math.ceil(2 * len(parts) / num_workers)) if num_workers > 0 else None
        self._loader = open_loader(
            samples,
            self._batches,
            num_workers=num_workers,
            start_method=start_method,
            pin_memory=pin_memory,
            prefetch_factor=per_worker,
        )

    def __len__(self) -> int:
        """Batches of a pass."""
        return self._batches_per_epoch

    def __iter__(self) -> Iterator[Any]:
        """One pass, or the rest of one after a resume; begins with the first request."""
        if not self._resumed:
            self._batches_in_pass = 0
        self._resumed = False
        if self._stream is None:
            self._batches.start = self.position
            self._stream = iter(self._loader)
        last = False
        while not last:
            self.asked_at = time.perf_counter()
            batch = self._next_share()
            self.wait_seconds = time.perf_counter() - self.asked_at
            last = self._batches_in_pass + 1 >= len(self)
            self._batches_in_pass = 0 if last else self._batches_in_pass + 1
            self.position += self.batch_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Position in the order; it is the same on every rank and for any number of ranks."""
        return {
            "position": self.position,
            "batches_in_pass": self._batches_in_pass,
            "order": self.order.fingerprint(),
            "mixed_within": self.order.mixed_within,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes at a saved position; the next pass is the rest of the interrupted one.

        Sets are mixed as they were, also with another batch size: no sample is lost or repeated.
        """
        self.order.mix_within(state.get("mixed_within"))  # earlier versions did not write it
        if state["order"] != self.order.fingerprint():
            self.order.mix_within(self.batch_size)
            warnings.warn(
                "the training sets, their weights or data.seed are not those of the checkpoint: "
                f"the run goes on at position {state['position']} of another order, so samples may "
                "come again or be missed",
                stacklevel=2,
            )
        self.close()
        self.position = state["position"]
        self._batches_in_pass = state["batches_in_pass"] % len(self)
        self._resumed = True

    def close(self) -> None:
        """Stops the workers; a later pass starts new ones at the same position."""
        self._stream = None

    def _next_share(self) -> Any:
        if self._num_parts is None:
            return self._next_batch()
        parts = tuple(self._next_batch() for _ in range(self._num_parts))
        return MicroBatches(parts=parts, device=parts[0].device)

    def _next_batch(self) -> Any:
        assert self._stream is not None, "the loader was closed during a pass"
        try:
            return raise_if_error(next(self._stream))
        except BaseException:
            self.close()
            raise


@dataclass
class _GlobalBatches:
    """The references of one rank, (micro-)batch by batch, from `start` on.

    It has no reference to the loader: workers whose iterator is part of a reference cycle take five
    seconds each to end, because the garbage collector closes their queues first.
    """

    order: GlobalOrder
    batch_size: int
    parts: Sequence[range]  # places in a global batch of each (micro-)batch
    announce: Callable[[int], object] | None
    start: int = 0

    def __iter__(self) -> Iterator[list[SampleRef]]:
        for start in itertools.count(self.start, self.batch_size):
            if self.announce is not None:
                self.announce(start)
            for part in self.parts:
                yield [self.order.ref(start + offset) for offset in part]


def share_of_batch(batch_size: int, world_size: int, micro_batch_size: int | None = None) -> int:
    """Number of samples of a global batch that each rank reads.

    Raises:
        UserError: the ranks or micro-batches cannot share the batch equally.
    """
    share, rest = divmod(batch_size, world_size)
    if batch_size < 1 or rest:
        raise UserError(
            f"batch_size is global: {batch_size} must be a multiple of the {world_size} ranks"
        )
    if micro_batch_size is not None and (micro_batch_size < 1 or share % micro_batch_size):
        raise UserError(
            f"each of {world_size} ranks has {share} clips of a batch of {batch_size}: "
            f"micro_batch_size must divide them, got {micro_batch_size}"
        )
    return share


def open_loader(
    samples: Dataset[Any],
    batches: Iterable[list[Any]],
    *,
    num_workers: int,
    start_method: StartMethod,
    **options: Any,
) -> DataLoader[Any]:
    """Torch loader whose worker processes make batches.

    Args:
        samples: Data set; its `__getitems__` makes the batch of a list of indices.
        batches: Indices of each batch.
        num_workers: Processes that read; 0: this process.
        start_method: How the processes start.
        options: Further options of `DataLoader`.

    Returns:
        The loader; pass its batches through `raise_if_error`.

    Raises:
        UserError: the number of workers is negative.
    """
    return DataLoader(
        _ErrorsAsValues(samples),
        batch_sampler=batches,
        collate_fn=_identity,
        num_workers=num_workers,
        multiprocessing_context=_worker_context(start_method, num_workers),
        worker_init_fn=_ignore_interrupt,
        generator=torch.Generator(),  # its own: reading must not move the global one
        **options,
    )


def usable_workers(num_workers: int) -> int:
    """Number of processes, at most one per core of this process: more slow each other down."""
    return min(num_workers, num_cores())


def raise_if_error(batch: Any) -> Any:
    """Returns a batch, or raises the error that a worker returned instead."""
    if isinstance(batch, VattError):
        raise batch
    return batch


class _ErrorsAsValues(Dataset[Any]):
    """Returns errors as values; one raised in a worker would arrive inside a traceback."""

    def __init__(self, samples: Dataset[Any]) -> None:
        self._samples = samples

    def __getitems__(self, indices: list[Any]) -> Any:
        try:
            return self._samples.__getitems__(indices)  # type: ignore[attr-defined]
        except VattError as error:
            return error


def _worker_context(start_method: StartMethod, num_workers: int) -> BaseContext | None:
    """Start method of worker processes, None without workers; a fork server imports for all."""
    if num_workers < 0:
        raise UserError(f"data.num_workers must be at least 0, got {num_workers}")
    if num_workers == 0:
        return None
    context = multiprocessing.get_context(start_method)
    if start_method == "forkserver":
        context.set_forkserver_preload([PRELOADED])
    return context


def _ignore_interrupt(worker: int) -> None:
    """Ignores Ctrl-C, which reaches the whole process group; the training process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _identity(batch: Any) -> Any:
    """Replaces collating, which `__getitems__` has already done."""
    return batch


class EvaluationLoader:
    """Loader of a set for evaluation; rank `r` of `W` reads the records `r::W`.

    All ranks must make the same number of steps, so some ranks repeat the first records at the end;
    their keys show it. Lightning does not change loaders of other types: it does not split this one
    again, and gives no advice on workers.

    Args:
        samples: Data set; its `__getitems__` makes the batch of a list of indices.
        batch_size: Rows per rank.
        rank: Index of this process.
        world_size: Number of processes.
        num_workers: Processes that read, started for each pass; none are started if all clips are
            cached.
        start_method: How the processes start.
    """

    def __init__(
        self,
        samples: Dataset[Any],
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        start_method: StartMethod = "forkserver",
    ) -> None:
        size = len(samples)  # type: ignore[arg-type]  # torch's data sets have none in general
        num_rows = -(-size // world_size)
        rows = [(rank + world_size * row) % size for row in range(num_rows)]
        self._loader = open_loader(
            samples,
            [rows[first : first + batch_size] for first in range(0, num_rows, batch_size)],
            num_workers=num_workers,
            start_method=start_method,
        )

    def __len__(self) -> int:
        """Batches of a pass."""
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        """All records of this rank.

        Raises:
            ShardError: a shard has changed since it was opened.
        """
        return map(raise_if_error, self._loader)
