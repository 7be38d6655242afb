"""The end of a run, told to somebody who was away."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.runs.catalog.result import ended_since, read_outcome
from core.runs.record.sentences import brief_id, slug_of
from tests.cases import cases
from tests.tui.scripted_run import ScriptedRun


def test_a_finished_run_tells_loss_and_exact_match(private_home: Path) -> None:
    script = ScriptedRun(private_home, "20261124-203633-faq", total=30)
    script.train_to(30)
    assert read_outcome(script.run) is None
    script.end("finished", "all steps done")
    outcome = read_outcome(script.run)
    assert outcome is not None
    told = outcome.tell(outcome.ended + 12 * 60)
    assert told.startswith("203633-faq finished 12 min ago while you were away: loss 0.")
    assert told.endswith(", exact match 0.83.")


@pytest.mark.parametrize(
    ("state", "reason", "expected"),
    [
        (
            "failed",
            "there is no file x.\x1b[31m",
            "a failed at step 20 of 120 just now while you were away: there is no",
        ),
        (
            "stopped",
            "stopped on request after step 20",
            "a was stopped at step 20 of 120 just now while you were away:",
        ),
    ],
)
def test_another_end_says_so(private_home: Path, state: str, reason: str, expected: str) -> None:
    script = ScriptedRun(private_home, "a")
    script.begin()
    script.steps(1, 20)
    script.end(state, reason)
    outcome = read_outcome(script.run)
    assert outcome is not None
    told = outcome.tell(time.time())
    assert told.startswith(expected)
    assert "\x1b" not in told


def test_a_lost_run_says_why(private_home: Path) -> None:
    script = ScriptedRun(private_home, "20261124-203633-faq")
    script.begin()
    script.write_state(pid=1, pid_started="another boot")
    outcome = read_outcome(script.run)
    assert outcome is not None
    assert outcome.tell(outcome.ended + 7200).startswith(
        "203633-faq was lost 2 h ago while you were away: its process 1"
    )
    assert ended_since(script.run, outcome.ended - 1)
    assert not ended_since(script.run, outcome.ended)


@cases(
    ("identity", "brief", "slug"),
    [
        ("20261124-203633-faq-2", "203633-faq-2", "faq-2"),
        ("20261124-203633-", "20261124-203633-", "20261124-203633-"),
        ("renamed", "renamed", "renamed"),
        ("", "", ""),
    ],
)
def test_names_of_runs(identity: str, brief: str, slug: str) -> None:
    assert brief_id(identity) == brief
    assert slug_of(identity) == slug


def test_a_refused_result_is_told_instead_of_its_numbers(private_home: Path) -> None:
    script = ScriptedRun(private_home, "20261124-203633-faq", total=30)
    script.train_to(30)
    script.end("finished", "all steps done")
    script.write_state(state="finished", reason="all steps done", refused="loss is 1.20 and should be <= 1.00")
    outcome = read_outcome(script.run)
    assert outcome is not None
    told = outcome.tell(outcome.ended)
    assert told.endswith(": its result is refused by eval.gate: loss is 1.20 and should be <= 1.00.")
