"""Run folder of `vatt fit` as a model: which of its checkpoints stands for the run."""

import os
from pathlib import Path
from zipfile import is_zipfile

from vatt.errors import CheckpointError

RUN_CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"  # folder in the run folder
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
BEST_CHECKPOINT = "best.ckpt"


def last_checkpoint(run: Path) -> Path:
    """Path of a run's last checkpoint; if that is missing or cut off, of the one before it."""
    last, previous = (run / CHECKPOINTS / name for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT))
    return previous if is_zipfile(previous) and not is_zipfile(last) else last


def is_run(path: Path) -> bool:
    """Whether a path is a run folder."""
    return (path / RUN_CONFIG).is_file()


def model_in(source: str | os.PathLike[str]) -> Path:
    """Path of a model: of a run folder its best checkpoint, else its last; other paths as given.

    Raises:
        CheckpointError: the run has no checkpoint yet.
    """
    path = Path(source)
    if not is_run(path):
        return path
    best = path / CHECKPOINTS / BEST_CHECKPOINT
    checkpoint = best if is_zipfile(best) else last_checkpoint(path)
    if not checkpoint.is_file():
        name = f"{CHECKPOINTS}/{LAST_CHECKPOINT}"
        raise CheckpointError(f"the run {path} has no {name} yet: nothing is trained")
    return checkpoint
