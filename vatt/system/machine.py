"""Properties of this machine."""

import contextlib
import math
import os
from pathlib import Path


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
