from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.audit.job import audit_job, replay_checkpoint
from core.audit.result import Audit, ChainResult, Outcome, SpanResult, Verdict
from core.config.schema import Config
from core.errors import UserError
from core.jobs.job import Job
from core.runs.record.chain import Chain
from core.runs.record.events import CheckpointEvent, Event, FinishedEvent, NoticeEvent, PhaseEvent, RanksEvent
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.cases import cases
from tests.core.runs.helpers import config_for, live_state, step_event, write_events


def test_a_live_run_is_refused(tmp_path: Path) -> None:
    run = create_run(config_for(tmp_path), "live")
    live_state().write(run.state_path)
    with pytest.raises(UserError, match="only a run that is over can be verified"):
        audit_job(run, spans=1, seed=1).run()


@pytest.mark.slow
@cases(
    ("count", "device", "sentence"),
    [
        (2, "cuda:0", "The run was computed by several processes on cards"),
        (65, "cpu", "The run was computed by 65 processes, and 64 at most are started to execute it again"),
    ],
)
def test_processes_that_are_not_started_here_are_reported(
    tmp_path: Path, count: int, device: str, sentence: str
) -> None:
    gone = {"base": str(tmp_path / "gone")}  # the default is the starter model, which would be prepared
    run = create_run(Config.model_validate({"model": gone, "data": {"train": "x"}}), "many")
    RunState(state="finished", pid=1).write(run.state_path)
    ranks = [{"rank": rank, "host": "tower", "device": device} for rank in range(count)]
    saved = CheckpointEvent(step=1, path="checkpoints/step-00000001", bytes=1, seconds=1.0)
    finished = FinishedEvent(reason="", step=1)
    write_events(run, PhaseEvent(name="importing"), RanksEvent(ranks=ranks), step_event(1), saved, finished)
    # A chain with a checkpoint whose files are gone.
    Chain(run.path, run.events_path).append("checkpoint", {"step": 1, "manifest": {"step": 1, "files": {}}})
    found = audit_job(run, spans=1, seed=1).run()
    assert found.spans == ()
    assert any(note.startswith(sentence) and note.endswith("Only the chain is checked.") for note in found.notes)


def reason_of(run: Run) -> str:
    """Why no checkpoint of a run's first two steps is made."""
    with pytest.raises(UserError) as refused:
        Job("the index", lambda job: replay_checkpoint(run, 2, range(1, 3), job)).run()
    return refused.value.message


def recorded(directory: Path, *events: Event, **facts: str) -> Run:
    """A run with a checkpoint of step 3 in its chain."""
    run = create_run(config_for(directory), "replayed")
    write_events(run, PhaseEvent(name="importing"), *events)
    Chain(run.path, run.events_path).append("checkpoint", {"step": 3, "manifest": {"step": 3, **facts}})
    run.checkpoints_path.mkdir()
    return run


def test_a_checkpoint_is_not_replayed_where_equal_bits_are_not_to_be_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [step_event(step) for step in (1, 2, 3)]
    saved = CheckpointEvent(step=3, path="checkpoints/step-00000003", bytes=1, seconds=1.0)
    skipped = NoticeEvent(level="warning", code="evaluation_skipped", message="")
    fast = recorded(tmp_path, *steps, saved, deterministic="fast")
    assert reason_of(fast).startswith("The run is fast, not strict, on its card")
    assert reason_of(recorded(tmp_path, *steps, skipped, saved)) == (
        "It cannot be executed again: an evaluation was left out for want of memory."
    )
    assert reason_of(recorded(tmp_path, *steps[:1])).startswith("Its record does not lead there from a checkpoint")
    sound = recorded(tmp_path, *steps, saved)
    monkeypatch.setattr("core.directories.shutil.disk_usage", lambda _: SimpleNamespace(free=-1))
    assert "and the checkpoint needs 0 B" in reason_of(sound)
    sound.checkpoints_path.rename(tmp_path / "elsewhere")
    sound.checkpoints_path.symlink_to(tmp_path / "elsewhere")
    assert f"is a link to {tmp_path / 'elsewhere'}" in reason_of(sound)


def test_only_what_was_all_equal_in_the_whole_run_is_verified() -> None:
    def verdict(*outcomes: Outcome, complete: bool = True) -> Verdict:
        spans = tuple(SpanResult(begin=0, end=1, outcome=outcome) for outcome in outcomes)
        chain = ChainResult(head="f00d", links=3)
        facts: dict[str, Any] = {"run": "r", "inputs": (), "notes": (), "seed": 7, "seconds": 3.0}
        return Audit(chain=chain, spans=spans, complete=complete, **facts).verdict

    assert verdict("equal", "equal") == "verified"
    assert verdict("equal", "skipped") == verdict() == verdict("equal", complete=False) == "unproven"
    assert verdict("inexact", "differs") == "differs"
