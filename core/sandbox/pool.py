"""Sandbox process pool: calls functions in sandboxed processes, and keeps those processes."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import pickle
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from pydantic import ValidationError

from core.errors import UserError
from core.helper import Helper, describe_end
from core.sandbox.frames import FrameError, check, read_frame, write_frame
from core.sandbox.limits import MEMORY, SECONDS, cpu_limit, is_confined
from core.sandbox.rights import NO_RIGHTS, Rights
from core.text import one_line

P = ParamSpec("P")
R = TypeVar("R")

#: Most wall time of an answer, as a multiple of its CPU time on a busy machine, and its minimum in seconds.
_PATIENCE, _LEAST_WAIT = 6, 60
_HINT = "Get it again from where it is from, or take another one."


class SandboxError(UserError):
    """A limit of the sandbox was reached, or the input crashed its process."""


@dataclass(frozen=True)
class _Work:
    """Description of a call for error messages; see :func:`sandboxed`."""

    about: str
    seconds: float
    hint: str

    def bound(self, status: int, error: FrameError) -> SandboxError:
        """The error for a missing answer."""
        if error.is_late or status == -signal.SIGXCPU:
            return self.too_slow()
        if error.is_large or status in (-signal.SIGABRT, -signal.SIGKILL):
            # Native libraries abort when out of memory.
            return self.too_large()
        return self.failure(f"its reader {describe_end(status)}")

    def too_slow(self) -> SandboxError:
        return SandboxError(f"{self.about} takes more than {self.seconds:g} s, which none should.", self.hint)

    def too_large(self) -> SandboxError:
        return SandboxError(f"{self.about} needs more than {MEMORY >> 30} GB of memory, which none should.", self.hint)

    def failure(self, reason: str) -> SandboxError:
        return SandboxError(f"{self.about} cannot be read: {reason}.", self.hint)

    def ended(self) -> SandboxError:
        return SandboxError(f"{self.about} is no longer read: the program ends.")


class _Process:
    """A process of the sandbox."""

    def __init__(self) -> None:
        self.helper = Helper("core.sandbox")
        self.is_closed = False
        """True if it was ended because its answer is no longer wanted."""

    @property
    def is_fit(self) -> bool:
        """True while the process is alive."""
        return self.helper.process.poll() is None

    def ask(self, request: bytes, seconds: float) -> bytes:
        """Send a request and return the answer.

        Raises:
            FrameError: If there is no answer.
        """
        try:
            write_frame(self.helper.stdin, request)
        except (OSError, ValueError) as error:
            raise FrameError from error
        return read_frame(self.helper.stdout, seconds)

    def close(self) -> int:
        """End the process; returns its exit status."""
        with self.helper as helper:
            return helper.end()


class SandboxPool:
    """Processes of the sandbox: one for each ``keep`` name, and a spare one. All methods are thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: list[_Process] = []
        self._kept: dict[str, _Process] = {}
        self._turns: dict[str, threading.Lock] = {}
        self._busy: set[_Process] = set()

    def call(
        self,
        function: Callable[P, R],
        about: str,
        seconds: float,
        keep: str,
        hint: str,
        rights: Rights,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a function; see :func:`sandboxed`."""
        if is_confined():
            with cpu_limit(seconds):
                return function(*args, **kwargs)
        called = (function.__module__, function.__qualname__, seconds, args, kwargs)
        request = _request([function.__module__], rights, *called)
        with self._lock:
            turn = self._turns.setdefault(keep, threading.Lock()) if keep else contextlib.nullcontext()
        with turn:
            return self._call(function, _Work(about, seconds, hint), keep, request)

    def warm(self, *modules: str) -> None:
        """Start a process ahead of time, with the modules imported."""
        if not is_confined():
            request = _request([*modules], NO_RIGHTS, __name__, _do_nothing.__name__, SECONDS, (), {})
            self._call(_do_nothing, _Work("The program", SECONDS, _HINT), "", request)

    def close(self) -> None:
        """End all processes; running calls fail, later calls start new processes."""
        with self._lock:
            idle, busy = [*self._spare, *self._kept.values()], [*self._busy]
            self._spare.clear()
            self._kept.clear()
        for process in idle:
            process.close()
        for process in busy:
            process.is_closed = True
            # Its pipes belong to the waiting thread.
            process.helper.end()

    def _call(self, function: Callable[..., R], work: _Work, keep: str, request: bytes) -> R:
        process = self._take(keep)
        try:
            answer = json.loads(process.ask(request, max(work.seconds * _PATIENCE, _LEAST_WAIT)))
            found = self._value(function, work, answer)
        except FrameError as error:
            status = self._end(process)
            raise (work.ended() if process.is_closed else work.bound(status, error)) from None
        except (ValueError, RecursionError, ValidationError) as error:
            self._end(process)
            raise work.failure("its content makes no sense") from error
        except SandboxError:
            self._end(process)
            raise
        except UserError:
            self._give_back(process, keep)
            raise
        except BaseException:
            self._end(process)
            raise
        self._give_back(process, keep)
        return found

    @staticmethod
    def _value(function: Callable[..., R], work: _Work, answer: dict[str, Any]) -> R:
        if "value" in answer:
            return check(function, answer["value"])
        if "error" in answer:
            raise UserError(str(answer["error"]), str(answer["hint"]))
        if "memory" in answer:
            raise work.too_large()
        if "late" in answer:
            raise work.too_slow()
        raise work.failure(one_line(str(answer.get("failure")), 200).rstrip("."))

    def _take(self, keep: str) -> _Process:
        """A process for a call: kept, spare, or new."""
        while True:
            with self._lock:
                process = self._kept.pop(keep, None) or (self._spare.pop() if self._spare else None)
                if process is not None and process.is_fit:
                    self._busy.add(process)
                    return process
            if process is None:
                break
            process.close()
        process = _Process()
        with self._lock:
            self._busy.add(process)
        return process

    def _give_back(self, process: _Process, keep: str) -> None:
        with self._lock:
            self._busy.discard(process)
            if keep:
                other = self._kept.pop(keep, None)
                self._kept[keep] = process
            else:
                other = self._spare.pop() if self._spare else None
                self._spare.append(process)
        if other is not None:
            other.close()

    def _end(self, process: _Process) -> int:
        with self._lock:
            self._busy.discard(process)
        # A process that ended by itself keeps its own status.
        with contextlib.suppress(Exception):
            process.helper.process.wait(0.5)
        return process.close()


#: Sandbox of this process.
POOL = SandboxPool()
atexit.register(POOL.close)


def sandboxed(
    function: Callable[P, R],
    about: str,
    *,
    rights: Rights = NO_RIGHTS,
    seconds: float | None = None,
    keep: str = "",
    hint: str = _HINT,
) -> Callable[P, R]:
    """Wrap a function so that it runs in the sandbox. It blocks, so do not call it from the thread of a user interface.

    A process that is itself confined calls the function directly.

    Args:
        function: A module-level function of ``core``. Its arguments are pickled; its result is JSON, checked against
            the annotation.
        about: Its input, as the beginning of a sentence: ``The chat template``.
        rights: Its rights, beyond its arguments and the program's own files.
        seconds: CPU time limit; :data:`~core.sandbox.limits.SECONDS` by default.
        keep: Name for calls that share a process, which keeps loaded data for the next call; they run one at a time.
            Empty for any process.
        hint: Remedy if a limit is reached.

    Raises:
        UserError: As the function; a :class:`SandboxError` if it exceeds its memory or time, or its input crashes the
            process.
    """
    return functools.partial(POOL.call, function, about, SECONDS if seconds is None else seconds, keep, hint, rights)


def _request(modules: list[str], rights: Rights, *called: object) -> bytes:
    """A request: modules to import, rights of the reader, and the call, which only the reader unpickles."""
    return pickle.dumps((modules, rights, pickle.dumps((*called, _directory(), dict(os.environ)))))


def _do_nothing() -> None:
    pass


def _directory() -> str:
    """Working directory; empty if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""
