"""Control of a live run: requests as they wait and are taken back, stops of each kind, and other settings."""

from __future__ import annotations

import math
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.containers import VerticalScroll
from textual.pilot import Pilot

from core.errors import UserError
from core.runs.control.client import ControlClient, PendingError, WithdrawnError
from core.runs.control.protocol import ActionError, refusal
from core.runs.record import events
from core.runs.record.history import read_history
from core.runs.record.state import RunState, StepProgress, start_identity
from tests.cases import cases
from tests.tui.harness import asks, has_live_run, press, running, screen_lines, screen_text, view_of, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_app import record_commands
from tui.app import LocaltuneApp
from tui.screens.choice import ChoiceDialog
from tui.screens.run_settings import RunSettings
from tui.state import Requests
from tui.widgets.forms.inputs import SafeInput


def words(app: LocaltuneApp) -> str:
    """The text of the dialog, or of the screen where there is none, as one line without borders."""
    lines = screen_lines(app)
    if len(app.screen_stack) > 1:
        region = app.screen.query_one(VerticalScroll).region
        lines = [line[region.x : region.right] for line in lines[region.y : region.bottom]]
    return " ".join(" ".join(lines).replace("│", " ").split())


def own_home(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as the home of localtune."""
    monkeypatch.setenv("LOCALTUNE_HOME", str(directory))
    return directory


#: The app with a live run.
attached = partial(running, until=has_live_run)


def is_told(app: LocaltuneApp, text: str) -> bool:
    return text in words(app)


async def asked_to_stop(pilot: Pilot[Any], key: str = "x") -> None:
    await press(pilot, key, until=lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.pause()


async def settings(pilot: Pilot[Any]) -> RunSettings:
    """The dialog of the settings, with the first input ready."""
    await press(pilot, "e", until=lambda: isinstance(pilot.app.screen, RunSettings))
    await wait_for(pilot, lambda: isinstance(pilot.app.focused, SafeInput))
    await pilot.pause()
    screen = pilot.app.screen
    assert isinstance(screen, RunSettings)
    return screen


def values(screen: RunSettings) -> list[str]:
    """The values of the inputs."""
    return [line.value for line in screen.query(SafeInput)]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that can be signaled in place of a worker."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def stand_in(script: ScriptedRun, process: subprocess.Popen[bytes]) -> None:
    """Make a process the worker of a run."""
    script.write_state(pid=process.pid, pid_started=start_identity(process.pid))


@cases(
    ("steps", "answers", "sent"),
    [
        *((64, [["n"], ["w", "enter"], ["y"]], {}), (64, [["enter"]], {})),
        *((64, [["w", "y"]], {"now": True}), (60, [["w"]], {"now": True})),
    ],
)
async def test_a_run_is_stopped_with_a_checkpoint_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, answers: list[list[str]], sent: dict[str, Any]
) -> None:
    ScriptedRun(own_home(tmp_path, monkeypatch)).train_to(steps)
    commands = record_commands(monkeypatch)
    async with attached(notifications=True) as (app, pilot):
        for keys in answers:
            assert commands == []
            await asked_to_stop(pilot)
            assert ("Not saved so far: 4 steps after the checkpoint of step 60." in words(app)) == (steps == 64)
            await pilot.press(keys[0])
            if len(keys) == 2:
                # Letters that lose steps are not enough: it is asked once more, and enter means to go on.
                await wait_for(pilot, lambda: asks(app, "keep training") and "these steps are lost" in words(app))
                await pilot.pause()
                assert commands == []
                await pilot.press(keys[1])
            await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: commands.with_args == [("stop", sent)])
        await wait_for(pilot, lambda: "◌ stopping" in words(app))


@pytest.mark.long
@cases(
    ("state", "steps", "told", "keys"),
    [
        ("training", 12, "all 12 steps; there is no checkpoint yet.", "ywkn"),
        ("paused", 30, "Step 30 is saved, and is the last one done so far.", "ywkn"),
        ("starting", 0, "No step is done yet.", "ykn"),
        ("stopping", 31, "1 step after the checkpoint of step 30.", "nk"),
    ],
)
async def test_only_ways_to_stop_that_there_are_are_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, steps: int, told: str, keys: str
) -> None:
    script = ScriptedRun(own_home(tmp_path, monkeypatch)).train_to(steps)
    script.write_state(state=state)
    async with attached() as (app, pilot):
        await asked_to_stop(pilot)
        assert isinstance(app.screen, ChoiceDialog)
        assert told in words(app)
        assert "".join(choice.key for choice in app.screen.choices) == keys


async def test_a_process_is_killed_only_when_that_is_asked_for_twice(
    home: Path, process: subprocess.Popen[bytes]
) -> None:
    script = ScriptedRun(home).train_to(64)
    script.heartbeat = 1e9
    stand_in(script, process)
    async with attached(notifications=True) as (app, pilot):
        assert "x stop it or kill its process" in screen_text(app)
        for answer in ("enter", "escape", "k", "n"):
            await asked_to_stop(pilot)
            assert "no sign of life for" in words(app)
            await press(pilot, "k", until=lambda: f"Process {process.pid} of {script.run.id}" in words(app))
            assert "continued from the checkpoint of step 60." in words(app)
            await pilot.pause()
            await pilot.press(answer)
            if answer == "k":
                await pilot.press("escape")
            await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
        assert process.poll() is None
        await asked_to_stop(pilot)
        await press(pilot, "k", until=lambda: "SIGKILL" in words(app))
        await pilot.pause()
        await pilot.press("y")
        assert process.wait(60) == -signal.SIGKILL
        await wait_for(pilot, lambda: "stopped by SIGKILL after step 64" in words(app))
    assert script.run.state().state == "stopped"


async def test_a_run_that_does_not_answer_gets_a_signal(home: Path, process: subprocess.Popen[bytes]) -> None:
    script = ScriptedRun(home).train_to(30)
    stand_in(script, process)
    async with attached(notifications=True) as (app, pilot):
        await asked_to_stop(pilot)
        await press(pilot, "y", until=lambda: "Could not stop" in words(app))
        assert "cannot be reached" in words(app)
        await pilot.pause()
        await pilot.press("t")
        assert process.wait(60) == -signal.SIGTERM
        await wait_for(pilot, lambda: "The signal is sent" in words(app))


async def test_settings_that_differ_are_sent_and_what_the_worker_took_is_reported(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(64)
    commands = record_commands(monkeypatch, {"step": 64})
    async with attached(notifications=True) as (app, pilot):
        screen = await settings(pilot)
        assert values(screen) == ["2e-4", *7 * [""]]
        assert "Step 64 had learning rate 4.5e-4, by the cosine schedule." in words(app)
        assert "enter apply tab next esc cancel ? help" in words(app)
        await press(pilot, *"5e-5", "tab", *"50", "enter", until=lambda: not isinstance(app.screen, RunSettings))
        assert commands.with_args == [("set", {"train.learning_rate": 5e-5, "eval.every_steps": 50})]
        told = "Changed after step 64: learning rate 5e-5, evaluation every 50 steps"
        await wait_for(pilot, lambda: told in [note.message for note in app._notifications])


async def test_a_value_that_is_invalid_or_as_before_is_not_sent_and_a_doubtful_one_is_warned_of(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(30)
    commands = record_commands(monkeypatch)
    async with attached() as (app, pilot):
        for left in (["enter"], [*"5e-5", "escape"], [*"5e-5", "ctrl+u", *"2e-4", "enter"]):
            await settings(pilot)
            await press(pilot, *left, until=lambda: not isinstance(app.screen, RunSettings))
        for keys, told in (
            ("3", "train.learning_rate must be a number above 0, at most 1, not 3.0."),
            ("fast", "train.learning_rate must be a number, not 'fast'."),
            ("\t0", "eval.every_steps must be a whole number from 1 to"),
            ("\t1.5", "eval.every_steps must be a whole number, not '1.5'."),
        ):
            await settings(pilot)
            await pilot.press(*({"\t": "tab", ".": "full_stop"}.get(key, key) for key in keys), "enter")
            await wait_for(pilot, partial(is_told, app, told))
            assert isinstance(app.screen, RunSettings)
            await press(pilot, "escape", until=lambda: not isinstance(app.screen, RunSettings))
        assert commands == []
        await settings(pilot)
        await pilot.press(*"0.5", "tab", *"20")
        await wait_for(pilot, lambda: "! train.learning_rate is 0.5, with which adapters diverge." in words(app))
        await wait_for(pilot, lambda: "there are no held-out rows to measure on" in words(app))
        await press(pilot, "enter", until=lambda: len(commands) == 1)


async def test_quiet_hours_that_pause_a_run_are_told_and_lifted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(10).write_state(state="paused", reason="quiet hours until 07:00")
    commands = record_commands(monkeypatch, {"step": 10})
    async with attached() as (app, pilot):
        assert screen_text(app).count("quiet hours until 07:00") == 2, "the banner and the status bar"
        await press(pilot, "p", until=lambda: asks(app, "lift them and go on"))
        await press(pilot, "y", until=lambda: commands.with_args == [("set", {"night.quiet_hours": None})])


async def test_a_refusal_keeps_what_was_typed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    gate = threading.Event()

    def refuse(_: ControlClient, command: str, **args: Any) -> dict[str, Any]:
        gate.wait(60)
        raise UserError("The run has ended.", "Continue it.")

    monkeypatch.setattr(ControlClient, "request", refuse)
    async with attached() as (app, pilot):
        screen = await settings(pilot)
        await press(pilot, "tab", *"50", "enter", until=lambda: "The worker answers between two steps" in words(app))
        await pilot.press("7", "enter")
        gate.set()
        await wait_for(pilot, lambda: "✗ The run has ended. Continue it." in words(app))
        assert values(screen) == ["2e-4", "50", *6 * [""]]
        await press(pilot, "backspace", until=lambda: values(screen) == ["2e-4", "5", *6 * [""]])
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, RunSettings))


async def test_a_refusal_names_the_key_of_what_helps(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    error = ActionError("The run is parked: its model is not in memory.", "Let it go on first.", "resume")

    def refuse(_: ControlClient, command: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"ok": False, **refusal(error)}

    monkeypatch.setattr(ControlClient, "_exchange", refuse)
    async with attached() as (app, pilot):
        await press(pilot, "ctrl+s", until=lambda: isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: "not in memory. Let it go on first: p in the Train pane." in words(app))


async def test_settings_show_what_holds_and_the_log_shows_changes_in_words(home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    told = "train.learning_rate = 5e-05, eval.every_steps = 50, checkpoint.every_steps = None"
    script.write(events.ControlEvent(command="set", sender="socket", result=told))
    script.write(events.ControlEvent(command="set", sender="socket", result="refused: No such value."))
    async with attached(size=(220, 34)) as (app, pilot):
        await wait_for(pilot, lambda: "change on request refused: No such value." in screen_text(app))
        line = "changed on request: learning rate 5e-5, evaluation every 50 steps, ten checkpoints in a run"
        assert line in screen_text(app)
        assert values(await settings(pilot)) == ["5e-5", "50", *6 * [""]]
    # A worker that continues from a checkpoint uses the checkpoint's settings.
    script.phase("importing")
    assert read_history(script.run).settings == {}


async def test_the_question_about_a_stop_says_what_it_waits_for_and_goes_with_the_run(home: Path) -> None:
    script = ScriptedRun(home).train_to(64)
    async with attached() as (app, pilot):
        await asked_to_stop(pilot)
        await press(pilot, *"really")
        assert "press y, w, k, n or esc" in screen_text(app)
        script.end("failed", "the card is gone")
        await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: "failed" in words(app))


BUSY = RunState(state="training", step=3, total_steps=9, updated=100.0)


class SlowWorker:
    """Worker within a long step: it answers requests when the test lets it, and withdrawals at once."""

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
    script = ScriptedRun(home, start=time.time() - 1005).begin().steps(1, 10, seconds=20.0)
    script.write_state(step_started=time.time() - 5, progress=StepProgress("micro_batches", 3, 8))
    return script


def told(app: LocaltuneApp) -> list[str]:
    """The notices so far."""
    return [note.message for note in app._notifications]


@pytest.mark.parametrize(
    ("key", "shown", "brief", "back"),
    [
        ("p", "p", "◌ pausing", ("withdraw", {"what": "pause"})),
        ("ctrl+s", "^s", "◌ saving", ("withdraw", {"what": "checkpoint"})),
    ],
)
async def test_a_key_is_heard_at_once_and_the_same_key_takes_it_back(
    home: Path, worker: SlowWorker, key: str, shown: str, brief: str, back: tuple[str, dict[str, Any]]
) -> None:
    in_step(home)
    async with attached(size=(120, 34), notifications=True) as (app, pilot):
        await pilot.press(key)
        # The header and the pane, before anything was heard of the worker.
        header, *pane = screen_text(app).splitlines()
        assert re.search(brief + r"( after this step)? \(≤ 1\d s\)", header)
        assert re.search(brief + r" after this step \(≤ 1\d s\)", "\n".join(pane))
        assert f"{shown} take back" in screen_text(app)
        await pilot.press(key)
        assert "◌" not in screen_text(app)
        await wait_for(pilot, lambda: worker.heard[1:] == [back])
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.pending == ())
        assert not [text for text in told(app) if "Attached" not in text], "there is no result to tell of"


async def test_the_result_is_reported_and_not_the_wish(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    async with attached(notifications=True) as (app, pilot):
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
    async with attached(notifications=True) as (app, pilot):
        await pilot.press("Z")
        assert "◌ parking" in screen_text(app)
        assert "Z take back" in screen_text(app)
        await wait_for(pilot, lambda: [command for command, _ in worker.heard] == ["park"])
        worker.step_over.set()
        script.write_state(state="paused", parked="ollama runner is running", step=11, step_started=None, progress=None)
        parked = "‖ parked, its device given back, at step 11: ollama runner is running."
        await wait_for(pilot, lambda: parked in screen_text(app))
        assert "◌" not in screen_text(app)
        assert "‖ parked  11/" in screen_text(app)
        assert "paused" not in screen_text(app)
        assert "p resume" in screen_text(app)
        assert "^s checkpoint" not in screen_text(app), "there is nothing to save that is not saved"
        await press(pilot, "Z", "p", until=lambda: [command for command, _ in worker.heard] == ["park", "resume"])


async def test_a_pause_that_is_taken_back_too_late_is_ended(home: Path, worker: SlowWorker) -> None:
    in_step(home)
    async with attached(notifications=True) as (app, pilot):
        await press(pilot, "p", until=lambda: len(worker.heard) == 1)
        worker.step_over.set()
        await pilot.press("p")
        await wait_for(pilot, lambda: [command for command, _ in worker.heard] == ["pause", "withdraw", "resume"])
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.pending == ())
        assert "Resumed" not in told(app)


async def test_a_stop_can_be_taken_back_until_it_is_carried_out(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    async with attached(notifications=True) as (app, pilot):
        for key in ("y", "t"):
            await asked_to_stop(pilot)
            assert ("take it back" in words(app)) == (key == "t")
            await press(pilot, key, until=lambda: not isinstance(app.screen, ChoiceDialog))
            assert ("◌ stopping" in screen_text(app)) == (key == "y")
        assert worker.heard == [("stop", {}), ("withdraw", {"what": "stop"})]
        await asked_to_stop(pilot)
        await pilot.press("y")
        worker.step_over.set()
        script.write_state(state="stopping")
        script.end("stopped", "stopped on request after step 11")
        await wait_for(pilot, lambda: "■ stopped" in screen_text(app))
        assert not [text for text in told(app) if "topping" in text]


async def test_what_the_worker_says_is_pending_is_shown_whoever_asked_for_it(home: Path) -> None:
    script = in_step(home)
    async with attached(size=(120, 34)) as (app, pilot):
        await wait_for(pilot, lambda: "micro-batch 3/8" in screen_text(app))
        script.write_state(pending=("stop",), progress=StepProgress("micro_batches", 4, 8))
        await wait_for(pilot, lambda: "◌ stopping after this step" in screen_text(app))
        await wait_for(pilot, lambda: "x take back" in screen_text(app))


async def test_quitting_with_a_stop_does_not_wait_for_the_step(home: Path, worker: SlowWorker) -> None:
    script = in_step(home)
    async with attached() as (app, pilot):
        await asked_to_stop(pilot, "q")
        await press(pilot, "x", until=lambda: worker.heard == [("stop", {})])
        assert app.is_running, "nobody has heard of it yet"
        script.write_state(pending=("stop",))
        await wait_for(pilot, lambda: not app.is_running)


async def test_the_evaluation_before_the_first_step_is_skipped_by_a_key(home: Path, worker: SlowWorker) -> None:
    script = ScriptedRun(home).begin().phase("evaluating", detail="loss", done=20, total=80)
    worker.step_over.set()
    async with attached(size=(120, 34)) as (app, pilot):
        await wait_for(pilot, lambda: "b skip evaluation" in screen_text(app))
        await press(pilot, "b", until=lambda: worker.heard == [("skip_evaluation", {})])
        script.phase("training", done=0)
        await wait_for(pilot, lambda: "b skip" not in screen_text(app))
        await press(pilot, "b")
        assert len(worker.heard) == 1


async def test_a_request_that_was_heard_and_is_late_has_not_failed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_step(home)

    def late(_: ControlClient, command: str, **__: Any) -> dict[str, Any]:
        raise PendingError(f"It did not answer {command}.") if command == "pause" else UserError("No step is done yet.")

    monkeypatch.setattr(ControlClient, "request", late)
    async with attached() as (app, pilot):
        await press(pilot, "p")
        await press(pilot, "ctrl+s", until=lambda: "No step is done yet." in words(app))
        assert "checkpoint" not in view_of(app).pending


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
