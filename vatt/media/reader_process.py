"""Set-up and limits of processes that read media."""

import resource

LIMIT_SECONDS = 60.0  # until the next packet or window; 16,384 × 8,192 pixels take a few
MEMORY_BYTES = 6 << 30  # that a process may use; the largest picture takes 0.2 GB decoded


def prepare_worker() -> None:
    """Prepares a process that decodes samples: limits its memory and imports the decoder.

    The import then does not count in the time of the first sample. The limit matters because a file
    of 1 MB can unpack to 1 GB; FFmpeg reports an error if it gets no memory.
    """
    import vatt.media.clip  # noqa: F401

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
