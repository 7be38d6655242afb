from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.audit.result import Audit, ChainResult, Difference, Outcome, SpanResult
from core.commands.command_line import command_parser
from core.commands.verify import EXIT_DIFFERS, result_lines
from core.config.schema import Config
from core.jobs.job import Job
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.cases import cases


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has failed before its first step."""
    config = Config.model_validate({"model": {"base": "tiny"}, "data": {"train": str(tmp_path / "rows.jsonl")}})
    made = create_run(config, "tickets")
    RunState(state="failed", reason="no base").write(made.state_path)
    return made


def verify(*words: str) -> int:
    args = command_parser("verify").parse_args(list(words))
    code: int = args.run_command(args)
    return code


HEAD = "f00d" * 16


def found(outcome: Outcome, *differences: Difference, head: str | None = HEAD) -> Audit:
    span = SpanResult(begin=0, end=4, outcome=outcome, reason="Because.", differences=differences, seconds=2.0)
    chain = ChainResult(head=head, links=3)
    return Audit(run="r", chain=chain, inputs=(), spans=(span,), notes=("A note.",), seed=7, seconds=3.0)


@cases(
    ("outcome", "code", "said"),
    [
        ("equal", 0, "Verified: every byte that was computed again came out as it was recorded."),
        ("differs", EXIT_DIFFERS, "Not what was recorded."),
        ("inexact", 1, "Not proven"),
        ("skipped", 1, "Not proven"),
    ],
)
def test_exit_codes_and_sentences(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcome: Outcome,
    code: int,
    said: str,
) -> None:
    difference = Difference(what="loss of step 3 came out otherwise.", step=3, recorded="0.1", found="0.2")
    audit = found(outcome, *([difference] if outcome in ("differs", "inexact") else []))
    monkeypatch.setattr(Job, "run", lambda *_: audit)
    assert verify(run.id) == code
    out = capsys.readouterr().out
    assert said in out
    assert f"chain      whole, 3 links\nhead       {HEAD}\n" in out
    assert "note       A note." in out
    assert "steps 1 to 4 " in out
    assert ("Recorded 0.1, found 0.2." in out) == bool(audit.spans[0].differences)
    assert verify(run.id, "--json") == code
    printed = json.loads(capsys.readouterr().out)
    assert printed == audit.to_dict()
    assert printed["spans"][0]["from"] == 0


def test_a_head_is_twelve_digits_of_a_hash_at_least(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for typed in ("1f71e5f8c27", "not-a-hash-at-all", "f" * 65):
        with pytest.raises(SystemExit) as refused:
            verify(run.id, "--head", typed)
        assert refused.value.code == 2
        assert "64 hexadecimal digits" in capsys.readouterr().err
    assert command_parser("verify").parse_args(["r", "--head", "1F71E5F8C279…"]).head == "1f71e5f8c279"


def test_an_interval_of_one_step_is_one_step() -> None:
    audit = replace(found("equal"), spans=(SpanResult(begin=4, end=5, outcome="equal"),))
    assert any(line.startswith("step 5 ") for line in result_lines(audit))


def test_the_chain_alone_is_enough_where_it_was_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = Audit(run="r", chain=ChainResult(head="f00d", links=3), inputs=(), spans=(), notes=(), seed=7, seconds=3.0)
    monkeypatch.setattr(Job, "run", lambda *_: audit)
    assert verify(run.id, "--spans", "0") == 0
    assert "The chain is whole; nothing was executed again." in capsys.readouterr().out
    assert verify(run.id) == 1


def test_a_run_without_steps_is_not_proven_and_starts_no_process(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(run.id) == 1
    out = capsys.readouterr().out
    assert "chain      none" in out
    assert "The run has no checkpoint that its training could be compared with." in out


@cases("words", [["--spans", "-1"], ["--spans", "x"], ["--seed", "x"]])
def test_wrong_usage(run: Run, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        verify(run.id, *words)
