"""Calls into the sandbox, and the processes that are kept for them."""

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
from core.sandbox.frames import FrameError, read_frame, write_frame
from core.sandbox.limits import MEMORY, SECONDS, cpu_limit, is_confined
from core.sandbox.signature import check
from core.text import one_line

P = ParamSpec("P")
R = TypeVar("R")

#: How much longer than its processor time an answer may take, on a machine that does other things; and seconds that it
#: may take in any case.
_PATIENCE, _LEAST_WAIT = 6, 60
_HINT = "Get it again from where it is from, or take another one."


class SandboxError(UserError):
    """A bound of the sandbox was reached, or what was read ended its process."""


@dataclass(frozen=True)
class _Work:
    """What is asked of a process, for the sentences about how it failed; see :func:`sandboxed`."""

    about: str
    seconds: float
    hint: str

    def bound(self, status: int, error: FrameError) -> SandboxError:
        """Why there is no answer."""
        if error.is_late or status == -signal.SIGXCPU:
            return self.too_slow()
        if error.is_large or status in (-signal.SIGABRT, -signal.SIGKILL):
            # Libraries that are not Python's abort where they get no memory.
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
    """One process of the sandbox."""

    def __init__(self) -> None:
        self.helper = Helper("core.sandbox")
        self.is_closed = False
        """Whether it was ended because nobody wants its answer any more."""

    @property
    def is_fit(self) -> bool:
        """Whether it is still there."""
        return self.helper.process.poll() is None

    def ask(self, request: bytes, seconds: float) -> bytes:
        """An answer.

        Raises:
            FrameError: If there is none.
        """
        try:
            write_frame(self.helper.stdin, request)
        except (OSError, ValueError) as error:
            raise FrameError from error
        return read_frame(self.helper.stdout, seconds)

    def close(self) -> int:
        """End it; returns how it ended."""
        with self.helper as helper:
            return helper.end()


class SandboxPool:
    """The processes of the sandbox: one for each kind of call that keeps something between calls, and a spare one.

    All methods may be called from any thread.
    """

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
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """See :func:`sandboxed`."""
        if is_confined():
            with cpu_limit(seconds):
                return function(*args, **kwargs)
        called = (function.__module__, function.__qualname__, seconds, args, kwargs)
        request = pickle.dumps((*called, _directory(), dict(os.environ)))
        if not keep:
            return self._call(function, _Work(about, seconds, hint), keep, request)
        with self._lock:
            turn = self._turns.setdefault(keep, threading.Lock())
        with turn:
            return self._call(function, _Work(about, seconds, hint), keep, request)

    def warm(self, *modules: str) -> None:
        """Have a process ready, with what it will need imported."""
        if not is_confined():
            self.call(_import_modules, "The program", SECONDS, "", _HINT, list(modules))

    def close(self) -> None:
        """End all processes; calls under way end with an error, later ones start new processes."""
        with self._lock:
            idle, busy = [*self._spare, *self._kept.values()], [*self._busy]
            self._spare.clear()
            self._kept.clear()
        for process in idle:
            process.close()
        for process in busy:
            process.is_closed = True
            # Its pipes belong to the thread that waits for an answer.
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
            raise work.failure("what was found in it makes no sense") from error
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
        """A process for a call: its own, the spare one, or a new one."""
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
        # One that has ended itself keeps its own status.
        with contextlib.suppress(Exception):
            process.helper.process.wait(0.5)
        return process.close()


#: The sandbox of this process.
POOL = SandboxPool()
atexit.register(POOL.close)


def sandboxed(
    function: Callable[P, R], about: str, *, seconds: float | None = None, keep: str = "", hint: str = _HINT
) -> Callable[P, R]:
    """A function that is called in the sandbox; blocks, so call it from a thread where a person waits.

    In a process that is bounded itself it is called directly.

    Args:
        function: One of a module of ``core``. What it is given is pickled; what it returns is JSON, checked against its
            annotation.
        about: What it reads, as the beginning of a sentence: ``The chat template``.
        seconds: Processor time that it may take; :data:`~core.sandbox.limits.SECONDS` by default.
        keep: A name for calls that share a process, which keeps what it has read for the next of them; these are
            made one after the other. Empty: any process.
        hint: What to do where a bound is reached.

    Raises:
        UserError: As the function; a :class:`SandboxError` where it needs more memory or time than it may have, or what
            it reads ends its process.
    """
    return functools.partial(POOL.call, function, about, SECONDS if seconds is None else seconds, keep, hint)


def _import_modules(modules: list[str]) -> None:
    import importlib

    for module in modules:
        importlib.import_module(module)


def _directory() -> str:
    """The working directory; empty where it has been removed."""
    try:
        return os.getcwd()
    except OSError:
        return ""
