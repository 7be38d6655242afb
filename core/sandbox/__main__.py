"""Sandbox process: ``python -m core.sandbox``.

It serves calls from :mod:`core.sandbox.pool`, one at a time, until the end of its standard input. Requests come from
the process that started it and are pickles; answers are JSON, as they derive from untrusted input.

It never reads untrusted input itself. It imports the modules of a call, and forks a reader with the rights of that
call. The reader serves later calls with the same rights; for others a new reader is forked, since a process cannot
regain rights.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any, NoReturn

from core.errors import UserError
from core.helper import tie_to_parent
from core.sandbox.frames import FrameError, dump, read_frame, relay_frame, write_frame
from core.sandbox.limits import TimeLimitError, confine, cpu_limit
from core.sandbox.rights import Rights, identities, program_files


def main() -> int:
    """Serve calls; returns the exit code."""
    tie_to_parent()
    # A parent that ignores SIGCHLD would leave no exit statuses of readers.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # Output of libraries must not mix with the answers.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    program_files()  # cached for all readers
    reader: _Reader | None = None
    try:
        while True:
            # Trusted: it comes from the process that started this one.
            modules, rights, call = pickle.loads(read_frame(requests))  # noqa: S301
            for module in modules:
                with contextlib.suppress(Exception):  # the reader runs into it again, and reports it
                    importlib.import_module(module)
            reader = _with_rights(reader, rights, (requests.fileno(), answers.fileno()))
            reader.ask(call, answers)
    except (FrameError, OSError):
        return 0


class _Reader:
    """A forked process with given rights.

    Args:
        rights: Its rights.
        allowed: Identities of the files it may use, see :func:`~core.sandbox.rights.identities`.
        others: Descriptors of this process to close in the fork.
    """

    def __init__(self, rights: Rights, allowed: frozenset[tuple[int, int]], others: tuple[int, ...]) -> None:
        self._rights, self._allowed = rights, allowed
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            for descriptor in (ours_in, ours_out, *others):
                os.close(descriptor)
            _read_for_ever(rights, theirs_in, theirs_out)
        os.close(theirs_in)
        os.close(theirs_out)
        self._requests = os.fdopen(ours_in, "wb")
        self._answers = os.fdopen(ours_out, "rb", buffering=0)

    def serves(self, rights: Rights, needed: frozenset[tuple[int, int]]) -> bool:
        """True if this reader may do a call with these rights."""
        mine = self._rights
        return needed <= self._allowed and (rights.writes, rights.starts_helpers, rights.uses_network) == (
            mine.writes,
            mine.starts_helpers,
            mine.uses_network,
        )

    def ask(self, call: bytes, answers: IO[bytes]) -> None:
        """Pass on a call and its answer; without an answer, end like the reader."""
        try:
            write_frame(self._requests, call)
            relay_frame(self._answers, answers)
        except FrameError:
            _end_as(os.waitpid(self._pid, 0)[1])
        except OSError:
            _end_as(self.end())

    def end(self) -> int:
        """End the process; returns its wait status."""
        os.kill(self._pid, signal.SIGKILL)
        status = os.waitpid(self._pid, 0)[1]
        with contextlib.suppress(OSError):
            self._requests.close()
        self._answers.close()
        return status


def _with_rights(reader: _Reader | None, rights: Rights, others: tuple[int, ...]) -> _Reader:
    needed = identities(rights)
    if reader is not None:
        if reader.serves(rights, needed):
            return reader
        reader.end()
    return _Reader(rights, needed, others)


def _end_as(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL, which has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _read_for_ever(rights: Rights, requests: int, answers: int) -> NoReturn:
    """Serve calls as a confined reader."""
    try:
        confine(rights=rights)
        with os.fdopen(requests, "rb", buffering=0) as calls, os.fdopen(answers, "wb") as sink:
            is_spent = False
            while not is_spent:
                answer, is_spent = _answer(read_frame(calls))
                write_frame(sink, answer)
    except (FrameError, OSError):
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _answer(request: bytes) -> tuple[bytes, bool]:
    """Answer to a request, and True if this process must not be reused."""
    is_spent = False
    try:
        # Trusted: it comes from the process that started the sandbox.
        module, name, seconds, args, kwargs, directory, variables = pickle.loads(request)  # noqa: S301
        _stand_in(directory, variables)
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        with cpu_limit(seconds):
            return dump({"value": function(*args, **kwargs)}), False
    except UserError as error:
        value: dict[str, Any] = {"error": error.message, "hint": error.hint}
    except TimeLimitError:
        value, is_spent = {"late": True}, True
    except MemoryError:
        value, is_spent = {"memory": True}, True
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # including Rust panics of libraries
        value = {"failure": f"{type(error).__name__}: {error}"[:2000]}
    return dump(value), is_spent


def _stand_in(directory: str, variables: dict[str, str]) -> None:
    """Adopt the caller's working directory and environment, for relative paths and the home."""
    try:
        os.chdir(directory)
    except OSError:
        # Removed; the directory of the previous caller must not be used.
        os.chdir("/")
    # Tokenizers would use all cores, which a run may need. PATH stays as set by the confinement.
    variables |= {"TOKENIZERS_PARALLELISM": "false", "PATH": os.environ.get("PATH", "")}
    if os.environ != variables:
        os.environ.clear()
        os.environ.update(variables)


if __name__ == "__main__":
    sys.exit(main())
