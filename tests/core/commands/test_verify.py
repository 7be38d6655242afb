from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.audit.result import Audit, ChainResult, Difference, Outcome, SpanResult
from core.commands.command_line import command_parser
from core.commands.verify import result_lines
from core.config.schema import Config
from core.jobs.job import Job
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.cases import cases, tables

from .conftest import Call

TABLES = tables(__file__)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has failed before its first step."""
    config = Config.model_validate({"model": {"base": "tiny"}, "data": {"train": str(tmp_path / "rows.jsonl")}})
    made = create_run(config, "tickets")
    RunState(state="failed", reason="no base").write(made.state_path)
    return made


HEAD = "f00d" * 16


def found(outcome: Outcome, *differences: Difference, head: str | None = HEAD) -> Audit:
    span = SpanResult(begin=0, end=4, outcome=outcome, reason="Because.", differences=differences, seconds=2.0)
    chain = ChainResult(head=head, links=3)
    return Audit(run="r", chain=chain, inputs=(), spans=(span,), notes=("A note.",), seed=7, seconds=3.0)


@cases(("outcome", "code", "said"), TABLES["exit_codes_and_sentences"])
def test_exit_codes_and_sentences(
    call: Call, run: Run, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, code: int, said: str
) -> None:
    difference = Difference(what="loss of step 3 came out otherwise.", step=3, recorded="0.1", found="0.2")
    audit = found(outcome, *([difference] if outcome in ("differs", "inexact") else []))
    monkeypatch.setattr(Job, "run", lambda *_: audit)
    told = call("verify", run.id)
    assert told.code == code
    for words in (said, f"chain      whole, 3 links\nhead       {HEAD}\n", "note       A note.", "steps 1 to 4 "):
        assert words in told.out
    assert ("Recorded 0.1, found 0.2." in told.out) == bool(audit.spans[0].differences)
    printed = call("verify", run.id, "--json")
    assert (printed.code, printed.json) == (code, audit.to_dict())
    assert printed.json["spans"][0]["from"] == 0


def test_a_head_is_twelve_digits_of_a_hash_at_least(call: Call, run: Run) -> None:
    for typed in ("1f71e5f8c27", "not-a-hash-at-all", "f" * 65):
        call.refused("64 hexadecimal digits", "verify", run.id, "--head", typed, code=2)
    assert command_parser("verify").parse_args(["r", "--head", "1F71E5F8C279…"]).head == "1f71e5f8c279"
    for words in (("--spans", "-1"), ("--spans", "x"), ("--seed", "x")):
        call.refused("error: ", "verify", run.id, *words, code=2)


def test_an_interval_of_one_step_is_one_step() -> None:
    audit = replace(found("equal"), spans=(SpanResult(begin=4, end=5, outcome="equal"),))
    assert any(line.startswith("step 5 ") for line in result_lines(audit))


def test_the_chain_alone_is_enough_where_it_was_asked_for(
    call: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Job, "run", lambda *_: replace(found("equal"), spans=()))
    told = call.ok("verify", run.id, "--spans", "0")
    assert "The chain is whole; nothing was executed again." in told.out
    assert call("verify", run.id).code == 1


def test_a_run_without_steps_is_not_proven_and_starts_no_process(call: Call, run: Run) -> None:
    told = call("verify", run.id)
    assert told.code == 1
    assert "chain      none" in told.out
    assert "The run has no checkpoint that its training could be compared with." in told.out
