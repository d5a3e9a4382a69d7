"""Parallel work in processes: results in order, even if an item hangs or crashes.

A file can make FFmpeg hang or crash. Each process therefore has its own pipe, and can be killed and
replaced without affecting the others.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

TELL_SECONDS = 1.0  # between two signs of life
ALIVE, RESULT, ERROR = "alive", "result", "error"


@dataclass(frozen=True)
class Lost:
    """Replaces a result that could not be computed.

    Args:
        reason: What happened to the process, or the fault that the function reported.
    """

    reason: str


@contextlib.contextmanager
def results_in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    limit_seconds: float | None = None,
    prepare: Callable[[], object] | None = None,
    most_ahead: int | None = None,
) -> Iterator[Iterator[Result | Lost]]:
    """Calls a function for each item in worker processes, which always end with the block.

    Args:
        function: Function of a module, which the processes import by name.
        items: Small items; items and results are sent through pipes.
        num_workers: Number of processes; 0 calls the function in this process, without limits.
        limit_seconds: Time without a sign of life (`tell_alive`) after which a process is killed.
        prepare: Function that each process calls once before time counts, for slow imports.
        most_ahead: Maximum number of results that are being computed or wait for an earlier one,
            which limits their memory. None: no limit.

    Returns:
        Iterator over the results in the order of the items. Processes continue while the caller
        handles a result. If `items` is exhausted while results are still due, it is asked again
        after each of them: a result may have added items.
    """
    if not num_workers:
        yield map(function, items)
        return
    pool = _Pool(function, num_workers, limit_seconds, prepare, most_ahead)
    try:
        yield pool.results(items)
    finally:
        pool.end()


def tell_alive() -> None:
    """Restarts the time limit of the current item; long functions call it from time to time."""
    if _Here.pipe is not None and time.monotonic() - _Here.told >= TELL_SECONDS:
        _Here.told = time.monotonic()
        _Here.pipe.send((ALIVE, None))


class _Here:
    """State of a worker process: the pipe to its parent."""

    pipe: Connection | None = None
    told = 0.0


def _work(
    pipe: Connection, function: Callable[[Any], Any], prepare: Callable[[], object] | None
) -> None:
    """Loop of a worker process, until the parent closes the pipe or ends."""
    _Here.pipe = pipe
    with contextlib.suppress(EOFError, OSError):
        try:
            if prepare is not None:
                prepare()
            while True:
                item = pipe.recv()
                _Here.told = time.monotonic()
                pipe.send((ALIVE, None))
                pipe.send((RESULT, function(item)))
        except (EOFError, BrokenPipeError):
            raise
        except Exception as error:  # raised again in the parent
            pipe.send((ERROR, error))


class _Worker:
    """A process with at most one item."""

    def __init__(
        self, function: Callable[[Any], Any], prepare: Callable[[], object] | None
    ) -> None:
        context = get_context("spawn")
        self.pipe, child_pipe = context.Pipe()
        self.process = context.Process(
            target=_work, args=(child_pipe, function, prepare), daemon=True
        )
        # Ctrl-C reaches the whole group of processes, and is the parent's to act on. (The tracker
        # would be started with the first process, and lifts the block when it is.)
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            child_pipe.close()
        self.number = -1  # of its item
        self.deadline: float | None = None  # none while it prepares

    def give(self, number: int, item: Any) -> None:
        self.number, self.deadline = number, None
        with contextlib.suppress(OSError):  # it is dead, and its pipe will say so
            self.pipe.send(item)

    def end(self) -> None:
        self.process.kill()
        self.process.join(1.0)  # a process that waits for a dead disk cannot even be killed
        self.pipe.close()


@dataclass
class _Pool:
    function: Callable[[Any], Any]
    num_workers: int
    limit_seconds: float | None
    prepare: Callable[[], object] | None
    most_ahead: int | None
    num_given: int = 0  # items
    num_taken: int = 0  # results
    busy: list[_Worker] = field(default_factory=list)
    idle: list[_Worker] = field(default_factory=list)

    def end(self) -> None:
        for worker in self.busy + self.idle:
            worker.end()

    def results(self, items: Iterable[Any]) -> Iterator[Any]:
        jobs = enumerate(items)
        done: dict[int, Any] = {}
        while True:
            self._hand_out(jobs)
            if not self.busy:
                return
            done.update(self._collect())
            while self.num_taken in done:
                self._hand_out(jobs)  # nobody waits while a result is looked at
                result = done.pop(self.num_taken)
                self.num_taken += 1
                yield result

    def _has_room(self) -> bool:
        ahead = self.num_given - self.num_taken
        return len(self.busy) < self.num_workers and (
            self.most_ahead is None or ahead < self.most_ahead
        )

    def _hand_out(self, jobs: Iterator[tuple[int, Any]]) -> None:
        while self._has_room() and (job := next(jobs, None)) is not None:
            self.num_given += 1
            worker = self.idle.pop() if self.idle else _Worker(self.function, self.prepare)
            self.busy.append(worker)
            worker.give(*job)

    def _collect(self) -> Iterator[tuple[int, Any]]:
        """Waits until something happens; results by the numbers of their items."""
        now = time.monotonic()
        deadlines = [worker.deadline for worker in self.busy if worker.deadline is not None]
        timeout = max(0.0, min(deadlines) - now) if deadlines else None
        ready = wait([worker.pipe for worker in self.busy], timeout)
        now = time.monotonic()
        for worker in tuple(self.busy):
            if worker.pipe in ready:
                yield from self._receive(worker, now)
            elif worker.deadline is not None and worker.deadline <= now:
                worker.end()
                self.busy.remove(worker)
                yield worker.number, Lost(f"gave no answer within {self.limit_seconds:g} s")

    def _receive(self, worker: _Worker, now: float) -> Iterator[tuple[int, Any]]:
        try:
            kind, value = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(1.0)
            code = worker.process.exitcode or 0
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            worker.end()
            self.busy.remove(worker)
            yield worker.number, Lost(f"crashed its process ({cause})")
            return
        if kind == ERROR:
            raise value
        if kind == ALIVE:
            worker.deadline = None if self.limit_seconds is None else now + self.limit_seconds
            return
        self.busy.remove(worker)
        self.idle.append(worker)
        yield worker.number, value
