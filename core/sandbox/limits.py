"""Resource limits of the operating system for processes that read untrusted input.

They apply to Python and native libraries alike: a file, a template or a tokenizer that asks for more ends its reader,
and nothing else.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator

#: Memory limit in bytes of a reader of files and templates. The largest tokenizer in use takes about half a gigabyte.
MEMORY = 2 << 30
#: Limit of processor time of one piece of work, in seconds.
SECONDS = 10
#: Seconds between the soft and the hard end of a piece of work.
_GRACE = 3
#: Seconds after which work that goes on nevertheless is interrupted again.
_AGAIN = 0.5
#: Seconds by which the kernel's timer and the clock may differ.
_TICK = 0.02

_is_confined = False


def confine(memory: int = MEMORY) -> None:
    """Confine this process for the rest of its life.

    It may allocate ``memory`` bytes, or half of the machine's memory if that is less; it leaves no core file; and the
    kernel's OOM killer takes it first, before a run.

    Args:
        memory: Bytes of writable memory (``RLIMIT_DATA``); address space reserved by allocators does not count.
    """
    global _is_confined
    _lower(resource.RLIMIT_DATA, min(memory, _half_of_memory()))
    _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    _is_confined = True


def is_confined() -> bool:
    """Whether this process is confined, so that it may read untrusted input itself."""
    return _is_confined


class TimeLimitError(BaseException):
    """A piece of work exceeded its processor time.

    Not an ``Exception``, so that handlers for errors of a template do not catch it.
    """


@contextlib.contextmanager
def cpu_limit(
    seconds: float = SECONDS, *, kills: bool = True, check: Callable[[], None] | None = None
) -> Iterator[None]:
    """Limit the processor time of a piece of work, of all threads together; other processes do not count.

    Args:
        seconds: The limit. Beyond it :class:`TimeLimitError` is raised between two bytecode instructions, in the main
            thread; other threads are only limited by ``kills``.
        kills: Have the kernel end the process (SIGXCPU) some seconds later, as a native library may not return to
            Python.
        check: Called in the main thread twice in each second of processor time, between two bytecode instructions.
            What it raises ends the work, past all handlers of the work itself, and is raised here.

    Raises:
        TimeLimitError: If the limit is exceeded.
    """
    before, most = resource.getrlimit(resource.RLIMIT_CPU)
    if kills:
        last = math.ceil(time.process_time() + seconds + _GRACE)
        resource.setrlimit(resource.RLIMIT_CPU, (last if most == resource.RLIM_INFINITY else min(last, most), most))
    try:
        if threading.current_thread() is threading.main_thread():
            with _timer(seconds, check):
                yield
        else:
            yield
    except TimeLimitError as error:
        if check is not None and error.__cause__ is not None:
            raise error.__cause__ from None
        raise
    finally:
        if kills:
            resource.setrlimit(resource.RLIMIT_CPU, (before, most))


@contextlib.contextmanager
def _timer(seconds: float, check: Callable[[], None] | None) -> Iterator[None]:
    # Limits may be nested; afterwards the rest of the outer one applies again.
    left, _ = signal.getitimer(signal.ITIMER_PROF)
    ends = time.process_time() + seconds

    def interrupt(_: int, __: object) -> None:
        if check is not None and time.process_time() < ends - _TICK:
            try:
                check()
            except BaseException as error:
                raise TimeLimitError from error
            return
        raise TimeLimitError

    handler = signal.signal(signal.SIGPROF, interrupt)
    try:
        # Repeatedly: the interpreter drops exceptions raised in finalizers.
        signal.setitimer(signal.ITIMER_PROF, seconds if check is None else min(seconds, _AGAIN), _AGAIN)
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
    """Limit the memory growth of a piece of work in a process with a larger limit overall.

    Args:
        memory: Bytes on top of present use; half of the machine's memory if that is less.
    """
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit_growth(memory)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def limit_growth(memory: int) -> None:
    """Limit this process to its present memory plus ``memory`` bytes, or half of the machine's memory if that
    is less.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + min(memory, _half_of_memory())
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def _data_bytes() -> int:
    """Memory of this process that RLIMIT_DATA counts."""
    with open("/proc/self/statm", encoding="ascii") as file:
        # Data and stack together, the sixth number, in pages.
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _lower(kind: int, limit: int) -> None:
    _, most = resource.getrlimit(kind)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (limit, limit))
