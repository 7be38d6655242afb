from __future__ import annotations

import errno
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.helper import Helper
from core.runs.record.state import RunState, hostname, own_identity
from core.selftest import job
from core.selftest.checks import SUBJECTS, Check, Subject
from core.selftest.job import Progress, SelfTest, SelfTestCancelledError
from core.selftest.sizes import Sizes
from tests.cases import cases

DRIVER, FAST = SUBJECTS[0], SUBJECTS[1]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "MODULE", "tests.core.selftest.scripted_check")


def planned(subjects: tuple[Subject, ...] = SUBJECTS, **plan: str) -> SelfTest:
    """A self-test whose checks do as the plan says; the others pass."""
    return SelfTest(subjects, lambda sizes: replace(sizes, model=json.dumps(plan)))


def results(checks: tuple[Check, ...]) -> dict[str, str]:
    return {check.name: check.result for check in checks}


def test_every_check_is_made_and_knows_the_device() -> None:
    seen: list[Progress] = []
    report = planned().run(seen.append)
    assert [check.name for check in report.checks] == [subject.name for subject in SUBJECTS]
    assert report.passed
    assert report.device == {"kind": "cuda", "name": "Card 9000"}
    # The first check finds the device, and the others are told of it.
    assert "driver on unknown" in report.checks[0].detail
    assert all("on cuda" in check.detail for check in report.checks[1:])
    assert any(progress.activity == "working" and progress.total == 2 for progress in seen)
    assert seen[-1].device == "Card 9000"
    assert len(seen[-1].checks) == len(SUBJECTS)
    assert os.listdir(paths.selftest_dir()) == [".lock"]


def test_the_sizes_are_those_of_the_device() -> None:
    asked: list[Sizes] = []

    def shape(sizes: Sizes) -> Sizes:
        asked.append(sizes)
        return replace(sizes, model="{}")

    SelfTest((DRIVER, FAST), shape).run()
    assert asked[0] == Sizes.of("cpu")
    assert asked[-1] == Sizes.of("cuda")


@cases(
    ("what", "said"),
    [
        ("code", "Its process ended with code 1, without a word."),
        ("signal", "Its process was ended by SIGBUS; the last it said: Fatal Python error: Bus error"),
        ("word", "Its process ended with code 3; the last it said: broken in <path>"),
        ("odd", "Its process was ended by SIGKILL, without a word."),
    ],
)
def test_a_process_that_ends_without_an_outcome_has_failed_and_the_others_go_on(what: str, said: str) -> None:
    report = planned(fast_paths=what).run()
    checks = {check.name: check for check in report.checks}
    failed = checks["fast_paths"]
    assert failed.result == "fail"
    assert failed.detail.startswith(said) or what == "odd"
    assert not report.passed
    assert [check.result for check in report.checks].count("pass") == len(SUBJECTS) - 1


def test_a_check_that_takes_too_long_is_ended() -> None:
    late = replace(FAST, deadline=1.0)
    report = planned((DRIVER, late, SUBJECTS[2]), fast_paths="hang").run()
    assert results(report.checks) == {"driver": "pass", "fast_paths": "fail", "training": "pass"}
    assert report.checks[1].detail == "It was not done after 1.0s, and was ended."


def test_what_is_closed_leaves_no_process_and_no_file() -> None:
    test = planned(driver="hang")
    begun = threading.Event()
    raised: list[BaseException] = []

    def run() -> None:
        try:
            test.run(lambda progress: begun.set() if progress.activity else None)
        except SelfTestCancelledError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert begun.wait(30)
    helper = test._helper
    assert helper is not None
    test.close()
    thread.join(30)
    assert raised
    assert helper.process.returncode is not None
    assert os.listdir(paths.selftest_dir()) == [".lock"]
    with pytest.raises(SelfTestCancelledError):
        test.run()


def test_a_missing_model_fails_the_checks_that_need_it_alone() -> None:
    test = SelfTest(shape=lambda sizes: replace(sizes, resume_steps=6))

    def ask(name: str, *_: object) -> job._Answers:
        return job._Answers("fail", "no network.") if name == "prepare" else job._Answers("pass", "fine.")

    test._ask = ask  # type: ignore[method-assign,assignment]
    report = test.run()
    found = {check.name: check for check in report.checks}
    assert found["driver"].result == "pass"
    assert all(found[subject.name].result == "fail" for subject in SUBJECTS if subject.needs_model)
    assert found["training"].detail == "Not tried: no network."


def test_a_live_run_is_not_disturbed(private_home: Path) -> None:
    run = paths.make_private_dir(paths.runs_dir() / "20260101-000000-live")
    (run / "run.toml").write_text("", encoding="utf-8")
    pid, identity = own_identity()
    state = RunState(state="training", pid=pid, pid_started=identity, host=hostname(), updated=time.time(), step=3)
    state.write(run / "state.json")
    with pytest.raises(UserError, match="20260101-000000-live is training"):
        planned().run()
    replace(state, state="finished").write(run / "state.json")
    assert planned((DRIVER,)).run().passed


def test_only_one_self_test_at_a_time() -> None:
    inner: list[str] = []

    def meanwhile(progress: Progress) -> None:
        if progress.activity and not inner:
            with pytest.raises(UserError, match="Another self-test is on"):
                planned((DRIVER,)).run()
            inner.append("refused")

    planned((DRIVER,)).run(meanwhile)
    assert inner == ["refused"]


def test_what_a_killed_one_has_left_is_removed() -> None:
    left = paths.make_private_dir(paths.selftest_dir() / "work-left")
    (left / "log").touch()
    planned((DRIVER,)).run()
    assert not left.exists()


def test_without_locks_nothing_of_another_one_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("core.selftest.job.fcntl.flock", without_locks)
    other = paths.make_private_dir(paths.selftest_dir() / "work-other")
    assert planned((DRIVER,)).run().passed
    assert list(paths.selftest_dir().glob("work-*")) == [other]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space"), UserError("No process can be started.")])
def test_a_check_that_cannot_be_begun_has_failed_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    test = planned((DRIVER, FAST, SUBJECTS[2]))
    start = test._start

    def failing(name: str, log: int) -> Helper:
        if name == "fast_paths":
            raise error
        return start(name, log)

    monkeypatch.setattr(test, "_start", failing)
    report = test.run()
    assert results(report.checks) == {"driver": "pass", "fast_paths": "fail", "training": "pass"}
    assert "is full" in report.checks[1].detail or "No process" in report.checks[1].detail
    assert os.listdir(paths.selftest_dir()) == [".lock"]
