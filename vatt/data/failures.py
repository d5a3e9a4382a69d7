"""Unreadable clips: counted over all worker processes, and replaced by other samples."""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

from vatt.data.draws import SampleRef
from vatt.errors import MediaError, UserError

T = TypeVar("T")
STARTS_PER_FILE = 2  # the planned start and one other, before the next sample is taken
FILES_PER_SAMPLE = 10  # so many unreadable files in a row are no accident
MIN_FAILURES = 10  # a few bad clips at the start of a run are no rate
MAX_PROCESSES = 1024
NUM_NAMED = 5


class TooManyFailuresError(UserError):
    """Too many clips are unreadable."""


class ReadCounts:
    """Counts of successes and failures, in memory that worker processes share.

    Args:
        max_failure_rate: Share of failures above which `add_failure` raises.

    Raises:
        UserError: the rate is out of range.
    """

    def __init__(self, max_failure_rate: float) -> None:
        if not 0 <= max_failure_rate <= 1:
            raise UserError(f"data.max_failure_rate must be in [0, 1], got {max_failure_rate}")
        self.max_failure_rate = max_failure_rate
        self._counts = torch.zeros(MAX_PROCESSES, 2, dtype=torch.int64).share_memory_()
        self._last: list[MediaError] = []

    @property
    def successes(self) -> int:
        """Number of clips read since the processes of this run started."""
        return int(self._counts[:, 0].sum())

    @property
    def failures(self) -> int:
        """Number of clips that could not be read as planned."""
        return int(self._counts[:, 1].sum())

    def add_success(self) -> None:
        """Counts a clip that was read."""
        self._counts[_row(), 0] += 1

    def add_failure(self, error: MediaError) -> None:
        """Counts a clip that could not be read as planned.

        Raises:
            TooManyFailuresError: the share of unreadable clips exceeds `max_failure_rate`.
        """
        self._counts[_row(), 1] += 1
        self._last = [*self._last, error][-NUM_NAMED:]
        failures, attempts = self.failures, self.failures + self.successes
        if failures > MIN_FAILURES and failures > self.max_failure_rate * attempts:
            raise self.too_many(f"{failures} of {attempts} clips")

    def too_many(self, what: str) -> TooManyFailuresError:
        """Error that lists the last unreadable files and says what to do."""
        named = "\n".join(f"  {error}" for error in self._last)
        return TooManyFailuresError(
            f"{what} could not be read (max_failure_rate is {self.max_failure_rate:g}); the last "
            f"of this process:\n{named}\nLook for damaged files with `vatt shards check FOLDER` "
            "and build the shards again without them, or raise data.max_failure_rate."
        )


def _row() -> int:
    """Row of this process; if two processes added to the same number, counts would get lost."""
    worker = get_worker_info()
    return 0 if worker is None else 1 + worker.id % (MAX_PROCESSES - 1)


def read_or_replace(
    ref: SampleRef, size: int, read: Callable[[SampleRef, int], T], counts: ReadCounts
) -> T:
    """Reads a sample or, if it is unreadable, another sample of the same set.

    Args:
        ref: Sample to read.
        size: Number of samples in its set.
        read: Reads a sample: in the first attempt from its planned start, in the second from
            another start.
        counts: Counts successes and failures.

    Raises:
        TooManyFailuresError: more clips are unreadable than allowed.
    """
    num_files = min(FILES_PER_SAMPLE, size)
    for step in range(num_files):
        sample_index = (ref.sample_index + step) % size
        chosen = dataclasses.replace(ref, sample_index=sample_index)
        for attempt in range(STARTS_PER_FILE):
            try:
                sample = read(chosen, attempt)
            except MediaError as error:
                if attempt == 0:  # so that the rate is one of files, not of attempts
                    counts.add_failure(error)
            else:
                counts.add_success()
                return sample
    raise counts.too_many(f"{num_files} files in a row")
