"""Runs independent jobs in processes that do not outlive the one that started them."""

import contextlib
import functools
import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from vatt.errors import UserError
from vatt.system.machine import num_cores

Work = Callable[[Any], Any]  # job → result; both travel between processes
Results = Generator[tuple[Any, Any], None, None]  # of jobs and what came of them


def run_jobs(
    work: Work, jobs: Sequence[Any], num_workers: int | None
) -> contextlib.closing[Results]:
    """(job, result) of every job, as they come; to be used in a `with`, which ends the processes.

    Args:
        work: Done for every job; a function at the top level of a module, or a `partial` of one.
        jobs: What it is given. Worker k does jobs k, k + n, k + 2n … in this order.
        num_workers: Processes. None: one per core at hand; 0: only this one.

    Raises:
        Exception: what `work` raised.
        UserError: a process was killed.
    """
    if num_workers is None:
        num_workers = num_cores()
    if num_workers == 0:
        return contextlib.closing((job, work(job)) for job in jobs)
    return contextlib.closing(_run_in_processes(work, jobs, min(num_workers, len(jobs))))


def _run_in_processes(work: Work, jobs: Sequence[Any], num_workers: int) -> Results:
    context = multiprocessing.get_context("spawn")  # a fork of torch's threads can deadlock
    workers: dict[Connection, BaseProcess] = {}
    try:
        for first in range(num_workers):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (work, jobs[first::num_workers], sender)
            workers[receiver] = context.Process(target=_run_share, args=arguments, daemon=True)
            workers[receiver].start()
            sender.close()  # else the end of the worker would not end the pipe
        yield from _receive(workers)
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.join()


def _receive(workers: dict[Connection, BaseProcess]) -> Results:
    running = set(workers)
    while running:
        ready = wait(list(running))
        for receiver in [connection for connection in running if connection in ready]:
            try:
                job, result = receiver.recv()
            except EOFError:
                running.remove(receiver)
                _check_exit(workers[receiver])
                continue
            if isinstance(result, Exception):
                raise result
            yield job, result


def _check_exit(worker: BaseProcess) -> None:
    worker.join()
    if worker.exitcode:
        raise UserError(
            f"a worker process ended with exit code {worker.exitcode}; was it killed for lack of "
            "memory? Fewer num_workers need less"
        )


def _run_share(work: Work, jobs: Sequence[Any], sender: Connection) -> None:
    """One process: does its jobs and tells of each; ends quietly when nobody listens any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first acts
    send = functools.partial(_send, sender)
    for job in jobs:
        try:
            result = work(job)
        except Exception as error:
            send((job, error))
            return
        if not send((job, result)):
            return


def _send(sender: Connection, message: tuple[Any, Any]) -> bool:
    try:
        sender.send(message)
    except BrokenPipeError:
        return False
    return True
