"""Events added by a process that is not the run's worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config.schema import Config
from core.runs.record.events import NoticeEvent
from core.runs.record.files import append_events, append_while_open, closing_record
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from core.runs.record.tail import EventTail
from tests.cases import cases

NOTICE = NoticeEvent(level="warning", code="hot", message="It is hot.", hint="")


@pytest.fixture
def run(private_home: Path) -> Run:
    return new_run()


def new_run() -> Run:
    return create_run(Config.model_validate({"data": {"train": "rows.jsonl"}}), "mine")


@pytest.fixture
def record(run: Run) -> Iterator[int]:
    """The record as its worker has it open."""
    descriptor = os.open(run.events_path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def told(run: Run) -> int:
    return len(list(EventTail(run.events_path).read_all()))


def test_a_line_that_a_kill_cut_short_is_ended_first(run: Run) -> None:
    run.events_path.write_bytes(b'{"type": "not')
    append_events(run, NOTICE, NOTICE)
    assert run.events_path.read_bytes().startswith(b'{"type": "not\n{')
    assert told(run) == 2


@cases(("state", "added"), [("training", True), ("paused", True), ("finished", False)])
def test_nothing_comes_after_the_recorded_end(private_home: Path, state: str, added: bool) -> None:
    run = new_run()
    RunState(state=state).write(run.state_path)
    assert append_while_open(run, NOTICE) is added
    assert told(run) == added


def test_nothing_comes_into_a_record_that_is_being_closed(run: Run, record: int) -> None:
    RunState(state="training").write(run.state_path)
    with closing_record(record):
        assert not append_while_open(run, NOTICE)
    assert told(run) == 0
    assert append_while_open(run, NOTICE)


def test_a_process_that_was_forked_meanwhile_keeps_no_record_closed(run: Run, record: int) -> None:
    with closing_record(record):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[record])
    try:
        assert append_while_open(run, NOTICE)
    finally:
        child.communicate(b"\n")


def test_an_end_is_recorded_without_locks(run: Run) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.close(writing)
    with closing_record(writing):
        append_events(run, NOTICE)
    assert told(run) == 1
