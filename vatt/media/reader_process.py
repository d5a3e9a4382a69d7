"""Set-up and limits of processes that read media."""

import resource

LIMIT_SECONDS = 60.0  # until the next packet or window; 16,384 × 8,192 pixels take a few
MEMORY_BYTES = 6 << 30  # that a process may use; the largest picture takes 0.2 GB decoded


def prepare_worker() -> None:
    """Imports what decodes, so that no sample's time goes into it, and limits the memory.

    A file of 1 MB can unpack to 1 GB. (FFmpeg then has no memory and gives an error.)
    """
    import vatt.media.clip  # noqa: F401

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
