"""Events, state and heartbeat as they reach the disk."""

from __future__ import annotations

import io
import json
import math
import os
import queue
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config.schema import Config, DataSection
from core.runs.record.chain import CHAIN_NAME, Link, read_links
from core.runs.record.events import (
    FailedEvent,
    FinishedEvent,
    HardwareEvent,
    NoticeEvent,
    PhaseEvent,
    StepEvent,
    StoppedEvent,
)
from core.runs.record.state import EventTail, RunState, StepProgress
from core.runs.record.store import Run, append_while_open, create_run
from core.worker.process import recorder as recorder_module
from core.worker.process.recorder import Recorder
from tests.e2e.workers import only
from tests.small_disk import small_disk
from tests.waiting import wait_for


@pytest.fixture
def run(private_home: Path) -> Run:
    return create_run(Config(data=DataSection(train="rows.jsonl")), "test")


@pytest.fixture
def recorder(run: Run) -> Iterator[Recorder]:
    made = Recorder(run)
    yield made
    if made.state.state == "starting":
        made.close("stopped", "the test is over", StoppedEvent(reason="", step=0))


def step(number: int, loss: float = 1.0) -> StepEvent:
    return StepEvent(
        step=number, epoch=0.1, loss=loss, lr=1e-3, grad_norm=1.0, tokens=8, supervised_tokens=4, seconds=0.1,
        tokens_per_second=80.0,
    )  # fmt: skip


def recorded(run: Run) -> RunState:
    state = RunState.read(run.state_path)
    assert state is not None
    return state


def test_it_begins_with_this_process_and_ends_with_the_end(run: Run) -> None:
    recorder = Recorder(run)
    state = recorded(run)
    assert (state.state, state.pid, state.step) == ("starting", os.getpid(), 0)
    assert state.socket == str(run.socket_path)
    assert run.state().state == "starting"
    recorder.update(state="training", step=3, total_steps=9)
    assert (recorded(run).step, recorded(run).total_steps) == (3, 9)
    with pytest.raises(ValueError, match="not an end state"):
        recorder.close("training", "", StoppedEvent(reason="", step=0))
    recorder.close("finished", "all done", FinishedEvent(reason="all done", step=9))
    state = recorded(run)
    assert (state.state, state.reason, state.socket) == ("finished", "all done", None)
    assert isinstance(EventTail(run.events_path).read_all()[-1], FinishedEvent)
    for path in (run.state_path, run.events_path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_event_of_another_process_follows_the_last_event(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, late = Recorder(run), NoticeEvent(level="warning", code="hot", message="Process 1: It is hot.", hint="")
    assert append_while_open(run, late)
    asked: list[bool] = []
    sync = Recorder.sync

    def syncing(recorder: Recorder) -> None:
        asked.append(append_while_open(run, late))
        sync(recorder)

    monkeypatch.setattr(Recorder, "sync", syncing)
    recorder.close("finished", "all done", FinishedEvent(reason="all done", step=9))
    assert not append_while_open(run, late)
    assert asked == [False]
    (end,) = (link for link in read_links(run.path / CHAIN_NAME) if isinstance(link, Link))
    assert (end.kind, end.events.end) == ("end", run.events_path.stat().st_size)


def test_events_are_whole_lines_and_nan_stays_nan(run: Run, recorder: Recorder) -> None:
    recorder.event(step(1, math.nan))
    recorder.phase("training", "a\nb", done=1, total=2)
    recorder.notice("warning", "odd", "Half a character: \ud800.", "Fix it.")
    first, second, third = EventTail(run.events_path).read_all()
    assert isinstance(first, StepEvent)
    assert math.isnan(first.loss)
    assert isinstance(second, PhaseEvent)
    assert (second.detail, second.done, second.total) == ("a\nb", 1, 2)
    assert isinstance(third, NoticeEvent)
    assert '"loss": "NaN"' in run.events_path.read_text()


def test_heartbeats_and_device_readings_are_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "HEARTBEAT_SECONDS", 0.05)
    others = set(threading.enumerate())
    recorder = Recorder(run)
    (heart,) = (thread for thread in threading.enumerate() if thread not in others and thread.name == "heartbeat")
    first = recorded(run).updated
    wait_for(lambda: recorded(run).updated > first, 10, "a heartbeat")

    reading = wait_for(lambda: only(HardwareEvent, run), 10, "a hardware event")[0]
    used, total = reading.host_memory_used, reading.host_memory_total
    assert used is not None
    assert total is not None
    assert 0 < used < total
    recorder.close("stopped", "", StoppedEvent(reason="", step=0))
    ended = run.events_path.read_bytes(), run.state_path.read_bytes()
    assert not heart.is_alive()
    assert (run.events_path.read_bytes(), run.state_path.read_bytes()) == ended


def test_a_resumed_run_keeps_its_step_and_mends_the_line_that_a_killed_worker_left(run: Run) -> None:
    recorder = Recorder(run)
    recorder.event(step(1))
    recorder.update(step=7, total_steps=9)
    recorder.close("stopped", "", StoppedEvent(reason="", step=7))
    with run.events_path.open("a") as file:
        file.write('{"t": 1, "type": "st')
    recorder = Recorder(run, resume=True)
    assert (recorded(run).state, recorded(run).step, recorded(run).total_steps) == ("starting", 7, 9)
    recorder.event(step(8))
    tail = EventTail(run.events_path)
    assert isinstance(tail.read_all()[-1], StepEvent)
    assert tail.skipped == 1
    recorder.close("stopped", "", StoppedEvent(reason="", step=8))


@pytest.fixture
def full_disk(tmp_path: Path, run: Run) -> Iterator[Path]:
    """The run directory on a tiny disk; the file returned fills it but for the rest of its last page."""
    with small_disk(tmp_path / "disk", "256k") as mount:
        shutil.copytree(run.path, mount / run.id)
        yield mount / "filler"


def test_a_full_disk_and_a_full_log_are_survived_and_neither_a_later_event_nor_the_end_is_lost(
    full_disk: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(full_disk.parent / run.id)
    recorder = Recorder(run)
    # Unbuffered, as the worker's standard error is.
    with io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True) as log:
        monkeypatch.setattr(sys, "stderr", log)
        recorder.event(step(1))
        free = shutil.disk_usage(full_disk.parent).free
        full_disk.write_bytes(b"x" * free)
        for number in range(2, 60):
            recorder.event(step(number))
            recorder.update(step=number)
        recorder.notice("warning", "full", "The log is full as well.")
        full_disk.unlink()
        assert recorder.state.step == 59
        assert not run.events_path.read_bytes().endswith(b"\n"), "the disk filled up within a line"
        for number in (100, 101):
            recorder.event(step(number))
        monkeypatch.undo()
    tail = EventTail(run.events_path)
    numbers = [event.step for event in only(StepEvent, tail.read_all())]
    assert tail.skipped == 1
    assert numbers[0] == 1
    assert numbers[-2:] == [100, 101]
    full_disk.write_bytes(b"x" * shutil.disk_usage(full_disk.parent).free)
    recorder.update(step=102)
    assert recorded(run).step == 102, "the heartbeat goes on"
    reason = "The adapter cannot be written: no space left on device."
    recorder.close("failed", reason, FailedEvent(reason=reason, step=102))
    assert (run.state().state, run.state().reason) == ("failed", reason)
    assert json.loads(run.state_path.read_text())["state"] == "failed"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_removed_or_replaced_directory_is_noticed(run: Run, replaced: bool) -> None:
    gone = threading.Event()
    recorder = Recorder(run, vanished=gone.set)
    try:
        recorder.update(step=1)
        assert not gone.is_set()
        shutil.rmtree(run.path)
        if replaced:
            run.path.mkdir()
        else:
            recorder.update(step=2)
            assert gone.is_set()
        assert gone.wait(60), "the heartbeat saw nothing"
    finally:
        recorder.close("stopped", "", StoppedEvent(reason="", step=2))


def test_the_state_has_the_age_of_the_current_step_whatever_the_clock_says(
    recorder: Recorder, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.begin_step()
    recorder.update()
    before = recorded(run)
    assert before.beat is not None
    assert abs(before.beat - time.monotonic()) < 60
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() - 86400)
        recorder.update()
        state = recorded(run)
        assert state.updated < before.updated - 80_000
        assert state.step_started is not None
        assert 0 <= state.updated - state.step_started < 60
    recorder.end_step(4)
    assert (recorded(run).step, recorded(run).step_started) == (4, None)


@pytest.mark.parametrize("kind", ["link", "directory"])
def test_events_go_into_no_other_file(run: Run, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "profile"
    other.write_text("export A=1\n")
    run.events_path.symlink_to(other) if kind == "link" else run.events_path.mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "core.worker", run.path], capture_output=True, text=True, check=False, timeout=60
    )
    assert process.returncode == 4
    said = {"link": "is not written to: it is a link", "directory": "cannot be written: it is a directory"}
    assert f"error: {run.events_path} {said[kind]}" in process.stderr
    assert "Traceback" not in process.stderr
    assert other.read_text() == "export A=1\n"


def test_requests_are_written_at_once_and_progress_within_a_second(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "HEARTBEAT_SECONDS", 600.0)
    waiting: list[str] = []
    changes: queue.SimpleQueue[None] = queue.SimpleQueue()
    recorder = Recorder(run, pending=lambda: tuple(waiting), changes=changes)
    recorder.update(state="training")
    waiting.append("pause")
    changes.put(None)
    wait_for(lambda: recorded(run).pending == ("pause",), 20, "the request to be told")
    recorder.begin_step()
    for done in range(8):
        recorder.progress("micro_batches", done, 8)
    wait_for(lambda: recorded(run).progress == StepProgress("micro_batches", 7, 8), 20, "the progress to be told")
    recorder.end_step(1)
    assert recorded(run).progress is None
    recorder.update(state="stopping")
    assert recorded(run).pending == (), "it is being carried out"
    recorder.close("stopped", "", StoppedEvent(reason="", step=1))
    assert recorded(run).pending == ()
