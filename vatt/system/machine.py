"""Properties of this machine."""

import os


def num_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; in a container often fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
