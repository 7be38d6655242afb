"""Requests to a worker that has not answered: shown at once, and taken back by the same key."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.runs.client import ControlClient, PendingError, WithdrawnError
from core.runs.state import RunState, StepProgress
from tests.tui.controllers.test_run_control import attached, words
from tests.tui.harness import screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.choice import ChoiceDialog
from tui.state import Requests

BUSY = RunState(state="training", step=3, total_steps=9, updated=100.0)


class SlowWorker:
    """A worker within a long step: it answers what is asked of it when the test says so, and a take-back at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.step_over = threading.Event()
        self.taken: set[str] = set()
        monkeypatch.setattr(ControlClient, "request", self._request)

    def _request(self, command: str, **args: Any) -> dict[str, Any]:
        self.heard.append((command, args))
        if command == "withdraw":
            self.taken |= {args["what"]} if not self.step_over.is_set() else set()
            return {"withdrawn": [args["what"]] if not self.step_over.is_set() else []}
        while not self.step_over.wait(0.01):
            if command in self.taken:
                raise WithdrawnError("It was taken back.")
        return {"step": 4}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowWorker]:
    made = SlowWorker(monkeypatch)
    yield made
    made.step_over.set()


def in_step(home: Path) -> ScriptedRun:
    """A run five seconds into a step, where steps take twenty."""
    script = ScriptedRun(home, start=time.time() - 1005)
    script.begin()
    script.steps(1, 10, seconds=20.0)
    script.write_state(step_started=time.time() - 5, progress=StepProgress("micro_batches", 3, 8))
    return script


def told(app: LocaltuneApp) -> list[str]:
    """The notices so far."""
    return [note.message for note in app._notifications]


@pytest.mark.parametrize(
    ("key", "brief", "back"),
    [
        ("p", "◌ pausing", ("withdraw", {"what": "pause"})),
        ("c", "◌ saving", ("withdraw", {"what": "checkpoint"})),
    ],
)
async def test_a_key_is_heard_at_once_and_the_same_key_takes_it_back(
    home: Path, worker: SlowWorker, key: str, brief: str, back: tuple[str, dict[str, Any]]
) -> None:
    in_step(home)
    async with LocaltuneApp().run_test(size=(120, 34), notifications=True) as pilot:
        app = await attached(pilot)
        await pilot.press(key)
        # The header and the pane, before anything was heard of the worker.
        header, *pane = screen_text(app).splitlines()
        assert re.search(brief + r"( after this step)? \(≤ 1\d s\)", header)
        assert re.search(brief + r" after this step \(≤ 1\d s\)", "\n".join(pane))
        assert f"{key} take back" in screen_text(app)
        await pilot.press(key)
        assert "◌" not in screen_text(app)
        await wait_for(pilot, lambda: worker.heard[1:] == [back])
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.pending == ())
        assert not [text for text in told(app) if "Attached" not in text], "there is no result to tell of"


async def test_the_result_is_told_and_not_the_wish(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        await pilot.press("p")
        assert "◌ pausing" in screen_text(app)
        assert "Paused" not in told(app)
        worker.step_over.set()
        script.write_state(state="paused", step=11, step_started=None, progress=None)
        await wait_for(pilot, lambda: "Paused" in told(app) and "‖ paused at step 11" in screen_text(app))
        assert "◌" not in screen_text(app)
        assert told(app).count("Paused") == 1


async def test_a_run_gives_its_device_back_and_says_why(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        await pilot.press("P")
        assert "◌ parking" in screen_text(app)
        assert "P take back" in screen_text(app)
        await wait_for(pilot, lambda: [command for command, _ in worker.heard] == ["park"])
        worker.step_over.set()
        script.write_state(state="paused", parked="ollama runner is running", step=11, step_started=None, progress=None)
        parked = "‖ parked, its device given back, at step 11: ollama runner is running."
        await wait_for(pilot, lambda: parked in screen_text(app))
        assert "◌" not in screen_text(app)
        assert "‖ parked  11/" in screen_text(app)
        assert "paused" not in screen_text(app)
        assert "p resume" in screen_text(app)
        assert "c checkpoint" not in screen_text(app), "there is nothing to save that is not saved"
        await pilot.press("P", "p")
        await wait_for(pilot, lambda: [command for command, _ in worker.heard] == ["park", "resume"])


async def test_a_pause_that_is_taken_back_too_late_is_ended(home: Path, worker: SlowWorker) -> None:
    in_step(home)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        await pilot.press("p")
        await wait_for(pilot, lambda: len(worker.heard) == 1)
        worker.step_over.set()
        await pilot.press("p")
        await wait_for(pilot, lambda: [command for command, _ in worker.heard] == ["pause", "withdraw", "resume"])
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.pending == ())
        assert "Resumed" not in told(app)


async def test_a_stop_can_be_taken_back_until_it_is_carried_out(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        for key in ("y", "t"):
            await pilot.press("s")
            await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
            await pilot.pause()
            assert ("take it back" in words(app)) == (key == "t")
            await pilot.press(key)
            await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
            assert ("◌ stopping" in screen_text(app)) == (key == "y")
        assert worker.heard == [("stop", {}), ("withdraw", {"what": "stop"})]
        await pilot.press("s")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await pilot.pause()
        await pilot.press("y")
        worker.step_over.set()
        script.write_state(state="stopping")
        script.end("stopped", "stopped on request after step 11")
        await wait_for(pilot, lambda: "■ stopped" in screen_text(app))
        assert not [text for text in told(app) if "topping" in text]


async def test_what_the_worker_says_is_pending_is_shown_whoever_asked_for_it(home: Path) -> None:
    script = in_step(home)
    async with LocaltuneApp().run_test(size=(120, 34)) as pilot:
        app = await attached(pilot)
        await wait_for(pilot, lambda: "micro-batch 3/8" in screen_text(app))
        script.write_state(pending=("stop",), progress=StepProgress("micro_batches", 4, 8))
        await wait_for(pilot, lambda: "◌ stopping after this step" in screen_text(app))
        assert "s take back" in screen_text(app)


async def test_quitting_with_a_stop_does_not_wait_for_the_step(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await attached(pilot)
        await pilot.press("q")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await pilot.pause()
        await pilot.press("s")
        await wait_for(pilot, lambda: worker.heard == [("stop", {})])
        assert app.is_running, "nobody has heard of it yet"
        script.write_state(pending=("stop",))
        await wait_for(pilot, lambda: not app.is_running)


async def test_the_evaluation_before_the_first_step_is_skipped_by_a_key(home: Path, worker: SlowWorker) -> None:
    script = ScriptedRun(home)
    script.begin()
    script.phase("evaluating", detail="loss", done=20, total=80)
    worker.step_over.set()
    async with LocaltuneApp().run_test(size=(120, 34)) as pilot:
        app = await attached(pilot)
        await wait_for(pilot, lambda: "b skip the evaluation" in screen_text(app))
        await pilot.press("b")
        await wait_for(pilot, lambda: worker.heard == [("skip_evaluation", {})])
        script.phase("training", done=0)
        await wait_for(pilot, lambda: "b skip" not in screen_text(app))
        await pilot.press("b")
        await pilot.pause()
        assert len(worker.heard) == 1


async def test_the_seconds_of_an_evaluation_are_its_own(home: Path) -> None:
    now = time.time()
    script = ScriptedRun(home, start=now - 400)
    script.begin()
    script.phase("evaluating", 1.0, detail="loss", done=1, total=80)
    script.phase("training", 188.0, done=0)
    script.steps(1, 4)
    script.phase("evaluating", 1.0, detail="loss", done=0, total=80)
    assert script.now is not None
    begun = script.now
    async with LocaltuneApp().run_test(size=(120, 34)) as pilot:
        app = await attached(pilot)
        app.clock = lambda: begun + 20.0
        await wait_for(pilot, lambda: "evaluating 0/80 20s" in screen_text(app))


async def test_a_request_that_was_heard_and_is_late_has_not_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_step(home)

    def late(_: ControlClient, command: str, **__: Any) -> dict[str, Any]:
        raise PendingError(f"It did not answer {command}.") if command == "pause" else UserError("No step is done yet.")

    monkeypatch.setattr(ControlClient, "request", late)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await pilot.press("p")
        await pilot.pause()
        await pilot.press("c")
        await wait_for(pilot, lambda: "No step is done yet." in words(app))
        assert app.state.view is not None
        assert "checkpoint" not in app.state.view.pending


def test_what_the_worker_wrote_before_it_answered_is_out_of_date() -> None:
    requests, waiting = Requests(), replace(BUSY, pending=("checkpoint",))
    requests.ask("checkpoint")
    assert requests.pending(BUSY) == ("checkpoint",)
    assert requests.answered("checkpoint", 101.0)
    assert requests.pending(waiting) == ()
    assert requests.pending(replace(waiting, updated=102.0)) == ("checkpoint",), "another one, asked for since"
    assert not requests.answered("checkpoint", 103.0), "one that nobody here has asked for"


def test_a_pause_waits_until_the_state_shows_it() -> None:
    requests = Requests()
    requests.ask("pause")
    requests.answered("pause", 101.0)
    assert requests.pending(BUSY) == ("pause",)
    assert requests.pending(replace(BUSY, state="paused")) == ()
    assert requests.pending(replace(BUSY, updated=102.0)) == (), "it was resumed by somebody else meanwhile"


def test_what_is_taken_back_is_gone_before_the_worker_knows() -> None:
    requests, waiting = Requests(), replace(BUSY, pending=("pause", "stop"))
    requests.take_back("pause")
    assert requests.pending(waiting) == ("stop",)
    assert requests.pending(replace(waiting, updated=math.inf)) == ("stop",)
    requests.taken_back("pause", 101.0)
    assert requests.pending(replace(waiting, updated=102.0)) == ("pause", "stop"), "it was too late"
    assert requests.pending(replace(waiting, state="stopping")) == ()
