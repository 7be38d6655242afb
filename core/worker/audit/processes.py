"""Processes that execute a span together: forked from that of the audit, heard by it, and ended with the first one.

Each tells by a pipe of its own, in lines of JSON. What the first one has told at last is the result. The others wait
for it where it ends, so that they are ended by SIGKILL, as by the supervisor of a run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from core.helper import describe_end
from core.jobs.process import Answers
from core.worker.distributed.rendezvous import RankLostError

Message = dict[str, Any]
#: What a process does: told its number and how it tells. It tells at last its result, or ``error`` with a sentence.
Work = Callable[[int, Answers], object]
#: Message of a process that waits in vain for another one.
_LOST = "lost"
#: Seconds that the first process has to notice that another one has ended.
_SETTLE_SECONDS = 10.0
#: Seconds that the others have to end after the first one has lost one of them, so that it is known which.
_REASON_SECONDS = 2.0
_BLOCK = 1 << 16


@dataclass
class ForkedProcess:
    """A process that was forked from this one.

    Args:
        pid: Of the process.
        reading: The pipe with what it tells.
    """

    pid: int
    reading: int
    last: Message = field(default_factory=dict)
    """What it has told at last."""
    _rest: bytes = b""

    def __post_init__(self) -> None:
        self.handle = os.pidfd_open(self.pid)
        """Becomes readable when it ends."""

    @classmethod
    def begin(cls, rank: int, work: Work) -> ForkedProcess:
        """Fork one.

        Args:
            rank: Its number.
            work: Done by it.

        Raises:
            OSError: If the system has no room for it.
        """
        reading, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            _work(rank, work, Answers(os.fdopen(writing, "wb")))
        os.close(writing)
        return cls(pid, reading)

    def listen(self, heard: Callable[[Message], None] = lambda _: None) -> bool:
        """Read what it tells, waiting for something; whether there is more to come.

        Args:
            heard: Told each message.
        """
        data = os.read(self.reading, _BLOCK)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.last = json.loads(line)
            heard(self.last)
        return bool(data)

    def end(self) -> int | None:
        """End it if it lives; the exit code with which it has ended by itself, negative for a signal, else None."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.handle, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        while self.listen():
            pass
        os.close(self.reading)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(status) if pid else None


def _work(rank: int, work: Work, answers: Answers) -> NoReturn:
    """In a process that was forked: do its work and leave; nothing of it goes on as what it was forked from."""
    code = 1
    try:
        work(rank, answers)
        code = 0
    except RankLostError as error:
        answers.send({_LOST: str(error)})
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def work_together(count: int, work: Work, heard: Callable[[Message], None]) -> Message | str:
    """Let processes do some work together.

    Args:
        count: How many.
        work: Done by each.
        heard: Told what the first one tells.

    Returns:
        What the first one has told at last; a sentence where it has not come to an end.

    Raises:
        OSError: If the system has no room for them.
    """
    processes: list[ForkedProcess] = []
    try:
        for rank in range(count):
            processes.append(ForkedProcess.begin(rank, work))
        is_whole = _hear_first(processes, heard)
        if is_whole:
            _wait_for(processes[:1])
        if _LOST in processes[0].last:
            _wait_for(processes[1:], _REASON_SECONDS)
    finally:
        statuses = [process.end() for process in processes]
    first = processes[0].last
    if is_whole and statuses[0] == 0:
        return first
    return _reason(statuses, [process.last for process in processes])


def _hear_first(processes: Sequence[ForkedProcess], heard: Callable[[Message], None]) -> bool:
    """Listen to the first process until it has told all; whether it has, as it may wait for one that has ended."""
    first, *others = processes
    poll = select.poll()
    for descriptor in (first.reading, *(process.handle for process in others)):
        poll.register(descriptor, select.POLLIN)
    deadline: float | None = None
    while True:
        patience = None if deadline is None else 1000 * max(deadline - time.monotonic(), 0.0)
        ready = poll.poll(patience)
        if not ready:
            return False
        for descriptor, _ in ready:
            if descriptor != first.reading:
                poll.unregister(descriptor)
                deadline = deadline or time.monotonic() + _SETTLE_SECONDS
            elif not first.listen(heard):
                return True


def _wait_for(processes: Sequence[ForkedProcess], seconds: float | None = None) -> None:
    """Wait until processes have ended.

    Args:
        processes: All of them.
        seconds: At most; None for as long as it takes.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    for process in processes:
        select.select([process.handle], [], [], None if deadline is None else max(deadline - time.monotonic(), 0.0))


def _reason(statuses: Sequence[int | None], last: Sequence[Message]) -> str:
    """The sentence about processes that have not come to an end: which of them was the reason.

    Args:
        statuses: How each has ended by itself.
        last: What each has told at last.
    """
    if statuses[0] is not None and _LOST not in last[0]:
        return f"The process that executed it {describe_end(statuses[0])}."
    for rank, (status, told) in enumerate(zip(statuses, last, strict=True)):
        if rank and status is not None and _LOST not in told:
            what = f"has failed: {told['error']}" if "error" in told else f"{describe_end(status)}."
            return f"Process {rank} of those that executed it {what}"
    return f"The processes that executed it lost each other: {str(last[0].get(_LOST, '')).rstrip('.')}."
