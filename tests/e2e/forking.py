"""Workers forked from a process that has imported all that they import, which takes four seconds for each otherwise.

A forked worker is as one that was started: its session, environment, directory, log and lock are those that the
launcher gives it, and it is a child of the test's process. For tests of what a run does; those of how a worker starts,
and of what is put into its way there, start real ones.

``python -m tests.e2e.forking SOCKET`` is the process that they are forked from.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from core.runs.lock import LOCK_VARIABLE

#: Of ``prctl``: whether this process becomes the parent of descendants that have lost theirs.
_SUBREAPER = 36
#: Largest request: a command and an environment.
_LIMIT = 1 << 20


class ForkedWorker:
    """A child of this process, as the launcher looks at it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it lives."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class ForkedHelper:
    """A helper process as :class:`core.helper.Helper` is one, without what that needs to be ended by the kernel.

    Args:
        process: A child of this process.
        sending: Descriptor of its standard input.
        told: Its standard output.
    """

    def __init__(self, process: ForkedWorker, sending: int, told: IO[bytes]) -> None:
        self.process, self._sending, self._told = process, sending, told

    def __enter__(self) -> ForkedHelper:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
        os.close(self._sending)
        self._told.close()

    def send(self, data: bytes) -> None:
        """Write to its standard input."""
        while data:
            data = data[os.write(self._sending, data) :]

    def answers(self) -> Iterator[Any]:
        """The JSON values of its standard output."""
        return map(json.loads, self._told)

    def end(self) -> int:
        """End it; its exit status."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.returncode = os.waitstatus_to_exitcode(os.waitpid(self.process.pid, 0)[1])
        return int(self.process.returncode or 0)


class Forks:
    """Forks workers; the process that it forks them from is started with the first."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        # Of the threads that start workers at once.
        self._turn = threading.Lock()

    def start_detached(
        self,
        command: Sequence[str],
        *,
        log: int,
        cwd: Path,
        environment: Mapping[str, str],
        pass_fds: Sequence[int] = (),
    ) -> ForkedWorker:
        """As :func:`core.helper.start_detached`, for a worker with its lock."""
        words = command[command.index("core.worker") + 1 :]
        asked = {"words": words, "cwd": str(cwd), "environment": dict(environment)}
        (lock,) = pass_fds
        with self._turn, _adopting():
            connection = self._connected()
            socket.send_fds(connection, [json.dumps(asked).encode()], [log, lock])
            return ForkedWorker(int(connection.recv(32)))

    def start_helper(self, module: str, *, environment: Mapping[str, str], log: int) -> ForkedHelper:
        """As :class:`core.helper.Helper`, for a module with a ``main``."""
        reading, sending = os.pipe()
        told, writing = os.pipe()
        asked = {"helper": module, "cwd": os.getcwd(), "environment": dict(environment)}
        with self._turn, _adopting():
            connection = self._connected()
            socket.send_fds(connection, [json.dumps(asked).encode()], [log, reading, writing])
            process = ForkedWorker(int(connection.recv(32)))
        os.close(reading)
        os.close(writing)
        return ForkedHelper(process, sending, os.fdopen(told, "rb"))

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """Inside, the launcher's workers are forked, and the processes of audits."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("core.launch.launcher.start_detached", self.start_detached)
            patch.setattr("core.audit.job.Helper", self.start_helper)
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
                    [sys.executable, "-m", __name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        return self._socket


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Inside, orphans among the descendants of this process become its children."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SUBREAPER, 0, 0, 0, 0)


# In the process that workers are forked from.


def _serve(connection: socket.socket) -> None:
    import tests.families.warm  # noqa: F401

    while True:
        asked, descriptors, _, _ = socket.recv_fds(connection, _LIMIT, 3)
        if not asked:
            return
        worker, told = os.pipe()
        if (between := os.fork()) == 0:
            if (pid := os.fork()) == 0:
                connection.close()
                _become(json.loads(asked), *descriptors)
            os.write(told, str(pid).encode())
            os._exit(0)
        # When the process in between has ended, the worker is an orphan, and the child of whoever adopts it.
        os.waitpid(between, 0)
        connection.send(os.read(worker, 32))
        for descriptor in (*descriptors, worker, told):
            os.close(descriptor)


def _become(asked: dict[str, Any], log: int, *others: int) -> None:
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    if "helper" in asked:
        _wire(*others, log)
        sys.exit(importlib.import_module(f"{asked['helper']}.__main__").main())
    (lock,) = others
    _wire(os.open(os.devnull, os.O_RDONLY), os.dup(log), log)
    os.environ[LOCK_VARIABLE] = str(lock)
    from core.worker.__main__ import main

    sys.exit(main(asked["words"]))


def _wire(*streams: int) -> None:
    """Make descriptors the standard streams."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
