"""Properties of this machine."""

import contextlib
import math
import os
from pathlib import Path

SPIN_COUNT = "GOMP_SPINCOUNT"  # turns in which a thread of OpenMP looks for the others of its team


def limit_spinning() -> None:
    """Makes threads of OpenMP sleep soon while they wait for each other; a user's settings win.

    Must be called before torch is loaded: its OpenMP, libgomp in the wheels for Linux, reads the
    environment then. By default a thread spins some ms, and keeps a core from the thread that it
    waits for if other programs run. Median seconds of a step of the demo's model on two cores:

    ============================  =======  ===========  ===========
    setting                       no load  2 processes  4 processes
    ============================  =======  ===========  ===========
    default (300,000 turns)          0.78         6.74        10.34
    10,000 turns                     0.76         1.71         2.52
    OMP_WAIT_POLICY=passive          0.86         1.17         1.93
    ============================  =======  ===========  ===========
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(SPIN_COUNT, "10000")


def num_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Number of processor cores that this process may use, within the quota of its container.

    Args:
        cgroup: Folder of the control group; Linux only.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    # `docker --cpus` and Kubernetes limit the time, which cgroups state in version 2 or version 1
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):  # ValueError: `max`, no limit
            quota, period = map(int, " ".join((cgroup / f).read_text() for f in files).split())
            if quota > 0:  # -1: no limit
                return min(cores, math.ceil(quota / period))
    return cores


def free_memory(
    cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")
) -> int | None:
    """Bytes of memory that this process can still take, within the limit of its container.

    Args:
        cgroup: Folder of the control group; Linux only.
        meminfo: Figures of the kernel; Linux only.

    Returns:
        None if unknown.
    """
    free = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = meminfo.read_text().partition("MemAvailable:")[2]
        free.append(int(line.split()[0]) * 1024)  # kB
    # version 2 of cgroups, or version 1; pages of files that nobody uses can be taken
    of_version = {
        "memory.": ("max", "current", "inactive_file"),
        "memory/memory.": ("limit_in_bytes", "usage_in_bytes", "total_inactive_file"),
    }
    for prefix, (limit, used, unused) in of_version.items():
        with contextlib.suppress(OSError, ValueError):  # ValueError: `max`, no limit
            most, taken = (int((cgroup / f"{prefix}{name}").read_text()) for name in (limit, used))
            lines = (cgroup / f"{prefix}stat").read_text().splitlines()
            pages = dict(line.split() for line in lines)
            free.append(most - taken + int(pages.get(unused, 0)))
    return max(0, min(free)) if free else None
