"""The self-test itself, with as little work as its checks make sense with."""

from __future__ import annotations

import io
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.errors import UserError
from core.hardware.cpu import cpu_name
from core.jobs.process import Answers
from core.memory.calibration import read_calibration
from core.selftest.job import selftest_job
from core.selftest.report import SUBJECTS, Check, Report, report_text
from core.selftest.sizes import Shape, Sizes
from core.worker.selftest import check as checking
from core.worker.selftest.check import Bench, Outcome
from tests.core.runs.helpers import there

#: The least work with which each check makes sense.
SMALLEST: dict[str, Any] = {
    "curve_steps": 4,
    "resume_steps": 6,
    "speed_steps": 2,
    "speed_seconds": 1.0,
    "matrix": 512,
    "shapes": (Shape(2, 64),),
    "shortage": Shape(4, 128),
    "speed": Shape(2, 64),
}


def made(model: Path, *names: str, **changes: object) -> Report:
    """Some of the checks, on the CPU with a model."""

    def shape(sizes: Sizes) -> Sizes:
        return replace(sizes, model=str(model), device="cpu", **SMALLEST | changes)

    return selftest_job([subject for subject in SUBJECTS if subject.name in names], shape).run()


def by_name(report: Report) -> dict[str, Check]:
    return {check.name: check for check in report.checks}


# A forked process has not the pages of the libraries that it does not use.
@pytest.mark.anew
@pytest.mark.long
def test_the_checks_that_any_model_will_do_for(tiny_model_dir: Path) -> None:
    # A rank-16 adapter on two tiny layers takes hardly any memory: this measures the process.
    report = made(tiny_model_dir, "driver", "fast_paths", "memory", "resume", "waits", "speed", resume_steps=40)
    found = by_name(report)
    assert {name: check.result for name, check in found.items()} == {
        "driver": "not applicable",
        "fast_paths": "pass",
        "memory": "pass",
        "resume": "pass",
        "waits": "not applicable",
        "speed": "pass",
    }, report_text(report)
    assert report.passed
    assert (report.device["kind"], report.device["name"]) == ("cpu", cpu_name())
    assert "losses and the adapter's bytes are the same" in found["resume"].detail
    kept = there(read_calibration(cpu_name()))
    assert None not in (kept.matrix_rate, kept.memory_rate)
    assert not list(paths.runs_dir().glob("*"))
    assert sorted(path.name for path in paths.selftest_dir().iterdir()) == [".lock"]


@pytest.mark.long
def test_the_starter_model_learns_as_recorded(starter_model_dir: Path) -> None:
    check = by_name(made(starter_model_dir, "training"))["training"]
    assert check.result == "pass", check.detail


@pytest.mark.long
def test_memory_really_runs_out_in_forward_and_backward_and_the_run_survives(starter_model_dir: Path) -> None:
    check = by_name(made(starter_model_dir, "out_of_memory"))["out_of_memory"]
    assert check.result == "pass", check.detail
    assert "forward and in backward" in check.detail


def test_a_run_that_learns_otherwise_fails(tiny_model_dir: Path) -> None:
    report = made(tiny_model_dir, "training")
    check = by_name(report)["training"]
    assert check.result == "fail"
    assert "Steps outside: 1, 2, 3, 4." in check.detail


def test_a_model_that_cannot_be_trained_fails_in_a_sentence(tmp_path: Path) -> None:
    report = made(tmp_path / "nothing here", "memory", shapes=(Shape(2, 64),))
    check = by_name(report)["memory"]
    assert check.result == "fail"
    assert check.detail.startswith("The run failed:")
    assert str(tmp_path) not in check.detail


def test_what_a_check_fails_by_is_reported_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(bench: Bench) -> Outcome:
        raise UserError("The disk is full.", "Make room.")

    monkeypatch.setattr(checking, "_prepare", failing)
    request = {"name": "prepare", "work": "", "sizes": asdict(Sizes()), "device": {}}
    outcome = checking.check(request, Answers(io.BytesIO()))
    assert outcome == {"result": "fail", "detail": "The disk is full. Make room.", "device": None}
