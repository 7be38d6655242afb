"""The bridge between core and the app: its threads, with real files and no app."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from core.runs.catalog.rows import read_model
from core.runs.record import history as glimpse
from tests.tui.scripted_run import ScriptedRun
from tests.waiting import wait_for
from tui import bridge
from tui.bridge import RunAdvanced, RunAttached


@pytest.fixture
def posted(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The messages of a follower."""
    monkeypatch.setattr(bridge, "LIVE_SECONDS", 0.02)
    monkeypatch.setattr(bridge, "OVER_SECONDS", 0.02)
    return []


@contextmanager
def following(script: ScriptedRun, posted: list[object]) -> Iterator[None]:
    """Follow a run in a thread, once it has been attached."""
    stop = threading.Event()
    thread = threading.Thread(target=bridge.follow_run, args=(script.run, posted.append, stop), daemon=True)
    thread.start()
    wait_for(lambda: posted, 10, "the run to be attached")
    yield
    stop.set()
    thread.join(5)
    assert not thread.is_alive()


def test_the_history_comes_whole_and_then_what_is_new(home: Path, posted: list[object]) -> None:
    script = ScriptedRun(home).train_to(30)
    with following(script, posted):
        attached = posted[0]
        assert isinstance(attached, RunAttached)
        assert attached.history.step == 30
        script.steps(31, 33)
        wait_for(lambda: sum(len(m.events) for m in posted[1:] if isinstance(m, RunAdvanced)) == 3, 10, "three steps")
        script.end("finished")
        wait_for(lambda: isinstance(posted[-1], RunAdvanced) and posted[-1].state.state == "finished", 10, "the end")


def test_of_a_long_record_a_glimpse_comes_first(
    home: Path, posted: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(glimpse, "LONG_BYTES", 4096)
    with following(ScriptedRun(home).train_to(60), posted):
        wait_for(lambda: len(posted) > 1, 10, "the whole record")
    first, whole = posted[:2]
    assert isinstance(first, RunAttached)
    assert isinstance(whole, RunAttached)
    assert (first.is_partial, whole.is_partial) == (True, False)
    assert len(first.history.loss) > 5
    assert [evaluation.step for evaluation in first.history.evals] == [60], "the last one alone"
    assert (len(whole.history.evals), len(whole.history.loss)) == (2, 60)


def test_a_heartbeat_alone_is_no_news(home: Path, posted: list[object]) -> None:
    script = ScriptedRun(home).train_to(3)
    with following(script, posted):
        script.write_state()
        script.write_state(state="paused")
        wait_for(lambda: len(posted) > 1, 10, "the pause")
    assert [type(message) for message in posted] == [RunAttached, RunAdvanced]


def test_model_names_are_short_and_safe(home: Path) -> None:
    script = ScriptedRun(home)
    assert read_model(script.run) == "SmolLM2-135M-Instruct · qlora r16"
    script.run.config_path.write_text('[model]\nbase = "/m/x\\u001b[31m.gguf"\n', encoding="utf-8")
    assert "\x1b" not in read_model(script.run)
    script.run.config_path.write_text("[model", encoding="utf-8")
    assert read_model(script.run) == ""


def test_half_the_refresh_rate_looks_half_as_often(home: Path) -> None:
    script = ScriptedRun(home).train_to(3)
    for pace in (1.0, 2.0):
        stop = Mock(**{"is_set.return_value": False, "wait.return_value": True})
        bridge.follow_run(script.run, lambda _: None, stop, pace=pace)
        stop.wait.assert_called_once_with(pace * bridge.LIVE_SECONDS)
