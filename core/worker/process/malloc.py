"""malloc settings of a process that trains on a CPU: freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's ``mallopt``, as its header numbers them.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
#: Tensors up to this size come from the heap, and are found there again a moment later.
_LARGEST_IN_HEAP = 1 << 30
_MOST_FREE = (1 << 31) - 1
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Have malloc keep what is freed, for the next tensor of a step.

    By default glibc gives large blocks back to the system at once, and gets them again as pages of zeros: on a CPU,
    where the tensors of a layer are small and its arithmetic fast, clearing these pages takes longer than many an
    operation on them. What is free already is given back before.

    Returns:
        Whether this is possible: it is with glibc, not with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim") or not hasattr(libc, "mallopt"):
        return False
    libc.malloc_trim(0)
    wanted = ((_M_MMAP_THRESHOLD, _LARGEST_IN_HEAP), (_M_TRIM_THRESHOLD, _MOST_FREE), (_M_TOP_PAD, _GROWTH))
    return {libc.mallopt(name, value) for name, value in wanted} == {1}


def give_back() -> None:
    """Give what is free in the heap back to the system."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
