"""Self-test as a job: each check in a process of its own, one after another, with a deadline."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from core import paths
from core.directories import disk_error
from core.errors import UserError
from core.hardware.proof import TRYING_VARIABLE, Proof, settle, take_back
from core.jobs.job import Job, JobProgress
from core.launch.launcher import worker_environment
from core.models.description import read_record
from core.models.find import STARTER_NAME
from core.runs.record.state import hostname, in_words
from core.runs.record.store import list_runs
from core.selftest.report import RESULTS, SUBJECTS, Check, Report, Subject, without_names
from core.selftest.sizes import Sizes
from core.text import one_line

PROGRAM = "core.worker.job self-test"
#: Seconds allowed for fetching and converting the starter model.
PREPARE_SECONDS = 900.0
#: Most characters of a check's detail.
_DETAIL_LENGTH = 600
_WORK = "work-"


@dataclass(frozen=True)
class SelfTestProgress(JobProgress):
    """Progress of the self-test.

    Args:
        device: Name of the device; empty until it is known.
        checks: Results so far.
        current: The running check; None before the first and after the last.
    """

    activity: str = ""
    device: str = ""
    checks: tuple[Check, ...] = ()
    current: Subject | None = None

    @property
    def share(self) -> float:
        """Share of all checks."""
        return (len(self.checks) + (super().share or 0.0)) / len(SUBJECTS)


SelfTestJob = Job[SelfTestProgress, Report]


def selftest_job(
    subjects: Sequence[Subject] = SUBJECTS,
    shape: Callable[[Sizes], Sizes] = lambda sizes: sizes,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> SelfTestJob:
    """The self-test. It is refused beside a run or another self-test.

    Args:
        subjects: The checks.
        shape: Adapts the sizes for a kind of device.
        environment: Additional environment variables of the checks' processes.
    """

    def work(job: SelfTestJob) -> Report:
        refuse_beside_run()
        with _work_directory() as directory:
            return _SelfTest(job, subjects, shape, environment, directory).run()

    return Job("the self-test", work)


@dataclass
class _SelfTest:
    """A running self-test; arguments as for :func:`selftest_job`."""

    job: SelfTestJob
    subjects: Sequence[Subject]
    shape: Callable[[Sizes], Sizes]
    environment: Mapping[str, str]
    directory: Path

    def __post_init__(self) -> None:
        self._device: dict[str, Any] = {}
        self._shown = SelfTestProgress()

    def run(self) -> Report:
        """Run all checks."""
        missing: str | None = None
        prepared = False
        for subject in self.subjects:
            if subject.needs_model and not prepared:
                prepared, missing = True, self._prepare()
            began = time.monotonic()
            self._show(replace(self._shown, current=subject))
            if missing is not None and subject.needs_model:
                outcome = _failed(f"Not tried: {missing}")
            else:
                outcome = self._make(subject.name, subject.deadline)
            self._device = outcome.get("device") or self._device
            detail = one_line(without_names(outcome["detail"]), _DETAIL_LENGTH)
            check = Check(subject.name, outcome["result"], detail, time.monotonic() - began)
            device = one_line(str(self._device.get("name") or ""), 80)
            self._show(SelfTestProgress(device=device, checks=(*self._shown.checks, check)))
        report = Report(self._device, self._shown.checks)
        self._settle(report)
        return report

    def _settle(self, report: Report) -> None:
        """Keep the outcome for a card that needs a proof; a part of the checks proves nothing."""
        proof = Proof.of(report.device)
        is_whole = {subject.name for subject in self.subjects} >= {subject.name for subject in SUBJECTS}
        if report.passed and not is_whole:
            return
        try:
            if proof is not None:
                settle(proof, passed=report.passed)
            elif not report.device:
                take_back()
        except OSError as error:
            raise disk_error(paths.selftest_dir(), error) from error

    def _show(self, progress: SelfTestProgress) -> None:
        self._shown = progress
        self.job.report(progress)

    def _prepare(self) -> str | None:
        """Make the starter model ready; returns an error, or None on success."""
        if self._sizes().model != STARTER_NAME or read_record(paths.models_dir() / STARTER_NAME) is not None:
            return None
        outcome = self._make("prepare", PREPARE_SECONDS)
        return None if outcome["result"] == "pass" else str(outcome["detail"])

    def _sizes(self) -> Sizes:
        return self.shape(Sizes.of(str(self._device.get("kind") or "cpu")))

    def _make(self, name: str, deadline: float) -> dict[str, Any]:
        """Run a check in a process with a directory of its own; every error becomes an outcome.

        Returns:
            ``result`` and ``detail``, and ``device`` from the check that finds the device.
        """
        place = self.directory / name
        request = {"name": name, "work": str(place), "sizes": asdict(self._sizes()), "device": self._device}

        def progress(at: JobProgress) -> None:
            self.job.report(replace(self._shown, activity=at.activity, done=at.done, total=at.total))

        try:
            place.mkdir(mode=paths.DIRECTORY_MODE)
            environment = worker_environment() | {TRYING_VARIABLE: "1"} | dict(self.environment)
            values = self.job.call(
                PROGRAM, request, progress, title="the check", seconds=deadline, environment=environment
            )
        except OSError as error:
            # The results of earlier checks are kept.
            return _failed(str(disk_error(self.directory, error)))
        except UserError as error:
            return _failed(str(error))
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return values if values.get("result") in RESULTS else _failed("The check has no result.")


def _failed(detail: str) -> dict[str, Any]:
    return {"result": "fail", "detail": detail}


def refuse_beside_run() -> None:
    """Refuse while a run is live: two trainings at once take each other's memory and time.

    Raises:
        UserError: If a run is live.
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
    """A directory for the runs of a self-test, removed at its end; only one self-test at a time can have it.

    Raises:
        UserError: If another self-test is running, or the directory cannot be made.
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
        # A file system without locks: another self-test may be running, so nothing is removed.
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
