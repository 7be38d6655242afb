"""Forced end of workers, and the record written on their behalf."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import UserError
from core.launch.launcher import kill
from core.runs.record.events import FinishedEvent, StoppedEvent, encode_event
from core.runs.record.state import RunState, hostname, start_identity
from core.runs.record.store import Run
from core.runs.record.tail import EventTail


@pytest.fixture
def hung(run: Run) -> Iterator[Run]:
    """A run whose worker does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        started = start_identity(process.pid)
        state = RunState(state="training", pid=process.pid, pid_started=started, host=hostname(), step=4, total_steps=9)
        dataclasses.replace(state, updated=time.time()).write(run.state_path)
        yield run
        process.kill()


def test_a_killed_worker_has_been_stopped(hung: Run) -> None:
    hung.events_path.write_text('{"t": 1, "type": "st')
    assert kill(hung, 20).state == "stopped"
    end = EventTail(hung.events_path).read_all()[-1]
    assert isinstance(end, StoppedEvent)
    assert (end.step, end.reason) == (4, "stopped by SIGKILL after step 4")


def test_one_that_has_told_its_end_and_hung_after_it_keeps_that_end(hung: Run) -> None:
    end = FinishedEvent(reason="all steps done", step=9, adapter="adapter")
    hung.events_path.write_text(encode_event(end))
    assert kill(hung, 20).state == "finished"
    assert EventTail(hung.events_path).read_all() == [end]


def test_the_end_is_written_into_no_other_file(hung: Run, tmp_path: Path) -> None:
    other = tmp_path / "profile"
    other.write_text("export A=1\n")
    hung.events_path.symlink_to(other)
    with pytest.raises(UserError, match=r"events.jsonl cannot be written"):
        kill(hung, 20)
    assert other.read_text() == "export A=1\n"
