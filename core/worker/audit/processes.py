"""Processes that replay a span together: forked from the audit's process, which reads their messages and ends them
with the first one.

Each writes lines of JSON to its own pipe; the last message of the first process is the result. The others may still
wait for the first when it ends, so they are ended by SIGKILL, as by the supervisor of a run.
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
#: Work of a process, called with its number and its answers. Its last message is the result, or an ``error``.
Work = Callable[[int, Answers], object]
#: Key of a process's message that it waits for another one in vain.
_LOST = "lost"
#: Seconds for the first process to notice that another one has ended.
_SETTLE_SECONDS = 10.0
#: Seconds for the others to end after the first has lost one, so that the cause is known.
_REASON_SECONDS = 2.0
_BLOCK = 1 << 16


@dataclass
class ForkedProcess:
    """A process forked from this one.

    Args:
        pid: Process ID.
        reading: Its pipe.
    """

    pid: int
    reading: int
    last: Message = field(default_factory=dict)
    """Its last message."""
    _rest: bytes = b""

    def __post_init__(self) -> None:
        self.handle = os.pidfd_open(self.pid)
        """Becomes readable when it ends."""

    @classmethod
    def begin(cls, rank: int, work: Work) -> ForkedProcess:
        """Fork a process.

        Args:
            rank: Its number.
            work: Its work.

        Raises:
            OSError: If the system cannot fork.
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
        """Read a part of its messages, blocking; returns False at the end.

        Args:
            heard: Called with each message.
        """
        data = os.read(self.reading, _BLOCK)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.last = json.loads(line)
            heard(self.last)
        return bool(data)

    def end(self) -> int | None:
        """Kill it if it is alive; returns the exit code if it had ended by itself, negative for a signal, else None."""
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
    """Body of the forked process: work and exit, without returning into the parent's code."""
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
    """Let processes work together.

    Args:
        count: Number of processes.
        work: Work of each.
        heard: Called with the first process's messages.

    Returns:
        The last message of the first process; a sentence with the reason if it has failed.

    Raises:
        OSError: If the system cannot fork.
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
    """Read the first process's messages to the end; returns False if it waits for a process that has ended."""
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
        processes: The processes.
        seconds: Timeout; None for none.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    for process in processes:
        select.select([process.handle], [], [], None if deadline is None else max(deadline - time.monotonic(), 0.0))


def _reason(statuses: Sequence[int | None], last: Sequence[Message]) -> str:
    """The message about failed processes, naming the first one to fail.

    Args:
        statuses: Exit codes of processes that ended by themselves.
        last: Last message of each.
    """
    if statuses[0] is not None and _LOST not in last[0]:
        return f"The process that executed it {describe_end(statuses[0])}."
    for rank, (status, told) in enumerate(zip(statuses, last, strict=True)):
        if rank and status is not None and _LOST not in told:
            what = f"has failed: {told['error']}" if "error" in told else f"{describe_end(status)}."
            return f"Process {rank} of those that executed it {what}"
    return f"The processes that executed it lost each other: {str(last[0].get(_LOST, '')).rstrip('.')}."
