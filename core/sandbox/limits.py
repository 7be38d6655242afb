"""Confinement of processes that read untrusted input: limits on what they take, and walls around what they reach.

Both are the operating system's, and apply to Python and native libraries alike. A file, a template or a tokenizer that
asks for more memory or time than any should ends its reader, and nothing else. One that takes its reader over, by a
hole in a library, finds neither the user's files nor a network, another program or another process.
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

#: Of ``prctl``: this process and its children gain no rights by running a program (setuid, file capabilities).
_SET_NO_NEW_PRIVS = 38
#: ``_LINUX_CAPABILITY_VERSION_3``, and CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER.
_CAPABILITY_VERSION, _KEPT_CAPABILITIES = 0x20080522, 0b1111
#: The environment variable that leaves the walls out, for systems that they do not get along with, and its value.
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
    """The walls around a process: of each, why it does not hold; empty where it does."""

    files: str
    calls: str


_walls: Walls | None = None


def confine(memory: int = MEMORY, rights: Rights = NO_RIGHTS) -> None:
    """Confine this process and its children for the rest of their lives.

    It may allocate ``memory`` bytes, or half of the machine's memory if that is less; it leaves no core file; and the
    kernel's OOM killer takes it first, before a run. It reads and writes only what its rights name and what the
    interpreter and the libraries read themselves (Landlock), and makes none of the system calls that no reader needs
    (seccomp). Descriptors that it has stay usable. Where the kernel or a container refuses a wall, the process goes on
    without it; ``doctor`` says so.

    Call it before threads are started: Landlock holds for those that are started later, until version 8.

    Args:
        memory: Bytes of writable memory (``RLIMIT_DATA``); address space reserved by allocators does not count.
        rights: What it may use.
    """
    limit_process(min(memory, machine_memory() // 2))
    enclose(rights)


def limit_process(memory: int) -> None:
    """Set the limits of :func:`confine` alone.

    Args:
        memory: Bytes of writable memory.
    """
    _lower(resource.RLIMIT_DATA, memory)
    _lower(resource.RLIMIT_CORE, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")


def enclose(rights: Rights) -> None:
    """Raise the walls of :func:`confine` alone."""
    global _walls
    if os.environ.get(VARIABLE) == WITHOUT:
        _walls = Walls(_OFF, _OFF)
        return
    # Libraries ask for a directory for temporary files as they are imported. Python looks for one that can be written
    # to, and fails where there is none.
    tempfile.tempdir = next(iter(rights.writes), os.devnull)
    # Where Python finds a compiler, it writes a temporary file to ask it for the path of a library.
    os.environ["PATH"] = ""
    libc = ctypes.CDLL(None, use_errno=True)
    _drop_capabilities(libc)
    libc.prctl(_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    # Landlock first, as it opens the files that it allows.
    _walls = Walls(_attempt(landlock.restrict, rights), _attempt(seccomp.restrict, rights))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Give up what root may do beyond reading and owning files: to read the memory of all processes, to lift limits."""
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
    """Whether this process is confined, so that it may read untrusted input itself."""
    return _walls is not None


def walls() -> Walls:
    """The walls around this process, which must be confined."""
    if _walls is None:
        raise ValueError("This process is not confined.")
    return _walls


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


def limit_growth(memory: int, *, most: int | None = None) -> None:
    """Limit this process to its present memory and some more.

    Args:
        memory: Bytes on top of present use.
        most: The most of them in any case; by default half of the machine's memory.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _data_bytes() + min(memory, machine_memory() // 2 if most is None else most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_bytes() -> int:
    """Memory of this process that RLIMIT_DATA counts."""
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
