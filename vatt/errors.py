"""Errors that a user can put right, and faults: what was left out of a result, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

SHOWN_FAULTS = 20  # in printed reports; the report objects hold all


class VattError(Exception):
    """An error that ends a command with one sentence; any other exception is a bug.

    Args:
        message: What is wrong and what to do.
        exit_code: Exit code of the command.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UserError(VattError, ValueError):
    """An argument, a setting, a file or a circumstance that the user can put right."""


class ShardError(VattError, ValueError):
    """A shard or a folder of shards that cannot be used or written."""


class CheckpointError(VattError, ValueError):
    """A checkpoint or model that is not there, is damaged, or is of a kind that is not read."""


class ConversionError(VattError, ValueError):
    """An official checkpoint that does not fit its settings, or a part that ours lacks."""


class MediaError(VattError):
    """A media file that cannot give what was asked of it.

    Args:
        path: The file, URL or a description of the source.
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
    """Something that was left out, and why.

    Args:
        where: File, sample, or line of a file.
        reason: What is wrong with it.
    """

    where: str
    reason: str

    def __str__(self) -> str:
        """`where: reason`."""
        return f"{self.where}: {self.reason}"


def fault_lines(faults: Sequence[Fault], verdict: str = "") -> list[str]:
    """The first faults as lines of a report or message, under a word such as `left out`."""
    head = f"  {verdict}: " if verdict else "  "
    lines = [f"{head}{fault}" for fault in faults[:SHOWN_FAULTS]]
    if len(faults) > SHOWN_FAULTS:
        lines.append(f"  … and {len(faults) - SHOWN_FAULTS} more")
    return lines


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean …?' for a mistyped name; "" where nothing known is near.

    Args:
        name: The mistyped name. Of a dotted one the last part counts most.
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
