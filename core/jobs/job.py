"""Jobs as their owners see them: start, follow, cancel.

A job's process (:mod:`core.jobs.process`) reads one line of JSON, its request, and answers with lines of JSON:
``progress`` any number of times, then ``done`` with the result, or ``error`` and ``hint``. Other messages are the
work's own.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from core.errors import UserError
from core.helper import Helper, describe_end
from core.text import one_line
from core.units import format_duration

#: Seconds between two reports of progress while a process is silent.
_BEAT = 0.5
#: Seconds for a process to end by itself once it has closed its output.
_ENDING = 30.0
#: Largest message, in bytes.
_LARGEST = 256 << 20
#: Bytes at the end of a log that are searched for the last words of a process.
_LOG_LIMIT = 64 << 10
_NO_MEMORY = "The machine may be out of memory; close other programs."


class JobCancelledError(Exception):
    """The job was closed before it was done."""


class JobDiedError(UserError):
    """The process of a job ended without a result.

    Args:
        title: Subject of the sentence: ``the export``.
        status: Exit status of the process, negative for a signal.
        words: The last words of its log; may be empty.
        hint: The remedy.
    """

    def __init__(self, title: str, status: int, words: str = "", hint: str = "") -> None:
        after = f"; its log ends with: {words}" if words else ""
        remedy = f"{_NO_MEMORY} {hint}".strip() if status == -signal.SIGKILL else hint
        super().__init__(f"{subject(title)} failed: its process {describe_end(status)}{after}.", remedy)
        self.status = status


@dataclass(frozen=True)
class JobProgress:
    """Progress of a job.

    Args:
        activity: The present activity in a few words.
        done: Units done; None where they are not counted.
        total: Units in all; None where that is unknown.
    """

    activity: str
    done: int | None = None
    total: int | None = None

    @property
    def share(self) -> float | None:
        """Share that is done, from 0 to 1; None where it is unknown."""
        return self.done / self.total if self.done is not None and self.total else None


ProgressType = TypeVar("ProgressType", bound=JobProgress)
ResultType = TypeVar("ResultType")


class Job(Generic[ProgressType, ResultType]):
    """A job. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        title: Subject of sentences about it: ``the export``.
        work: Does the job; it starts processes with :meth:`call` or :meth:`watch`, one at a time.
        hint: The remedy if a process fails.
    """

    def __init__(self, title: str, work: Callable[[Job[ProgressType, ResultType]], ResultType], hint: str = "") -> None:
        self.title, self.hint = title, hint
        self.progress: ProgressType | None = None
        """The newest progress; may be read from any thread."""
        self._work = work
        self._listener: Callable[[ProgressType], None] = lambda _: None
        self._guard = threading.Lock()
        self._helper: Helper | None = None
        self._is_closed = False

    def run(self, progress: Callable[[ProgressType], None] | None = None) -> ResultType:
        """Do the job.

        Args:
            progress: Called with each progress, several times a second; whatever it raises ends the job.

        Raises:
            JobCancelledError: If it is closed meanwhile, or was before.
            UserError: If it fails.
        """
        self._refuse_closed()
        if progress is not None:
            self._listener = progress
        return self._work(self)

    def close(self) -> None:
        """End it; may be called twice, and after it has ended."""
        with self._guard:
            self._is_closed = True
            if self._helper is not None:
                self._helper.end()

    @property
    def pid(self) -> int | None:
        """Process id of its newest process; None before the first."""
        return None if self._helper is None else self._helper.process.pid

    def report(self, progress: ProgressType) -> None:
        """Report progress to the caller of :meth:`run`."""
        self.progress = progress
        self._listener(progress)

    def call(
        self,
        program: str | Sequence[str],
        request: Mapping[str, Any],
        progress: Callable[[JobProgress], None],
        *,
        title: str = "",
        hear: Callable[[dict[str, Any]], object] = lambda _: None,
        seconds: float | None = None,
        beats: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Have a process do work.

        Args:
            program: Module of the process and its arguments, separated by blanks; or a whole command line.
            request: The request; ``title`` and ``hint`` are added to it.
            progress: Called with each progress.
            title: Subject of sentences about this work; by default the job's.
            hear: Called with messages of the work's own; anything but None is sent back as JSON.
            seconds: Time limit; None for none.
            beats: Whether to repeat the newest progress twice a second while the process is silent, so that
                ``progress`` can end the job by an exception.
            environment: Environment of the process; by default inherited.

        Returns:
            The result, as JSON has it.

        Raises:
            JobCancelledError: If the job is closed meanwhile, or was before.
            JobDiedError: If the process ends without a result.
            UserError: If the work fails, or takes longer than ``seconds``.
        """
        title = title or self.title
        latest = JobProgress(f"starting {title}")
        with self._process(program, environment, None) as (helper, log):
            _send(helper, {**request, "title": title, "hint": self.hint})
            for line in _lines(helper, title, seconds, _BEAT if beats else math.inf):
                if line is None:
                    progress(latest)
                    continue
                message = _message(line)
                if isinstance(result := message.get("done"), dict):
                    return result
                if "error" in message:
                    self._refuse_closed()
                    raise UserError(one_line(str(message["error"])), one_line(str(message.get("hint", ""))))
                if isinstance(values := message.get("progress"), dict):
                    latest = _progress(values)
                    progress(latest)
                elif message and (reply := hear(message)) is not None:
                    _send(helper, reply)
            raise self._death(helper, log, title)

    def watch(
        self,
        command: Sequence[str],
        heard: Callable[[str], None],
        *,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Run a foreign program to its end.

        Args:
            command: The command line.
            heard: Called with each line of its output.
            environment: Its environment; by default inherited.
            cwd: Its working directory; by default inherited.

        Raises:
            JobCancelledError: If the job is closed meanwhile, or was before.
            JobDiedError: If it ends with another code than 0.
        """
        with self._process(command, environment, cwd) as (helper, log):
            helper.stdin.close()
            for line in _lines(helper, self.title):
                if line and (text := one_line(line.decode("utf-8", errors="replace").strip(), 200)):
                    heard(text)
            if _status(helper) != 0 or self._is_closed:
                raise self._death(helper, log, self.title)

    @contextlib.contextmanager
    def _process(
        self, program: str | Sequence[str], environment: Mapping[str, str] | None, cwd: Path | None
    ) -> Iterator[tuple[Helper, IO[bytes]]]:
        """A process, ended with the block, and its log."""
        command = [sys.executable, "-m", *program.split()] if isinstance(program, str) else program
        try:
            log = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError as error:
            hint = "Free some space in the directory for temporary files, or set TMPDIR."
            raise UserError(f"{subject(self.title)} has no place for its log: {error.strerror}.", hint) from error
        with log:
            with self._guard:
                self._refuse_closed()
                helper = self._helper = Helper(command, environment=environment, cwd=cwd, log=log.fileno())
            with helper:
                yield helper, log

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise JobCancelledError

    def _death(self, helper: Helper, log: IO[bytes], title: str) -> JobDiedError:
        """The error for a process that has closed its output without a result."""
        status = _status(helper)
        self._refuse_closed()
        return JobDiedError(title, status, last_words(log), self.hint)


def last_words(log: IO[bytes]) -> str:
    """The line of a log with the cause of death: the fatal error above a stack, or the last line."""
    size = os.fstat(log.fileno()).st_size
    tail = os.pread(log.fileno(), _LOG_LIMIT, max(size - _LOG_LIMIT, 0)).decode("utf-8", errors="replace")
    lines = [line.strip() for line in tail.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    return one_line((fatal or lines or [""])[-1], 300).rstrip(".")


def call(
    title: str,
    program: str | Sequence[str],
    request: Mapping[str, Any],
    progress: Callable[[JobProgress], None] | None = None,
    *,
    hint: str = "",
    seconds: float | None = None,
    beats: bool = False,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Do a job of a single process that cannot be closed; see :class:`Job` and :meth:`Job.call`."""

    def work(job: Job[JobProgress, dict[str, Any]]) -> dict[str, Any]:
        return job.call(program, request, job.report, seconds=seconds, beats=beats, environment=environment)

    return Job(title, work, hint).run(progress)


def subject(title: str) -> str:
    """The title of a job at the beginning of a sentence; the name of a program stays as it is."""
    return f"The{title[3:]}" if title.startswith("the ") else title


def _send(helper: Helper, message: object) -> None:
    # A process that died or was closed is noticed by its missing answer.
    with contextlib.suppress(OSError, ValueError):
        helper.send(json.dumps(message).encode() + b"\n")


def _message(line: bytes) -> dict[str, Any]:
    """A message; empty for anything else that a library may have printed."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


def _progress(values: Mapping[str, Any]) -> JobProgress:
    done, total = (value if type(value := values.get(name)) is int else None for name in ("done", "total"))
    return JobProgress(one_line(str(values.get("activity", "")), 200), done, total)


def _lines(helper: Helper, title: str, seconds: float | None = None, beat: float = math.inf) -> Iterator[bytes | None]:
    """Lines of a process until it closes its output; None after ``beat`` seconds without one.

    Raises:
        UserError: If it takes longer than ``seconds``, or a line is larger than :data:`_LARGEST`.
    """
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    output = helper.stdout.fileno()
    # Not select, which does not support descriptors beyond 1023.
    poll = select.poll()
    poll.register(output, select.POLLIN)
    held = bytearray()
    while True:
        left = min(deadline - time.monotonic(), beat)
        if left <= 0:
            raise UserError(f"{subject(title)} was not done after {format_duration(seconds or 0.0)}, and was ended.")
        if not poll.poll(None if left == math.inf else left * 1000):
            yield None
            continue
        piece = os.read(output, 1 << 16)
        if not piece:
            return  # half a line of a process that was killed is left out
        held += piece
        if len(held) > _LARGEST:
            raise UserError(f"{subject(title)} was ended: its answer has more than {_LARGEST >> 20} MiB.")
        if b"\n" in piece:
            *lines, held = held.split(b"\n")
            yield from map(bytes, lines)


def _status(helper: Helper) -> int:
    """Exit status of a process that has closed its output; it is killed if it goes on."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        helper.process.wait(_ENDING)
    return helper.end()
