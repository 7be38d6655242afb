from __future__ import annotations

from pathlib import Path

import pytest

from core.audit.job import audit_job
from core.config.schema import Config
from core.errors import UserError
from core.runs.record.chain import Chain
from core.runs.record.events import CheckpointEvent, FinishedEvent, PhaseEvent, RanksEvent, StepEvent, encode_event
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run, create_run


def test_a_live_run_is_refused(tmp_path: Path) -> None:
    config = Config.model_validate({"model": {"base": "tiny"}, "data": {"train": str(tmp_path / "rows.jsonl")}})
    run = create_run(config, "live")
    pid, identity = own_identity()
    RunState(state="training", pid=pid, pid_started=identity, host=hostname()).write(run.state_path)
    with pytest.raises(UserError, match="only a run that is over can be verified"):
        audit_job(run, spans=1, seed=1).run()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "device", "sentence"),
    [
        (2, "cuda:0", "The run was computed by several processes on cards"),
        (65, "cpu", "The run was computed by 65 processes, and 64 at most are started to execute it again"),
    ],
)
def test_processes_that_are_not_started_here_are_told(tmp_path: Path, count: int, device: str, sentence: str) -> None:
    config = Config.model_validate({"model": {"base": "tiny"}, "data": {"train": str(tmp_path / "rows.jsonl")}})
    run = create_run(config, "many")
    RunState(state="finished", pid=1).write(run.state_path)
    ranks = [{"rank": rank, "host": "tower", "device": device} for rank in range(count)]
    step = StepEvent(
        step=1, epoch=1.0, loss=1.0, lr=0.1, grad_norm=1.0, tokens=1, supervised_tokens=1, seconds=1.0,
        tokens_per_second=1.0,
    )  # fmt: skip
    saved = CheckpointEvent(step=1, path="checkpoints/step-00000001", bytes=1, seconds=1.0)
    events = [PhaseEvent(name="importing"), RanksEvent(ranks=ranks), step, saved, FinishedEvent(reason="", step=1)]
    run.events_path.write_text("".join(map(encode_event, events)))
    seal_checkpoint(run)
    found = audit_job(run, spans=1, seed=1).run()
    assert found.spans == ()
    assert any(note.startswith(sentence) and note.endswith("only the chain is checked.") for note in found.notes)


def seal_checkpoint(run: Run) -> None:
    """A chain that knows a checkpoint of step 1, whose files are gone."""
    Chain(run.path, run.events_path).append("checkpoint", {"step": 1, "manifest": {"step": 1, "files": {}}})
