"""The self-test as a job: each check in a process of its own, one after another, with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core import paths
from core.directories import disk_error
from core.errors import UserError
from core.helper import Helper, describe_end
from core.launch.launcher import worker_environment
from core.models.files import read_record
from core.models.find import STARTER_NAME
from core.runs.record.state import hostname, in_words
from core.runs.record.store import list_runs
from core.selftest.checks import RESULTS, SUBJECTS, Check, Result, Subject
from core.selftest.report import Report, without_names
from core.selftest.sizes import Sizes
from core.text import one_line
from core.units import format_duration

MODULE = "core.worker.selftest"
#: Seconds allowed for fetching and converting the starter model.
PREPARE_SECONDS = 900.0
#: The most characters of what a check says.
_DETAIL_LENGTH = 600
_WORK = "work-"


class SelfTestCancelledError(Exception):
    """The self-test was closed before it was done."""


@dataclass(frozen=True)
class Progress:
    """Progress of the self-test.

    Args:
        device: The device in words; empty until it is known.
        checks: Results so far.
        current: The check at work; None before the first and after the last.
        activity: Its activity in a few words.
        done: How much of it, and of how much, where that is counted.
        total: The same.
    """

    device: str = ""
    checks: tuple[Check, ...] = ()
    current: Subject | None = None
    activity: str = ""
    done: int | None = None
    total: int | None = None


@dataclass
class _Answers:
    """The last messages of a helper process."""

    result: Result | None = None
    detail: str = ""
    device: dict[str, Any] = field(default_factory=dict)


class SelfTest:
    """The self-test. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        subjects: The checks that are made.
        shape: Turns the sizes for a kind of device into those that are used.
        environment: Variables of the checks' processes besides those of every worker.
    """

    def __init__(
        self,
        subjects: Sequence[Subject] = SUBJECTS,
        shape: Callable[[Sizes], Sizes] = lambda sizes: sizes,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._subjects, self._shape = tuple(subjects), shape
        self._environment = environment or {}
        self._guard = threading.Lock()
        self._helper: Helper | None = None
        self._is_closed = False
        self._is_late = False

    def run(self, progress: Callable[[Progress], None] = lambda _: None) -> Report:
        """Make all checks.

        Args:
            progress: Called several times a second while something changes.

        Raises:
            SelfTestCancelledError: If it is closed meanwhile.
            UserError: If a run is on, another self-test is, or the home cannot be written.
        """
        refuse_beside_run()
        with _work_directory() as work:
            return self._run(work, progress)

    def close(self) -> None:
        """End it; may be called twice, and after it has ended."""
        with self._guard:
            self._is_closed = True
            if self._helper is not None:
                self._helper.end()

    def _run(self, work: Path, progress: Callable[[Progress], None]) -> Report:
        device: dict[str, Any] = {}
        missing: str | None = None
        prepared = False
        shown = Progress()
        for subject in self._subjects:
            if subject.needs_model and not prepared:
                prepared, missing = True, self._prepare(work, device, shown, progress)
            began = time.monotonic()
            shown = replace(shown, current=subject, activity="", done=None, total=None)
            progress(shown)
            if subject.needs_model and missing is not None:
                answers = _Answers("fail", f"Not tried: {missing}")
            else:
                answers = self._ask(subject.name, subject.deadline, work, device, shown, progress)
            device = answers.device or device
            result, detail = answers.result or "fail", one_line(without_names(answers.detail), _DETAIL_LENGTH)
            check = Check(subject.name, result, detail, time.monotonic() - began)
            shown = Progress(_in_words(device), (*shown.checks, check))
            progress(shown)
        return Report.of(device, shown.checks)

    def _prepare(
        self, work: Path, device: dict[str, Any], shown: Progress, progress: Callable[[Progress], None]
    ) -> str | None:
        """Make the starter model ready where it is not; returns why that cannot be."""
        if self._sizes(device).model != STARTER_NAME or read_record(paths.models_dir() / STARTER_NAME) is not None:
            return None
        answers = self._ask("prepare", PREPARE_SECONDS, work, device, replace(shown, current=None), progress)
        return None if answers.result == "pass" else answers.detail

    def _sizes(self, device: dict[str, Any]) -> Sizes:
        return self._shape(Sizes.of(str(device.get("kind") or "cpu")))

    def _ask(
        self,
        name: str,
        deadline: float,
        work: Path,
        device: dict[str, Any],
        shown: Progress,
        progress: Callable[[Progress], None],
    ) -> _Answers:
        """Have a helper process make a check; however it ends, there is a result."""
        place = work / name
        request = {"work": str(place), "sizes": self._sizes(device).to_dict(), "device": device}
        try:
            return self._ask_in(place, name, deadline, request, shown, progress)
        except OSError as error:
            # What the checks before it have found is not lost.
            return _Answers("fail", str(disk_error(work, error)))
        except UserError as error:
            return _Answers("fail", str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _ask_in(
        self,
        place: Path,
        name: str,
        deadline: float,
        request: dict[str, Any],
        shown: Progress,
        progress: Callable[[Progress], None],
    ) -> _Answers:
        """Have a helper process make a check in a directory that is made for it.

        Raises:
            OSError: If that directory cannot be written.
            UserError: If no process can be started.
        """
        place.mkdir(mode=paths.DIRECTORY_MODE)
        log = os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, paths.FILE_MODE)
        try:
            helper = self._start(name, log)
            timer = threading.Timer(deadline, self._end_late)
            timer.daemon = True
            timer.start()
            try:
                with helper:
                    answers = _follow(helper, request, shown, progress)
                    status = helper.end() if answers.result is None else 0
            finally:
                timer.cancel()
                timer.join()
                with self._guard:
                    self._helper = None
        finally:
            os.close(log)
        if self._is_closed:
            raise SelfTestCancelledError
        if answers.result is None:
            answers.result = "fail"
            answers.detail = self._why(status, deadline, place / "log")
        return answers

    def _start(self, name: str, log: int) -> Helper:
        with self._guard:
            if self._is_closed:
                raise SelfTestCancelledError
            self._is_late = False
            environment = worker_environment() | self._environment
            self._helper = Helper(MODULE, name, environment=environment, log=log)
            return self._helper

    def _end_late(self) -> None:
        with self._guard:
            if self._helper is not None:
                self._is_late = True
                self._helper.end()

    def _why(self, status: int, deadline: float, log: Path) -> str:
        """Why a check has no result, as sentences."""
        if self._is_late:
            return f"It was not done after {format_duration(deadline)}, and was ended."
        with contextlib.suppress(OSError):
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            if lines:
                # After a crash Python prints its stack behind that.
                fatal = [line for line in lines if line.startswith("Fatal Python error")]
                told = one_line((fatal or lines)[-1], 200)
                return f"Its process {describe_end(status)}; the last it said: {told}"
        return f"Its process {describe_end(status)}, without a word."


def _follow(helper: Helper, request: dict[str, Any], shown: Progress, progress: Callable[[Progress], None]) -> _Answers:
    """Read a helper's messages to the end: progress, the device, and the outcome."""
    answers = _Answers()
    with contextlib.suppress(OSError, ValueError):  # it died or was closed: its missing outcome tells
        helper.send(json.dumps(request).encode() + b"\n")
    for line in helper.lines():
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if not isinstance(message, dict):
            continue
        if isinstance(device := message.get("device"), dict):
            answers.device = device
        if isinstance(told := message.get("progress"), dict):
            activity = one_line(str(told.get("activity", "")), 100)
            progress(replace(shown, activity=activity, done=told.get("done"), total=told.get("total")))
        if message.get("result") in RESULTS:
            answers.result, answers.detail = message["result"], str(message.get("detail", ""))
            break
    return answers


def _in_words(device: dict[str, Any]) -> str:
    return one_line(str(device.get("name") or ""), 80)


def refuse_beside_run() -> None:
    """Refuse while a run is on: two trainings at once take each other's memory and time.

    Raises:
        UserError: If one is.
    """
    for run in list_runs():
        state = run.state()
        if not state.is_over and state.host in ("", hostname()):
            raise UserError(
                f"Run {run.id} {in_words(state.state)}, and the self-test would disturb it and measure it along.",
                f"Wait for its end, or stop it: localtune-tui stop {run.id}",
            )


@contextlib.contextmanager
def _work_directory() -> Iterator[Path]:
    """A directory for the runs of a self-test, removed at its end; only one self-test has one at a time.

    Raises:
        UserError: If another one is on, or it cannot be made.
    """
    parent = paths.make_private_dir(paths.selftest_dir())
    try:
        lock = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, paths.FILE_MODE)
    except OSError as error:
        raise disk_error(parent, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("Another self-test is on.", "Wait for its end.") from None
        # A file system without locks: another self-test may be on, so nothing of it is removed.
        except OSError:
            pass
        else:
            for leftover in parent.glob(f"{_WORK}*"):
                shutil.rmtree(leftover, ignore_errors=True)
        try:
            work = Path(tempfile.mkdtemp(prefix=_WORK, dir=parent))
        except OSError as error:
            raise disk_error(parent, error) from error
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        os.close(lock)
