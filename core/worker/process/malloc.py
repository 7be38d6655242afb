"""malloc settings of a process that trains on a CPU: freed memory is kept for the next step."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's ``mallopt``, numbered as in its header.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
#: Maximum size of tensors allocated on the heap, where they are reused.
_LARGEST_IN_HEAP = 1 << 30
_MOST_FREE = (1 << 31) - 1
_GROWTH = 64 << 20


def keep_freed_memory() -> bool:
    """Make malloc keep freed memory for the next tensor of a step.

    By default glibc returns large blocks to the system at once, and gets them back as zeroed pages. On a CPU, where
    the tensors of a layer are small, zeroing takes longer than many operations on them. Memory that is free already is
    returned first.

    Returns:
        True if this is possible, which it is with glibc.
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
    """Return the free memory of the heap to the system."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
