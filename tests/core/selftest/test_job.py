from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.errors import UserError
from core.hardware.proof import TRYING_VARIABLE, Proof, is_proven
from core.jobs.job import Job
from core.selftest import job
from core.selftest.job import SelfTestJob, SelfTestProgress, selftest_job
from core.selftest.report import SUBJECTS, Subject
from core.selftest.sizes import Sizes
from tests.cases import cases
from tests.core.runs.helpers import live_state, there

ROCM = {"kind": "cuda", "name": "Card 9000", "architecture": "gfx1100", "torch": "2.13.0+rocm7.2", "driver": "6.16"}
DRIVER, FAST = SUBJECTS[0], SUBJECTS[1]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PROGRAM", "tests.core.selftest.scripted_check")


def planned(subjects: tuple[Subject, ...] = SUBJECTS, **plan: str) -> SelfTestJob:
    """A self-test whose checks do as the plan says; the others pass."""
    return selftest_job(subjects, lambda sizes: replace(sizes, model=json.dumps(plan)))


def test_every_check_is_made_and_knows_the_device() -> None:
    seen: list[SelfTestProgress] = []
    asked: list[Sizes] = []

    def shape(sizes: Sizes) -> Sizes:
        asked.append(sizes)
        return replace(sizes, model="{}")

    report = selftest_job(shape=shape).run(seen.append)
    assert (asked[0], asked[-1]) == (Sizes.of("cpu"), Sizes.of("cuda"))
    assert [check.name for check in report.checks] == [subject.name for subject in SUBJECTS]
    assert report.passed
    assert report.device == {"kind": "cuda", "name": "Card 9000"}
    # The first check finds the device for the others.
    assert "driver on unknown" in report.checks[0].detail
    assert all("on cuda" in check.detail for check in report.checks[1:])
    assert any(progress.activity == "working" and progress.total == 2 for progress in seen)
    assert seen[-1].device == "Card 9000"
    assert len(seen[-1].checks) == len(SUBJECTS)
    assert os.listdir(paths.selftest_dir()) == [".lock"]


@cases(
    ("what", "said"),
    [
        ("word", "The check failed: its process ended with code 3; its log ends with: broken in <path>"),
        ("odd", "The check has no result."),
    ],
)
def test_a_process_that_ends_without_an_outcome_has_failed_and_the_others_go_on(what: str, said: str) -> None:
    report = planned(fast_paths=what).run()
    checks = {check.name: check for check in report.checks}
    failed = checks["fast_paths"]
    assert failed.result == "fail"
    assert failed.detail.startswith(said)
    assert not report.passed
    assert [check.result for check in report.checks].count("pass") == len(SUBJECTS) - 1


def test_a_whole_self_test_of_an_amd_card_decides_whether_runs_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, cards, tried = {"result": "pass"}, {"driver": ROCM}, []

    def call(_: object, __: str, request: dict[str, Any], *___: object, **options: Any) -> dict[str, Any]:
        tried.append(options["environment"][TRYING_VARIABLE])
        device = cards.get(request["name"])
        result = outcome["result"] if request["name"] == "fast_paths" else "pass"
        return {"result": result, "detail": "…", "device": device}

    monkeypatch.setattr(Job, "call", call)
    proof = there(Proof.of(ROCM))
    assert not is_proven(proof)
    assert planned((DRIVER, FAST)).run().passed
    assert not is_proven(proof), "a part of the checks"
    assert planned().run().passed
    assert is_proven(proof)
    assert not is_proven(replace(proof, torch="2.14.0+rocm7.2"))
    outcome["result"] = "fail"
    assert not planned((DRIVER, FAST)).run().passed
    assert not is_proven(proof)
    outcome["result"] = "pass"
    assert planned().run().passed
    # A check that died before it knew the card.
    outcome["result"] = "fail"
    cards.clear()
    assert not planned().run().passed
    assert not is_proven(proof)
    # The checks themselves compute on a card that is not proven yet.
    assert set(tried) == {"1"}
    assert Proof.of({"kind": "cuda", "torch": "2.13.0", "driver": "580"}) is None


def test_a_missing_model_fails_the_checks_that_need_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(_: object, program: str, request: dict[str, Any], *__: object, **___: object) -> dict[str, Any]:
        if request["name"] == "prepare":
            return {"result": "fail", "detail": "no network."}
        return {"result": "pass", "detail": "fine."}

    monkeypatch.setattr(Job, "call", call)
    report = selftest_job(shape=lambda sizes: replace(sizes, resume_steps=6)).run()
    found = {check.name: check for check in report.checks}
    assert found["driver"].result == "pass"
    assert all(found[subject.name].result == "fail" for subject in SUBJECTS if subject.needs_model)
    assert found["training"].detail == "Not tried: no network."


def test_a_live_run_is_not_disturbed(private_home: Path) -> None:
    run = paths.make_private_dir(paths.runs_dir() / "20260101-000000-live")
    (run / "run.toml").write_text("", encoding="utf-8")
    state = live_state(step=3)
    state.write(run / "state.json")
    with pytest.raises(UserError, match="20260101-000000-live is training"):
        planned().run()
    replace(state, state="finished").write(run / "state.json")
    assert planned((DRIVER,)).run().passed


def test_only_one_self_test_at_a_time() -> None:
    inner: list[str] = []

    def meanwhile(progress: SelfTestProgress) -> None:
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
def test_a_check_that_cannot_begin_fails_alone(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    call = Job.call

    def failing(self: SelfTestJob, program: str, request: dict[str, Any], *rest: Any, **options: Any) -> dict[str, Any]:
        if request["name"] == "fast_paths":
            raise error
        return call(self, program, request, *rest, **options)

    monkeypatch.setattr(Job, "call", failing)
    report = planned((DRIVER, FAST, SUBJECTS[2])).run()
    assert [check.result for check in report.checks] == ["pass", "fail", "pass"]
    assert "is full" in report.checks[1].detail or "No process" in report.checks[1].detail
    assert os.listdir(paths.selftest_dir()) == [".lock"]
