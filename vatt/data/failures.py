"""Unreadable files: counted over all worker processes, and replaced by other samples."""

import dataclasses
import logging
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch

from vatt.data.draws import SampleRef
from vatt.errors import MediaError, UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")
STARTS_PER_FILE = 2  # the planned start and one other, before the next sample is taken
FILES_PER_SAMPLE = 10  # so many unreadable files in a row are no accident
FEW_FILES = 3  # that may be unreadable in any collection: one of 14 is already 7 %
MANY_FILES = 100  # enough to tell the rate before all files were read
NUM_NAMED = 5
OPTION = "--data.init_args.max_failure_rate"


class TooManyFailuresError(UserError):
    """Too many files are unreadable."""


class ReadCounts:
    """Files that were read and that failed, in memory that worker processes share.

    A file counts once, however often it is drawn, so the result depends neither on the number of
    workers nor on the length of the run.

    Args:
        max_failure_rate: Share of the files above which `add_failure` raises; a few failures are
            always tolerated.
        num_files: Number of files.

    Raises:
        UserError: the rate is out of range.
    """

    def __init__(self, max_failure_rate: float, num_files: int) -> None:
        if not 0 <= max_failure_rate <= 1:
            raise UserError(f"data.max_failure_rate must be in [0, 1], got {max_failure_rate}")
        self.max_failure_rate = max_failure_rate
        self.num_files = num_files
        self._is_read = torch.zeros(num_files, dtype=torch.bool).share_memory_()
        self._has_failed = torch.zeros(num_files, dtype=torch.bool).share_memory_()
        self._last: dict[str, tuple[MediaError, int]] = {}  # by path, with the number of failures

    @property
    def num_read(self) -> int:
        """Number of files read, whether they failed or not, since this run's processes started."""
        return int(np.count_nonzero(self._is_read.numpy()))

    @property
    def num_failed(self) -> int:
        """Number of files of which a clip could not be read as planned."""
        return int(np.count_nonzero(self._has_failed.numpy()))

    def add_read(self, file: int) -> None:
        """Notes that a file, by its index, is read."""
        self._is_read[file] = True

    def add_failure(self, file: int, error: MediaError) -> None:
        """Notes that a clip of a file could not be read as planned.

        Raises:
            TooManyFailuresError: the share of unreadable files exceeds `max_failure_rate`.
        """
        times = self._last.pop(error.path, (error, 0))[1] + 1
        self._last[error.path] = error, times
        while len(self._last) > NUM_NAMED:
            del self._last[next(iter(self._last))]
        if self._has_failed[file]:
            return
        self._has_failed[file] = True
        failed = self.num_failed
        if failed <= NUM_NAMED:
            logger.warning("replaced by another file in training: %s", error)
        rate = self.max_failure_rate
        if failed > max(FEW_FILES, rate * self.num_files):
            raise self._too_many(f"{failed} of {self.num_files} files")
        if failed > MANY_FILES and failed > rate * self.num_read:
            raise self._too_many(f"{failed} of the first {self.num_read} files")

    def _too_many(self, what: str) -> TooManyFailuresError:
        return self.error(
            f"{what} could not be read, more than {OPTION} {self.max_failure_rate:g} allows",
            f", or allow more of them: {OPTION} SHARE",
        )

    def error(self, what: str, remedy: str = "") -> TooManyFailuresError:
        """Error that lists the last unreadable files and says what to do."""
        named = "\n".join(
            f"  {error}{f' ({times} times)' if times > 1 else ''}"
            for error, times in self._last.values()
        )
        return TooManyFailuresError(
            f"{what}; the last of this process:\n{named}\nLook for damaged files with `vatt shards "
            f"check FOLDER` and build the shards again without them{remedy}."
        )


def read_or_replace(
    ref: SampleRef,
    size: int,
    read: Callable[[SampleRef, int], T],
    counts: ReadCounts,
    first_file: int = 0,
) -> T:
    """Reads a sample or, if it is unreadable, another sample of the same set.

    The replacement depends on the reference alone, not on earlier failures: it is the same for any
    number of workers, and after a resume.

    Args:
        ref: Sample to read.
        size: Number of samples in its set.
        read: Reads a sample: in the first attempt from its planned start, in the second from
            another start.
        counts: Counts files that were read and that failed.
        first_file: Index of the set's first file in the counts.

    Raises:
        TooManyFailuresError: more files are unreadable than allowed.
    """
    num_files = min(FILES_PER_SAMPLE, size)
    for step in range(num_files):
        sample_index = (ref.sample_index + step) % size
        chosen = dataclasses.replace(ref, sample_index=sample_index)
        counts.add_read(first_file + sample_index)
        for attempt in range(STARTS_PER_FILE):
            try:
                return read(chosen, attempt)
            except MediaError as error:
                if attempt == 0:
                    counts.add_failure(first_file + sample_index, error)
    raise counts.error(f"{num_files} files in a row could not be read")
