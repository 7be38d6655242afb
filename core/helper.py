"""Helper processes: ``python -m core.X``, started so that none outlives the process that started it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from core.errors import UserError

#: The environment variable with the descriptor of a helper's lifeline.
_LIFELINE = "LOCALTUNE_LIFELINE"
#: The signals that end a helper or interrupt its work.
_ENDING = (signal.SIGIO, signal.SIGXCPU, signal.SIGPROF)
# A helper imports this package from its own location, whatever directory it is started in.
_ROOT = str(Path(__file__).resolve().parents[1])


class Helper:
    """A helper process with pipes to its standard streams, in a session of its own.

    Ctrl-C in the terminal does not reach it. A lifeline, a pipe whose other end only this process holds, ends the
    helper and all processes of its session as soon as this process is gone, however that ends; see
    :func:`tie_to_parent`.

    Args:
        module: Module to run: ``core.data.files.unpack``; or the beginning of another command line.
        arguments: The rest of its command line.
        pass_fds: Further descriptors that it inherits.
        environment: Its variables; by default this process's.
        cwd: Its working directory; by default this process's.
        log: Descriptor that its standard error goes to; by default nowhere.

    Raises:
        UserError: If the system cannot start another process.
    """

    def __init__(
        self,
        module: str | Sequence[str],
        *arguments: str,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: int | None = None,
    ) -> None:
        if log is None and not os.environ.get("LOCALTUNE_DEBUG"):
            log = subprocess.DEVNULL
        command = (sys.executable, "-m", module) if isinstance(module, str) else module
        try:
            reading, self._lifeline = os.pipe()
        except OSError as error:
            raise _no_room(error) from error
        try:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
                bufsize=0,
                pass_fds=(*pass_fds, reading),
                start_new_session=True,
                env=finding_core(os.environ if environment is None else environment) | {_LIFELINE: str(reading)},
            )
        except OSError as error:
            os.close(self._lifeline)
            raise _no_room(error) from error
        finally:
            os.close(reading)
        if self.process.stdin is None or self.process.stdout is None:
            raise ValueError("The process was started without pipes.")
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self._ending = threading.Lock()
        self._is_ended = False

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *exception: object) -> None:
        """End it and close its pipes; call this in the thread that reads them."""
        self.end()
        for stream in (self.stdin, self.stdout):
            with contextlib.suppress(OSError):
                stream.close()

    def send(self, data: bytes) -> None:
        """Write to its standard input.

        Raises:
            OSError: If it has stopped reading.
        """
        view = memoryview(data)
        while view:
            view = view[self.stdin.write(view) :]

    def answers(self) -> Iterator[Any]:
        """The JSON values of its standard output, one per line; a line cut short by its end is left out."""
        return map(json.loads, self.lines())

    def lines(self) -> Iterator[bytes]:
        """The complete lines of its standard output; a line cut short by its end is left out."""
        for line in io.BufferedReader(cast("io.RawIOBase", self.stdout)):
            if line.endswith(b"\n"):
                yield line

    def end(self) -> int:
        """End it and the processes that it has started, if it still runs; safe from any thread, and to call again.

        Returns:
            Its exit status, negative for a signal.
        """
        with self._ending:
            if not self._is_ended:
                self._is_ended = True
                # Its pid is not reused until it has been waited for; its own processes end with the lifeline.
                if self.process.returncode is None:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(self.process.pid, signal.SIGKILL)
                os.close(self._lifeline)
            return self.process.wait()


def finding_core(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which ``python -m core.X`` runs this very package.

    A directory called ``core`` in the user's working directory is not imported instead.
    """
    path = os.pathsep.join(filter(None, (_ROOT, environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}


def start_detached(
    command: Sequence[str], *, log: int, cwd: Path, environment: Mapping[str, str], pass_fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one, in a session of its own, with its output in a log.

    Args:
        command: The command line.
        log: Descriptor for standard output and standard error.
        cwd: The working directory.
        environment: Its environment.
        pass_fds: Descriptors that it inherits as well.

    Raises:
        OSError: If it cannot be started.
    """
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=cwd,
        env=environment,
        start_new_session=True,
        close_fds=True,
        pass_fds=pass_fds,
        umask=0o077,
    )


def start_attached(command: Sequence[str], *, log: int, cwd: Path) -> subprocess.Popen[bytes]:
    """Start a process in this process's group, which ends when the group does, with its output in a log.

    Args:
        command: The command line.
        log: Descriptor for standard output and standard error.
        cwd: The working directory.

    Raises:
        OSError: If it cannot be started.
    """
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=cwd)


def _no_room(error: OSError) -> UserError:
    return UserError(f"A helper process cannot be started: {error.strerror}.", "Close something, then do it again.")


def describe_end(status: int) -> str:
    """The end of a process in words, as the rest of a sentence: ``was ended by SIGKILL``."""
    if status >= 0:
        return f"ended with code {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def tie_to_parent() -> None:
    """In a helper: have the kernel end this process and its children when its parent is gone.

    The kernel sends SIGIO to the process group when the other end of the lifeline is closed. That needs no thread, so
    it also reaches a process that is deep in a library's code; unlike ``PR_SET_PDEATHSIG`` it does not depend
    on the thread that started the helper, which often ends before the work is done.
    """
    # The signal must not be ignored or blocked, as the parent may have it.
    for ending in _ENDING:
        signal.signal(ending, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    number = os.environ.pop(_LIFELINE, "")
    if not number:
        return
    lifeline = int(number)
    os.set_inheritable(lifeline, False)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    # The parent may have ended before the kernel was asked.
    poll = select.poll()
    poll.register(lifeline, select.POLLIN)
    if poll.poll(0):
        os._exit(1)


def private_output() -> IO[bytes]:
    """In a helper: standard output for its own messages alone; output of libraries goes to standard error from now
    on."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output
