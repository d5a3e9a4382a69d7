"""Properties of this machine."""

import os


def num_cores() -> int:
    """Processor cores that this process may use, where the system tells; else all there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux; in a container often fewer than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
