"""Hints after the end of a run agree with the behavior of ``continue``."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.commands.common import find_live_run
from core.errors import UserError
from core.launch import force
from core.launch.launcher import continue_run
from core.runs.control.client import ControlClient
from core.runs.record.events import StoppedEvent
from core.runs.record.state import RunState
from core.runs.record.store import Run, complete_checkpoints, create_run, way_on
from core.runs.record.tail import EventTail
from tests.cases import cases
from tests.core.runs.helpers import config_for


def end(run: Run, state: str = "stopped", *, saved: bool) -> None:
    """Let a run have ended at its third step."""
    RunState(state=state, step=3, total_steps=9).write(run.state_path)
    if saved:
        checkpoint = run.checkpoints_path / "step-00000003"
        checkpoint.mkdir(parents=True)
        (checkpoint / "manifest.json").write_text("{}")


@cases("state", ["stopped", "failed"])
@cases("saved", [True, False])
def test_continue_is_advised_only_where_it_does_something(
    home: Path, state: str, saved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(config_for(home), "tickets")
    end(run, state, saved=saved)
    said = way_on(run)
    assert ("continue" in said) is saved
    assert ("start it again" in said) is not saved
    for ask in (lambda: find_live_run(run.id, "pause"), lambda: ControlClient(run).request("ping")):
        with pytest.raises(UserError) as caught:
            ask()
        assert caught.value.hint == said
    started: list[Run] = []
    monkeypatch.setattr("core.launch.launcher._spawn", lambda run, **_: started.append(run))
    if saved:
        continue_run(run)
        assert started == [run]
    else:
        with pytest.raises(UserError, match="has no complete checkpoint"):
            continue_run(run)


@pytest.mark.parametrize("saved", [True, False])
def test_a_killed_run_says_the_same(run: Run, saved: bool) -> None:
    end(run, "training", saved=saved)
    force.kill(run, 5)
    last = EventTail(run.events_path).read_all()[-1]
    assert isinstance(last, StoppedEvent)
    assert last.hint == way_on(run)


def test_the_command_can_be_pasted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(home / "a b"))
    spaced = create_run(config_for(home), "tickets")
    assert not complete_checkpoints(spaced)
    assert f"localtune-tui train '{spaced.config_path}'" in way_on(spaced)


def test_a_secret_in_the_name_of_a_run_is_not_in_its_id(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "plain-horse-4711")
    assert create_run(config_for(home), "run-plain-horse-4711").id.endswith("-run")
