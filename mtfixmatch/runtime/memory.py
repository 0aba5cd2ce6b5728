"""Let a process on a CPU keep the memory of the tensors it has freed."""

import ctypes
import os

# Parameters of mallopt, from glibc's malloc.h.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
NEVER = -1  # as a TRIM_THRESHOLD
# Bytes by which the process grows when its free memory does not suffice.
GROWTH = 64 * 2**20
# Environment variables by which a user chooses how memory is allocated.
CHOSEN_BY = (
    *("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_"),
    *("MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_"),
)


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensors instead of giving it back to the system.

    By default a tensor of some MiB is new memory of the system each time, which clears it page by
    page: some hundred MiB in each step of a training. Nothing changes if the user has chosen how
    memory is allocated (`CHOSEN_BY`), or without glibc.

    Returns:
        Whether freed memory is kept.
    """
    if any(name in os.environ for name in CHOSEN_BY):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:  # musl and macOS have none
        return False
    settings = {MMAP_MAX: 0, TRIM_THRESHOLD: NEVER, TOP_PAD: GROWTH}
    return all([mallopt(name, value) for name, value in settings.items()])
