"""Attempts of a reader that the file it reads has taken over. Each is called in the sandbox."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from core.sandbox import seccomp

_libc = ctypes.CDLL(None, use_errno=True)
_COLUMN = 1 if os.uname().machine == "aarch64" else 0


def try_all(named: Path, other: Path, written: Path, asker: int) -> dict[str, str]:
    """Name of the error of each attempt; ``done`` if it succeeds.

    Args:
        named: A file that may be read.
        other: A file of the same user that may not.
        written: A path that does not exist, in a directory that may not be written to.
        asker: The process that asks.
    """
    return {name: _outcome(attempt) for name, attempt in _attempts(named, other, written, asker).items()}


def _attempts(named: Path, other: Path, written: Path, asker: int) -> dict[str, Callable[[], object]]:
    return {
        "read another file": other.read_bytes,
        "read another file in a thread": lambda: _in_thread(other.read_bytes),
        "list another directory": lambda: os.listdir(other.parent),
        "read the asker's variables": Path(f"/proc/{asker}/environ").read_bytes,
        "read the asker's memory map": Path(f"/proc/{asker}/maps").read_bytes,
        "write a new file": lambda: written.write_text("x"),
        "write the file that it reads": lambda: named.write_text("x"),
        "truncate another file": lambda: os.truncate(other, 0),
        "remove another file": other.unlink,
        "rename another file": lambda: other.rename(written),
        "make a directory": written.mkdir,
        "link another file": lambda: os.link(other, written),
        "open another file to all": lambda: other.chmod(0o777),
        "date another file": lambda: os.utime(other, (0, 0)),
        "give another file away": lambda: os.chown(other, -1, -1),
        "connect": lambda: socket.create_connection(("127.0.0.1", 9)),
        "listen": lambda: socket.create_server(("127.0.0.1", 0)),
        "reach a local socket": lambda: socket.socket(socket.AF_UNIX),
        "send datagrams": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
        "run a program": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
        "replace itself": lambda: os.execv("/bin/sh", ["sh", "-c", "exit 0"]),  # noqa: S606
        "trace the asker": lambda: _call(*seccomp.ALWAYS["ptrace"], 16, asker),
        "read the asker's memory": lambda: _call(*seccomp.ALWAYS["process_vm_readv"], asker),
        "limit the asker": lambda: _call(*seccomp.BY_ARGUMENTS["prlimit64"], asker, 0),
        "type into a terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),
        "make namespaces": lambda: _call(*seccomp.ALWAYS["unshare"], 0x10000000),
        "fork into namespaces": lambda: _call(*seccomp.BY_ARGUMENTS["clone"], 0x10000000 | signal.SIGCHLD),
        "make a ring": lambda: _call(*seccomp.ALWAYS["io_uring_setup"], 1),
        "use a keyring": lambda: _call(*seccomp.ALWAYS["keyctl"], 0, -3),
        "load a program into the kernel": lambda: _call(*seccomp.ALWAYS["bpf"], 0),
        "lift its limit of memory": _lift_limit,
        "mount": lambda: _call(*seccomp.ALWAYS["mount"]),
    }


def signal_asker(asker: int) -> str:
    """The outcome of a signal to the process that asks, which would do nothing."""
    return _outcome(lambda: os.kill(asker, 0))


def read(path: Path) -> str:
    """The content of a file, or the error."""
    return _outcome(lambda: path.read_text())


def late_needs() -> list[str]:
    """Failures of late work of libraries: imports, code loading, reads of the time, the machine, themselves."""
    import importlib
    import locale
    import time
    import zoneinfo

    needs: dict[str, Callable[[], object]] = {
        "modules": lambda: [importlib.import_module(name) for name in ("sqlite3", "tokenizers", "numpy", "jinja2")],
        "a time zone": lambda: zoneinfo.ZoneInfo("Europe/Berlin"),
        "local time": lambda: (time.localtime(),),
        "the locale": lambda: (locale.setlocale(locale.LC_ALL, ""),),
        "memory of this process": Path("/proc/self/statm").read_bytes,
        "processors": Path("/proc/cpuinfo").read_bytes,
        "randomness": lambda: os.close(os.open("/dev/urandom", os.O_RDONLY)),
        "a place for temporary files": lambda: (tempfile.gettempdir(),),
        "the path of a library": lambda: (ctypes.util.find_library("dl"),),
        "nothing": lambda: Path("/dev/null").write_bytes(b"x"),
        "a thread": lambda: _in_thread(lambda: None),
        "a pair of streams": lambda: (socket.socketpair(),),
        "a fork": _fork,
    }
    return [name for name, need in needs.items() if _outcome(need) != "done"]


def _lift_limit() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError as error:  # as Python has EPERM here
        raise PermissionError(errno.EPERM, "refused") from error


def _fork() -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _in_thread(work: Callable[[], object]) -> object:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return None


def _call(x86: int | None, arm: int | None, *arguments: int) -> None:
    number = (x86, arm)[_COLUMN]
    if _libc.syscall(ctypes.c_long(number or 0), *map(ctypes.c_long, (*arguments, *[0] * (6 - len(arguments))))) < 0:
        raise OSError(ctypes.get_errno(), "refused")


def _outcome(attempt: Callable[[], object]) -> str:
    try:
        result = attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return result if isinstance(result, str) else "done"
