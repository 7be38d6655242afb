"""Verdicts on the processes of a run: the end of the run, or the process that is lost. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.helper import describe_end
from core.runs.record.state import EXIT_CODES, EXIT_REFUSED

#: Exit code of a process that another one of the run does not answer any more. Lower than the codes of a recorded end:
#: srun's own code is the highest of its tasks. Argparse ends with it too, before there is any sign of life.
EXIT_LOST = 2
#: Exit code of a process that ended by an error that should not happen; Python's own.
EXIT_CRASHED = 1
#: Exit codes of the first process with which it has recorded the end of the run.
FINAL = frozenset({*EXIT_CODES.values(), EXIT_REFUSED})
#: Seconds of silence after which the others have waited for a process in vain.
QUIET_SECONDS = 5.0
#: Seconds that a process may take to its first sign of life: an interpreter starts, on a busy machine.
START_SECONDS = 120.0


@dataclass(frozen=True)
class Sign:
    """Signs of life of one process.

    Args:
        rank: Its number.
        status: Its exit code, negative for the signal that ended it; None while it lives.
        silent: Seconds since its last sign of life, or since its start.
        has_begun: Whether it has given one.
        is_waiting: Whether it waited for the others then.
        waits: Seconds of its present wait; 0 where it does not wait.
        still: Seconds without progress in short work; 0 in work without a limit, and in all processes but
            the first.
        at: Its place in the program, if it has been still.
        error: The reason of its end, if it gave one.
        hint: The remedy.
        following: The options that the run goes on with.
        host: Its machine, by its report; likewise its pid and its device.
    """

    rank: int
    status: int | None = None
    silent: float = 0.0
    has_begun: bool = True
    is_waiting: bool = False
    waits: float = 0.0
    still: float = 0.0
    at: str = ""
    error: str = ""
    hint: str = ""
    following: tuple[str, ...] | None = None
    host: str = ""
    pid: int | None = None
    device: str = ""

    @property
    def has_lost(self) -> bool:
        """True if it has ended because another one does not answer."""
        return self.status == EXIT_LOST and self.has_begun


@dataclass(frozen=True)
class Ended:
    """The run has ended, or goes on as something else; the first process has recorded it."""

    code: int
    following: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Refused:
    """A process other than the first one cannot go on."""

    rank: int
    error: str
    hint: str


@dataclass(frozen=True)
class Lost:
    """A process is lost; None where it is not known which one."""

    rank: int | None
    what: str
    """The fate of the process, as the end of a sentence: ``was ended by SIGKILL``."""


Verdict = Ended | Refused | Lost


def judge(signs: Sequence[Sign], timeout: float, *, settled: bool) -> Verdict | None:
    """The verdict on the processes of a run; None while it goes on.

    Args:
        signs: Of each process, the first one first.
        timeout: Seconds without a sign of life after which a process is lost.
        settled: Whether those who have lost another have ended for long enough that the other's end is known too.
    """
    first = signs[0]
    if first.status in FINAL:
        return Ended(first.status, first.following)
    for sign in signs[1:]:
        if sign.status == EXIT_CODES["failed"] and sign.error:
            return Refused(sign.rank, sign.error, sign.hint)
    for sign in signs:
        if sign.status not in (None, 0) and not sign.has_lost:
            return Lost(sign.rank, describe_end(sign.status))
    for sign in signs:
        patience = timeout if sign.has_begun else max(timeout, START_SECONDS)
        if sign.status is None and sign.silent >= patience:
            return Lost(sign.rank, f"gave no sign of life for {sign.silent:.0f} s")
    if settled and any(sign.has_lost for sign in signs):
        return _of_those_left(signs)
    return _hangs(signs, timeout)


def _hangs(signs: Sequence[Sign], timeout: float) -> Lost | None:
    """The first process, where it lives and does nothing, and all others bear witness: each has waited for it, in one
    wait, for longer than common work may take.
    """
    first, *others = signs
    patience = timeout + QUIET_SECONDS
    if any(sign.status is not None or sign.silent >= QUIET_SECONDS for sign in signs):
        return None
    if not others or first.is_waiting or first.still < patience or any(sign.waits < patience for sign in others):
        return None
    at = f" at {first.at}" if first.at else ""
    waited = min(sign.waits for sign in others)
    return Lost(first.rank, f"hangs{at}, where the others have waited for it for {waited:.0f} s")


def _of_those_left(signs: Sequence[Sign]) -> Lost:
    """The process that others have waited for in vain."""
    left = [sign for sign in signs if sign.status is None]
    for sign in left:
        if sign.silent >= QUIET_SECONDS:
            return Lost(sign.rank, f"gave no sign of life for {sign.silent:.0f} s")
    for sign in left:
        if not sign.is_waiting:
            return Lost(sign.rank, "did not come to where the others waited for it")
    said = next((sign.error for sign in signs if sign.error), "")
    return Lost(None, f"cannot reach each other{f' ({said})' if said else ''}")
