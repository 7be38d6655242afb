"""Verdicts on the processes of a run: the end of the run, or a lost process. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.helper import describe_end
from core.runs.record.state import EXIT_CODES, EXIT_REFUSED

#: Exit code of a process that lost contact to another one. Lower than the codes of a recorded end, because srun exits
#: with the highest code of its tasks. Argparse uses it too, but before any heartbeat.
EXIT_LOST = 2
#: Exit code of a process after an unexpected error; Python's own.
EXIT_CRASHED = 1
#: Exit codes of rank 0 after it has recorded the end of the run.
FINAL = frozenset({*EXIT_CODES.values(), EXIT_REFUSED})
#: Seconds of silence after which a process that others wait for counts as the lost one.
QUIET_SECONDS = 5.0
#: Maximum seconds until the first heartbeat: an interpreter starts on a busy machine.
START_SECONDS = 120.0


@dataclass(frozen=True)
class Sign:
    """Life signs of one process.

    Args:
        rank: Its rank.
        status: Its exit code, negative for a signal; None while it lives.
        silent: Seconds since its last heartbeat, or since its start.
        has_begun: True after its first heartbeat.
        is_waiting: True if it waited for the others at that time.
        waits: Seconds of its current wait; 0 if it does not wait.
        still: Seconds without progress in short work; 0 in work without a limit, and in ranks after the first.
        at: Its place in the program, if it makes no progress.
        error: Reason of its end, if reported.
        hint: Advice for the user.
        following: Options the run continues with.
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
        """True if it ended because another process does not answer."""
        return self.status == EXIT_LOST and self.has_begun


@dataclass(frozen=True)
class Ended:
    """The run has ended, or continues as something else; rank 0 has recorded it."""

    code: int
    following: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Refused:
    """A rank after the first cannot continue."""

    rank: int
    error: str
    hint: str


@dataclass(frozen=True)
class Lost:
    """A process is lost; ``rank`` is None if unknown."""

    rank: int | None
    what: str
    """Fate of the process, as the end of a sentence: ``was ended by SIGKILL``."""


Verdict = Ended | Refused | Lost


def judge(signs: Sequence[Sign], timeout: float, *, settled: bool) -> Verdict | None:
    """Verdict on the processes of a run; None while it continues.

    Args:
        signs: Signs by rank.
        timeout: Seconds without a heartbeat after which a process is lost.
        settled: Processes that lost another one ended long enough ago that its end is known too.
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
    """Rank 0, if it makes no progress while all others have waited for it, in one wait, longer than the timeout of
    collectives."""
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
