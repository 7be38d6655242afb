"""Confinement of processes that read untrusted input: limits on memory and time, and walls around files and calls.

The operating system enforces both, for Python and native libraries alike. A file, template or tokenizer that takes too
much memory or time ends its reader and nothing else. A file that takes over its reader through a hole in a library
reaches neither the user's files nor the network, other programs or other processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import math
import os
import resource
import signal
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from core.sandbox import landlock, seccomp
from core.sandbox.rights import NO_RIGHTS, Rights

#: Memory limit of a reader of files and templates, in bytes. The largest known tokenizer takes half a gigabyte.
MEMORY = 2 << 30
#: CPU time limit of a piece of work, in seconds.
SECONDS = 10
#: Seconds between the soft and the hard end of a piece of work.
_GRACE = 3
#: Seconds until work that continues is interrupted again.
_AGAIN = 0.5
#: Seconds by which the timer of the kernel and the clock may differ.
_TICK = 0.02

#: ``PR_SET_NO_NEW_PRIVS``: this process and its children gain no rights from setuid programs or file capabilities.
_SET_NO_NEW_PRIVS = 38
#: ``_LINUX_CAPABILITY_VERSION_3``, and CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
_CAPABILITY_VERSION, _KEPT_CAPABILITIES = 0x20080522, 0b1111
#: Environment variable and value that turn the walls off, for systems where they cause trouble.
VARIABLE, WITHOUT = "LOCALTUNE_SANDBOX", "limits"
_OFF = f"switched off by {VARIABLE}={WITHOUT}"
_REASONS = {
    errno.ENOSYS: "this kernel does not have it",
    errno.EINVAL: "this kernel does not have it",
    errno.EOPNOTSUPP: "it is switched off in this kernel",
    errno.EPERM: "a container or another sandbox refuses it",
    errno.EACCES: "a container or another sandbox refuses it",
}


@dataclass(frozen=True)
class Walls:
    """Walls around a process: for each, the reason why it does not hold, or empty text."""

    files: str
    calls: str


_walls: Walls | None = None


def confine(memory: int = MEMORY, rights: Rights = NO_RIGHTS) -> None:
    """Confine this process and its children permanently.

    It may allocate ``memory`` bytes, or half of the machine's memory if that is less; it leaves no core file; and the
    OOM killer takes it before a run. It can only use the files in its rights and those of the interpreter and the
    libraries (Landlock), and cannot make system calls that no reader needs (seccomp). Open descriptors stay usable. If
    the kernel or a container refuses a wall, the process continues without it, which ``doctor`` reports.

    Call it before starting threads: before version 8, Landlock does not apply to running threads.

    Args:
        memory: Bytes of writable memory (``RLIMIT_DATA``); address space reserved by allocators does not count.
        rights: Its rights.
    """
    limit_process(min(memory, machine_memory() // 2))
    enclose(rights)


def limit_process(memory: int) -> None:
    """Set only the limits of :func:`confine`.

    Args:
        memory: Bytes of writable memory.
    """
    _lower(resource.RLIMIT_DATA, memory)
    _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def enclose(rights: Rights) -> None:
    """Raise only the walls of :func:`confine`."""
    global _walls
    if os.environ.get(VARIABLE) == WITHOUT:
        _walls = Walls(_OFF, _OFF)
        return
    # Some libraries ask for a temporary directory when imported. Python fails if it finds no writable one.
    tempfile.tempdir = next(iter(rights.writes), os.devnull)
    # Without a compiler in PATH, ctypes does not write a temporary file to find a library.
    os.environ["PATH"] = ""
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_capabilities(libc)
    libc.prctl(_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    # Landlock first, as it must open the allowed files.
    _walls = Walls(_attempt(landlock.restrict, rights), _attempt(seccomp.restrict, rights))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drop the capabilities of root other than reading and owning files, such as reading the memory of processes."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    held = ctypes.create_string_buffer(struct.calcsize("=6I"))
    if libc.capget(header, held) == 0:
        _, permitted, *_ = struct.unpack("=6I", held.raw)
        kept = permitted & _KEPT_CAPABILITIES
        libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))


def _attempt(restrict: Callable[[Rights], None], rights: Rights) -> str:
    try:
        restrict(rights)
    except OSError as error:
        return _REASONS.get(error.errno or 0) or error.strerror or str(error)
    return ""


def is_confined() -> bool:
    """True if this process is confined, so it may read untrusted input itself."""
    return _walls is not None


def walls() -> Walls:
    """Walls around this process, which must be confined."""
    if _walls is None:
        raise ValueError("This process is not confined.")
    return _walls


class TimeLimitError(BaseException):
    """A piece of work exceeded its CPU time.

    Not an ``Exception``, so handlers for template errors do not catch it.
    """


@contextlib.contextmanager
def cpu_limit(
    seconds: float = SECONDS, *, kills: bool = True, check: Callable[[], None] | None = None
) -> Iterator[None]:
    """Limit the CPU time of a piece of work, of all threads of this process together.

    Args:
        seconds: The limit. Beyond it :class:`TimeLimitError` is raised in the main thread, between two bytecode
            instructions; other threads are limited only by ``kills``.
        kills: Let the kernel end the process (SIGXCPU) some seconds later, in case a native library does not return.
        check: Called in the main thread, twice per second of CPU time, between two bytecode instructions. An exception
            from it ends the work, past all its handlers, and is raised here.

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
    # Limits may be nested: restore the rest of the outer limit afterwards.
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
        # Repeatedly, since exceptions in finalizers are dropped.
        signal.setitimer(signal.ITIMER_PROF, seconds if check is None else min(seconds, _AGAIN), _AGAIN)
        yield
    finally:
        while True:
            try:
                signal.setitimer(signal.ITIMER_PROF, 0)
                # Discards a signal that is still on its way: the default action would end the process.
                signal.signal(signal.SIGPROF, signal.SIG_IGN)
                break
            except TimeLimitError:
                continue
        signal.signal(signal.SIGPROF, handler)
        signal.setitimer(signal.ITIMER_PROF, left, _AGAIN if left else 0)


@contextlib.contextmanager
def growth_limit(memory: int = MEMORY) -> Iterator[None]:
    """Limit the memory growth of a piece of work in a process with a larger limit overall.

    Args:
        memory: Bytes on top of current use; half of the machine's memory if that is less.
    """
    before, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit_growth(memory)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (before, most))


def limit_growth(memory: int, *, most: int | None = None) -> None:
    """Limit the memory growth of this process.

    Args:
        memory: Bytes on top of current use.
        most: Upper bound of ``memory``; by default half of the machine's memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + min(memory, machine_memory() // 2 if most is None else most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_bytes() -> int:
    """Memory of this process as counted by RLIMIT_DATA, in bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        # Data and stack together, the sixth number, in pages.
        return int(file.read().split()[5]) * os.sysconf("SC_PAGE_SIZE")


def machine_memory() -> int:
    """Memory of this machine, in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _lower(kind: int, limit: int) -> None:
    _, most = resource.getrlimit(kind)
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(kind, (limit, limit))
