"""Limits that the operating system puts on a process which reads what comes from outside.

They hold for all that it does, in Python and in libraries alike: a file, a template or a tokenizer that asks for more
ends its reader, and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator

#: Most bytes that a reader of files and templates may have. The largest tokenizer in use takes about half a gigabyte.
MEMORY = 2 << 30
#: Processor time of one piece of work, in seconds.
SECONDS = 10
#: Seconds between the two ways of ending a piece of work.
_GRACE = 3
#: Seconds after which work that goes on all the same is interrupted once more.
_AGAIN = 0.5

_is_confined = False


def confine(memory: int = MEMORY) -> None:
    """Bound this process for the rest of its life.

    It may have ``memory`` bytes, or half of what the machine has where that is less; it leaves no core file; and it is
    the first to be ended where the machine itself runs out of memory, before a run.

    Args:
        memory: Bytes that are written to (``RLIMIT_DATA``); the address space that allocators reserve does not matter.
    """
    global _is_confined
    _lower(resource.RLIMIT_DATA, min(memory, _half_of_memory()))
    _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    _is_confined = True


def is_confined() -> bool:
    """Whether this process has been bounded, so that it may read what comes from outside by itself."""
    return _is_confined


class TimeLimitError(BaseException):
    """A piece of work has taken more processor time than it may.

    Not an ``Exception``, so that what guards against the mistakes of a template does not take it for one.
    """


@contextlib.contextmanager
def cpu_limit(seconds: float = SECONDS, *, kills: bool = True) -> Iterator[None]:
    """Processor time for a piece of work, of all threads together; what other processes take does not count.

    Args:
        seconds: How much. Beyond it :class:`TimeLimitError` is raised between two steps of Python, in the main thread;
            what another thread does is only bounded by ``kills``.
        kills: Have the kernel end the process (SIGXCPU) some seconds later, as a library may not come back to Python.

    Raises:
        TimeLimitError: If it takes more.
    """
    before, most = resource.getrlimit(resource.RLIMIT_CPU)
    if kills:
        last = math.ceil(time.process_time() + seconds + _GRACE)
        resource.setrlimit(resource.RLIMIT_CPU, (last if most == resource.RLIM_INFINITY else min(last, most), most))
    try:
        if threading.current_thread() is threading.main_thread():
            with _timer(seconds):
                yield
        else:
            yield
    finally:
        if kills:
            resource.setrlimit(resource.RLIMIT_CPU, (before, most))


@contextlib.contextmanager
def _timer(seconds: float) -> Iterator[None]:
    # One limit may lie within another, whose rest is what counts again afterwards.
    left, _ = signal.getitimer(signal.ITIMER_PROF)
    handler = signal.signal(signal.SIGPROF, _interrupt)
    try:
        # Again and again: where the interpreter is at the end of an object's life, it drops what is raised.
        signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN)
        yield
    finally:
        while True:
            try:
                signal.setitimer(signal.ITIMER_PROF, left, _AGAIN if left else 0)
                signal.signal(signal.SIGPROF, handler)
                break
            except TimeLimitError:
                continue


@contextlib.contextmanager
def growth_limit(memory: int = MEMORY) -> Iterator[None]:
    """Memory for a piece of work in a process that may have more in all: what it has now and so much.

    Args:
        memory: Bytes; half of what the machine has where that is less.
    """
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit_growth(memory)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def limit_growth(memory: int) -> None:
    """Bound this process to what it has now and so many bytes, or half of what the machine has where that is less."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + min(memory, _half_of_memory())
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _interrupt(_: int, __: object) -> None:
    raise TimeLimitError


def _data_bytes() -> int:
    """What RLIMIT_DATA counts of this process."""
    with open("/proc/self/statm", encoding="ascii") as file:
        # Data and stack together, the sixth number, in pages.
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _lower(kind: int, limit: int) -> None:
    _, most = resource.getrlimit(kind)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (limit, limit))
