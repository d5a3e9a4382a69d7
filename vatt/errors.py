"""Errors that a user can correct, and faults: things left out of a result, with reasons."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 20  # in printed reports; the report objects hold all


class VattError(Exception):
    """Error that a command reports as one sentence; any other exception is a bug.

    Args:
        message: What is wrong and what to do.
        exit_code: Exit code of the command.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(VattError, ValueError):
    """Invalid argument, setting, file or environment that the user can correct."""


class ShardError(VattError, ValueError):
    """Shard or folder of shards that cannot be used or written."""


class CheckpointError(VattError, ValueError):
    """Checkpoint or model that is missing, damaged or of an unsupported kind."""


class ConversionError(VattError, ValueError):
    """Official checkpoint that does not fit its settings, or has parts that our models lack."""


class MediaError(VattError):
    """Media file that cannot be read, or lacks the requested content.

    Args:
        path: File, URL or description of the source.
        reason: What is wrong and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.args = (path, reason)  # what pickle calls the class with, between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        """`path: reason`."""
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Fault:
    """Entry of a report: something that was left out, and the reason.

    Args:
        where: File, sample, or line of a file.
        reason: Reason why it was left out.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        """`where: reason`."""
        return f"{self.where}: {self.reason}"


def fault_lines(faults: Sequence[Fault], verdict: str = "") -> list[str]:
    """First faults as lines of a report or message, under a title such as `left out`."""
    head = f"  {verdict}: " if verdict else "  "
    lines = [f"{head}{fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  … and {len(faults) - SHOWN_FAULTS} more")
    return lines


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for a mistyped name, or "" if no known name is similar.

    Args:
        name: The mistyped name; the last part of a dotted name counts most.
        known: Names that exist.
    """
    import difflib

    names = list(known)
    by_leaf: dict[str, str] = {}
    for one in names:
        by_leaf.setdefault(one.rpartition(".")[2], one)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.85)
    if not near:
        leaves = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=1)
        near = [by_leaf[leaf] for leaf in leaves] or difflib.get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]}?" if near else ""
