"""Environment of a run: versions, devices, commit and command."""

import contextlib
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vatt.system.machine import num_cores

VERSIONS = ("vatt", "torch", "torchaudio", "lightning", "av", "numpy", "wandb")
GIT_SECONDS = 5.0  # a checkout on a disk that hangs must not keep a run from starting


def describe_environment(args: Sequence[str], *, world_size: int = 1) -> dict[str, Any]:
    """Environment of a run as plain values.

    Args:
        args: Arguments of the `vatt` command.
        world_size: Number of processes of the run.
    """
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        **{name: installed_version(name) for name in VERSIONS},
        "cuda": torch.version.cuda,
        "platform": platform.platform(),
        "command": shlex.join(["vatt", *args]),
        "git_commit": git_commit(Path(__file__).parent),
        "devices": devices or [f"{num_cores()} cores of {_processor()}"],
        "world_size": world_size,
    }


def git_commit(folder: Path) -> str | None:
    """Commit of a checkout, with `-dirty` if files differ; None for other folders.

    A folder that the surrounding checkout does not track, such as an environment, has no commit.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files", "--", "."):
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *args: str) -> str | None:
    """The output of git; None if it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *args],
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def installed_version(package: str) -> str | None:
    """Version of a package; None: not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    """Name of the CPU on Linux; elsewhere its architecture."""
    with contextlib.suppress(OSError):
        if match := re.search("^model name.*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M):
            return match[1]
    return platform.machine()
