"""Processes forked from one that has imported what a worker imports, which takes four seconds for each otherwise.

What :mod:`core.helper` starts as ``python -m core.worker…`` is forked: workers of runs, and the processes that measure,
answer, export. A forked process is as one that was started: its session, streams, descriptors, environment and
directory are those that were asked for, and it is a child of the test's process. Where another import path is asked
for, or a test is marked ``anew``, because it is about how a process starts or what it holds, a real one is started.

``python -m tests.forking SOCKET`` is the process that they are forked from.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

#: The environment variable of a forked worker with the fault that it is to meet, for :mod:`tests.faults.injections`.
FAULT_VARIABLE = "LOCALTUNE_TEST_FAULT"
#: Of ``prctl``: whether this process becomes the parent of descendants that have lost theirs.
_SUBREAPER = 36
#: Largest request: a command and an environment.
_LIMIT = 1 << 20
#: Most descriptors that a process is given.
_DESCRIPTORS = 16
#: Limits that a process has from the one that starts it.
_LIMITS = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_DATA, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE)
#: The Python of the tests; one that a test has put in its place is started.
_PYTHON = sys.executable
#: Where modules come from, and variables that are read as a process begins, both as this process has them.
_PATHS = {str(Path(__file__).resolve().parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))}
_BEGUN_WITH = {name: os.environ.get(name) for name in ("LD_PRELOAD", "LD_LIBRARY_PATH")}


class ForkedProcess:
    """A child of this process, as :class:`subprocess.Popen` has it.

    Args:
        pid: Of the child.
        stdin: Its standard input's other end, if it is a pipe.
        stdout: The same of its standard output.
    """

    def __init__(self, pid: int, stdin: IO[bytes] | None, stdout: IO[bytes] | None) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None
        self._turn = threading.Lock()

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it lives."""
        with self._turn:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; its exit code.

        Raises:
            subprocess.TimeoutExpired: If it lives longer.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(0.002)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``."""
        self.send_signal(signal.SIGKILL)


class Forks:
    """Forks processes; the one that it forks them from is started with the first."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Of the threads that start processes at once.
        self._turn = threading.Lock()
        #: Whether all are started, and none is forked.
        self.anew = False

    @classmethod
    def beside(cls, above: int) -> Forks:
        """In a forked process, before it does anything: what its own helpers are forked from.

        Args:
            above: The descriptor of its socket is larger.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            _close_all_but({0, 1, 2, theirs.fileno()})
            _serve(theirs)
            os._exit(0)
        theirs.close()
        made = cls()
        made._socket = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, above + 1))
        ours.close()
        return made

    def fileno(self) -> int:
        """The descriptor of the socket; -1 before anything has been forked."""
        return -1 if self._socket is None else self._socket.fileno()

    def popen(self, command: Sequence[str], **options: Any) -> ForkedProcess | subprocess.Popen[bytes]:
        """As :class:`subprocess.Popen`, with the options that :mod:`core.helper` uses."""
        command = list(command)
        if self.anew or not _can_be_forked(command, options.get("env") or os.environ):
            return subprocess.Popen(command, **options)
        with contextlib.ExitStack() as theirs:
            reading, ours_in = _stream(options.get("stdin"), 0, theirs)
            writing, ours_out = _stream(options.get("stdout"), 1, theirs)
            stderr = options.get("stderr")
            errors = writing if stderr == subprocess.STDOUT else _stream(stderr, 2, theirs)[0]
            passed = options.get("pass_fds", ())
            asked = {
                "words": command[2:],
                "cwd": str(options.get("cwd") or os.getcwd()),
                "environment": dict(options.get("env") or os.environ),
                "places": [0, 1, 2, *passed],
                "umask": options.get("umask", -1),
                "limits": {str(number): resource.getrlimit(number) for number in _LIMITS},
            }
            with self._turn, _adopting():
                connection = self._connected()
                socket.send_fds(connection, [json.dumps(asked).encode()], [reading, writing, errors, *passed])
                return ForkedProcess(int(connection.recv(32)), ours_in, ours_out)

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Inside, what :mod:`core.helper` starts is forked where it can be."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.helper.subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": self.popen}))
            yield

    def close(self) -> None:
        """End the process."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()

    def _connected(self) -> socket.socket:
        if self._socket is None:
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [_PYTHON, "-m", __name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    cwd=Path(__file__).parents[1],
                    env=os.environ
                    | {"PYTHONPATH": os.pathsep.join(_PATHS), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                )
        return self._socket


def _can_be_forked(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command is one of a worker's modules, by this Python and without other sources before its own."""
    if len(command) < 3 or command[:2] != [_PYTHON, "-m"] or not command[2].startswith("core.worker"):
        return False
    # The one that watches over several processes imports none of the libraries.
    if command[2].startswith("core.worker.supervise"):
        return False
    paths = {path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path}
    return paths <= _PATHS and all(environment.get(name) == value for name, value in _BEGUN_WITH.items())


def _stream(asked: int | None, number: int, theirs: contextlib.ExitStack) -> tuple[int, IO[bytes] | None]:
    """The child's descriptor of a standard stream, and this process's end where it is a pipe."""
    if asked == subprocess.PIPE:
        reading, writing = os.pipe()
        child, own = (reading, writing) if number == 0 else (writing, reading)
        theirs.callback(os.close, child)
        return child, os.fdopen(own, "wb" if number == 0 else "rb", buffering=0)
    if asked == subprocess.DEVNULL:
        descriptor = os.open(os.devnull, os.O_RDWR)
        theirs.callback(os.close, descriptor)
        return descriptor, None
    return (number if asked is None else asked), None


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Inside, orphans among the descendants of this process become its children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SUBREAPER, 0, 0, 0, 0)


# In the process that others are forked from.


def _serve(connection: socket.socket) -> None:
    import tests.families.warm  # noqa: F401

    gc.collect()
    gc.freeze()
    while True:
        asked, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, _DESCRIPTORS)
        if not asked:
            return
        child, told = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                _become(json.loads(asked), descriptors)
            os.write(told, str(pid).encode())
            os._exit(0)
        # When the process in between has ended, its child is an orphan, and is adopted.
        os.waitpid(between, 0)
        connection.send(os.read(child, 32))
        for descriptor in (*descriptors, child, told):
            os.close(descriptor)


def _become(asked: dict[str, Any], descriptors: Sequence[int]) -> None:
    helpers = Forks.beside(max(asked["places"]))
    os.setsid()
    os.chdir(asked["cwd"])
    if asked["umask"] >= 0:
        os.umask(asked["umask"])
    for number, limit in asked["limits"].items():
        resource.setrlimit(int(number), limit)
    _place(descriptors, asked["places"], {helpers.fileno()})
    os.environ.clear()
    os.environ.update(asked["environment"])
    module, *words = asked["words"]
    sys.argv = [module, *words]
    if module == "core.worker" and (fault := os.environ.get(FAULT_VARIABLE)):
        importlib.import_module("tests.faults.injections").inject(fault)
    with helpers.replacing():
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit(0)


def _place(descriptors: Sequence[int], places: Sequence[int], kept: set[int]) -> None:
    """Give descriptors their numbers, and close all others but those to be kept."""
    free = max((*descriptors, *places, *kept)) + 1
    os.dup2(descriptors[0], free)
    moved = [free]
    for descriptor in descriptors[1:]:
        moved.append(moved[-1] + 1)
        os.dup2(descriptor, moved[-1])
    for descriptor, place in zip(moved, places, strict=True):
        os.dup2(descriptor, place)
    _close_all_but({*places, *kept})


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(int(name))


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
