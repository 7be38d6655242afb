"""Control of a live run: stopped in each of the ways, and given other settings."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from textual.containers import VerticalScroll
from textual.pilot import Pilot

from core.errors import UserError
from core.runs import events
from core.runs.client import ControlClient
from core.runs.history import read_history
from core.runs.process import start_identity
from core.runs.protocol import refusal
from core.runs.ways import ActionError
from tests.cases import cases
from tests.tui.harness import asks, screen_lines, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_app import record_commands
from tests.tui.test_typed_ahead import type_at_once
from tui.app import LocaltuneApp
from tui.screens.choice import ChoiceDialog
from tui.screens.run_settings import RunSettings
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


async def attached(pilot: Pilot[Any]) -> LocaltuneApp:
    """The app with a live run."""
    app = pilot.app
    assert isinstance(app, LocaltuneApp)
    await wait_for(pilot, lambda: app.state.live_run is not None and app.state.document is not None)
    return app


def is_told(app: LocaltuneApp, text: str) -> bool:
    return text in words(app)


async def asked_to_stop(pilot: Pilot[Any]) -> None:
    await pilot.press("s")
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, ChoiceDialog))
    await pilot.pause()


async def settings(pilot: Pilot[Any]) -> RunSettings:
    """The dialog of the settings, with the first input ready."""
    await pilot.press("e")
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, RunSettings))
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


@cases(("key", "sent"), [("y", [("stop", {})]), ("enter", [("stop", {})]), ("w", [("stop", {"now": True})]), ("n", [])])
async def test_a_run_is_stopped_with_a_checkpoint_or_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, sent: list[Any]
) -> None:
    ScriptedRun(own_home(tmp_path, monkeypatch)).train_to(64)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        await asked_to_stop(pilot)
        assert "Not saved so far: 4 steps after the checkpoint of step 60." in words(app)
        await pilot.press(key)
        if key == "w":
            # Letters that lose steps are not enough: it is asked once more, and enter means to go on.
            await wait_for(pilot, lambda: asks(app, "keep training") and "these steps are lost" in words(app))
            await pilot.pause()
            assert commands == []
            await pilot.press("y")
        await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: commands.with_args == sent)
        if key == "w":
            await wait_for(pilot, lambda: "◌ stopping" in words(app))


@cases(("steps", "asked"), [(64, True), (60, False)])
async def test_a_stop_that_loses_steps_asks_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, asked: bool
) -> None:
    ScriptedRun(own_home(tmp_path, monkeypatch)).train_to(steps)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await asked_to_stop(pilot)
        await pilot.press("w")
        if asked:
            await wait_for(pilot, lambda: "these steps are lost" in words(app))
            await pilot.pause()
            await pilot.press("enter")
            await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
            assert commands == []
        else:
            await wait_for(pilot, lambda: commands.with_args == [("stop", {"now": True})])


async def test_a_dialog_says_what_it_waits_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(64)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await asked_to_stop(pilot)
        await pilot.press(*"really")
        await pilot.pause()
        assert isinstance(app.screen, ChoiceDialog)
        assert "press y, w, k, n or esc" in screen_text(app)
        assert commands == []


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
    script = ScriptedRun(own_home(tmp_path, monkeypatch))
    script.train_to(steps)
    script.write_state(state=state)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await asked_to_stop(pilot)
        assert isinstance(app.screen, ChoiceDialog)
        assert told in words(app)
        assert "".join(choice.key for choice in app.screen.choices) == keys


async def test_a_process_is_killed_only_when_that_is_said_twice(home: Path, process: subprocess.Popen[bytes]) -> None:
    script = ScriptedRun(home)
    script.train_to(64)
    script.heartbeat = 1e9
    stand_in(script, process)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        assert "s stop it or kill its process" in screen_text(app)
        for answer in ("enter", "escape", "k", "n"):
            await asked_to_stop(pilot)
            assert "no sign of life for" in words(app)
            await pilot.press("k")
            await wait_for(pilot, lambda: f"Process {process.pid} of {script.run.id}" in words(app))
            assert "continued from the checkpoint of step 60." in words(app)
            await pilot.pause()
            await pilot.press(answer)
            if answer == "k":
                await pilot.press("escape")
            await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
        assert process.poll() is None
        await asked_to_stop(pilot)
        await pilot.press("k")
        await wait_for(pilot, lambda: "SIGKILL" in words(app))
        await pilot.pause()
        await pilot.press("y")
        assert process.wait(60) == -signal.SIGKILL
        await wait_for(pilot, lambda: "stopped by SIGKILL after step 64" in words(app))
    assert script.run.state().state == "stopped"


async def test_a_run_that_does_not_hear_is_told_by_a_signal(home: Path, process: subprocess.Popen[bytes]) -> None:
    script = ScriptedRun(home)
    script.train_to(30)
    stand_in(script, process)
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        await asked_to_stop(pilot)
        await pilot.press("y")
        await wait_for(pilot, lambda: "Stop failed" in words(app))
        assert "cannot be reached" in words(app)
        await pilot.pause()
        await pilot.press("t")
        assert process.wait(60) == -signal.SIGTERM
        await wait_for(pilot, lambda: "The signal is sent" in words(app))


async def test_settings_that_differ_are_sent_and_what_the_worker_took_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(64)
    commands = record_commands(monkeypatch, {"step": 64})
    async with LocaltuneApp().run_test(size=(80, 24), notifications=True) as pilot:
        app = await attached(pilot)
        screen = await settings(pilot)
        assert values(screen) == ["2e-4", *6 * [""]]
        assert "Step 64 had learning rate 4.5e-4, by the cosine schedule." in words(app)
        await pilot.press(*"5e-5", "tab", *"50", "enter")
        await wait_for(pilot, lambda: not isinstance(app.screen, RunSettings))
        assert commands.with_args == [("set", {"train.learning_rate": 5e-5, "eval.every_steps": 50})]
        told = "Changed after step 64: learning rate 5e-5, evaluation every 50 steps"
        await wait_for(pilot, lambda: told in [note.message for note in app._notifications])


@pytest.mark.long
async def test_settings_left_alone_send_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        for keys in (["enter"], [*"5e-5", "escape"], [*"5e-5", "ctrl+u", *"2e-4", "enter"]):
            await settings(pilot)
            await pilot.press(*keys)
            await wait_for(pilot, lambda: not isinstance(app.screen, RunSettings))
        assert commands == []


async def test_a_value_that_cannot_be_is_told_and_not_sent(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
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
            await pilot.press("escape")
            await wait_for(pilot, lambda: not isinstance(app.screen, RunSettings))
        assert commands == []


async def test_what_most_likely_was_not_meant_is_told_and_can_be_sent(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(30)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await settings(pilot)
        await pilot.press(*"0.5", "tab", *"20")
        await wait_for(pilot, lambda: "! train.learning_rate is 0.5, with which adapters diverge." in words(app))
        await wait_for(pilot, lambda: "there are no held-out rows to measure on" in words(app))
        await pilot.press("enter")
        await wait_for(pilot, lambda: len(commands) == 1)


async def test_a_refusal_keeps_what_was_typed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    gate = threading.Event()

    def refuse(_: ControlClient, command: str, **args: Any) -> dict[str, Any]:
        gate.wait(60)
        raise UserError("The run has ended.", "Continue it.")

    monkeypatch.setattr(ControlClient, "request", refuse)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        screen = await settings(pilot)
        await pilot.press("tab", *"50", "enter")
        await wait_for(pilot, lambda: "The worker answers between two steps" in words(app))
        await pilot.press("7", "enter")
        gate.set()
        await wait_for(pilot, lambda: "✗ The run has ended. Continue it." in words(app))
        assert values(screen) == ["2e-4", "50", *5 * [""]]
        await pilot.press("backspace")
        await wait_for(pilot, lambda: values(screen) == ["2e-4", "5", *5 * [""]])
        await pilot.press("escape")
        await wait_for(pilot, lambda: not isinstance(app.screen, RunSettings))


async def test_a_refusal_names_the_key_of_what_helps(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    error = ActionError("The run is parked: its model is not in memory.", "Let it go on first.", "resume")

    def refuse(_: ControlClient, command: str, args: dict[str, Any]) -> Iterator[dict[str, Any]]:
        yield {"ok": False, **refusal(error)}

    monkeypatch.setattr(ControlClient, "_exchange", refuse)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await settings(pilot)
        await pilot.press("tab", *"50", "enter")
        await wait_for(pilot, lambda: "not in memory. Let it go on first: p in the Train pane." in words(app))
        await pilot.press("escape", "c")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: "Let it go on first: p in the Train pane." in words(app))


async def test_settings_show_what_holds_and_the_log_tells_changes_in_words(home: Path) -> None:
    script = ScriptedRun(home)
    script.train_to(30)
    told = "train.learning_rate = 5e-05, eval.every_steps = 50, checkpoint.every_steps = None"
    script.write(events.ControlEvent(command="set", sender="socket", result=told))
    script.write(events.ControlEvent(command="set", sender="socket", result="refused: No such value."))
    async with LocaltuneApp().run_test(size=(220, 34)) as pilot:
        app = await attached(pilot)
        await wait_for(pilot, lambda: "change on request refused: No such value." in screen_text(app))
        line = "changed on request: learning rate 5e-5, evaluation every 50 steps, ten checkpoints in a run"
        assert line in screen_text(app)
        assert values(await settings(pilot)) == ["5e-5", "50", *5 * [""]]
    # A worker that continues from a checkpoint uses the checkpoint's settings.
    script.phase("importing")
    assert read_history(script.run).settings == {}


async def test_a_value_typed_behind_the_key_is_the_value(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    commands = record_commands(monkeypatch)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        type_at_once(pilot, "e3e-5\t50\n")
        changes = {"train.learning_rate": 3e-5, "eval.every_steps": 50}
        await wait_for(pilot, lambda: commands.with_args == [("set", changes)])
        await wait_for(pilot, lambda: not isinstance(app.screen, RunSettings))
        assert app.main.current == "train"


async def test_the_question_about_a_stop_goes_with_the_run(home: Path) -> None:
    script = ScriptedRun(home)
    script.train_to(64)
    async with LocaltuneApp().run_test(size=(80, 24)) as pilot:
        app = await attached(pilot)
        await asked_to_stop(pilot)
        script.end("failed", "the card is gone")
        await wait_for(pilot, lambda: not isinstance(app.screen, ChoiceDialog))
        await wait_for(pilot, lambda: "failed" in words(app))
