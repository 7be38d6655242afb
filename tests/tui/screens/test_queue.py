"""The queue in the app: its screen, and a run that waits for the live run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from textual.pilot import Pilot

from core.hardware.snapshot import Device
from core.queue import status, store
from core.queue.status import RunnerStatus
from core.runs.record.events import GovernorEvent, NoticeEvent
from tests.core.models.architecture import published
from tests.core.queue.helpers import add, states
from tests.tui.config_panes import write_startable
from tests.tui.harness import asks, has_live_run, press, running, screen_text, wait_for
from tests.tui.screens.opening import open_screen
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.box import ValuesForm
from tui.screens.queue import QueueScreen

BLIND = Device(index=0, kind="cpu", name="Some CPU")
TYPED = {"=": "equals_sign"}


@pytest.fixture
def config(tmp_path: Path, home: Path) -> Path:
    """A configuration that may be added, with a model that is only described."""
    return write_startable(tmp_path)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Requests to the runner; none is started."""
    asked = Mock()
    asked.start.return_value, asked.stop.return_value = (status.own_status("begins"), True), False
    monkeypatch.setattr(status, "start_runner", asked.start)
    monkeypatch.setattr(status, "stop_runner", asked.stop)
    return asked


@pytest.fixture(autouse=True)
def _any_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.commands.train.check_model", lambda _: None)


@asynccontextmanager
async def queue(
    config: Path | None = None, *, size: tuple[int, int] = (120, 40)
) -> AsyncIterator[tuple[Pilot[Any], LocaltuneApp, QueueScreen]]:
    """The open screen."""
    async with running(LocaltuneApp(config), size) as (app, pilot):
        screen = await open_screen(pilot, QueueScreen, "Q")
        await wait_for(pilot, lambda: screen._view is not None)
        yield pilot, app, screen


async def test_an_empty_queue_says_so_and_takes_the_configuration(config: Path, runner: Mock) -> None:
    async with queue(config, size=(80, 24)) as (pilot, app, _):
        await wait_for(pilot, lambda: "The queue is empty." in screen_text(app))
        await press(pilot, "plus", until=("Entry 1 added", "mine"))
        (entry,) = store.read_queue().entries
        assert store.read_entry_config(entry).train.learning_rate == 3e-4
        assert entry.source == str(config)
        await press(pilot, "r", until=lambda: runner.start.called)


async def test_the_keys_stay_in_sight_below_a_long_queue(config: Path, runner: Mock) -> None:
    add(*(f"run-{number}" for number in range(30)))
    async with queue(config, size=(80, 24)) as (pilot, app, screen):
        await press(pilot, "G", until="run-29")
        await wait_for(pilot, lambda: "+ add" in screen_text(app) and "esc back" in screen_text(app))
        store.change(lambda queue: queue.held(30))
        await wait_for(pilot, lambda: screen._row is not None and screen._row.entry.state == "held")
        await press(pilot, "enter", until="Entry 30")
        assert "enter apply  tab next  esc cancel" in screen_text(app)


async def test_entries_are_moved_held_and_removed_with_the_cursor_on_them(
    home: Path, runner: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    add("a", "b", "c")
    async with queue() as (pilot, app, screen):
        await wait_for(pilot, lambda: screen._options.option_count == 3)
        await pilot.press("j", "j", "less_than_sign")
        await wait_for(pilot, lambda: [entry.name for entry in store.read_queue().upcoming] == ["a", "c", "b"])
        await wait_for(pilot, lambda: [option.id for option in screen._options.options] == ["1", "3", "2"])
        assert screen._row is not None
        assert screen._row.entry.name == "c"
        await press(pilot, "space", until=lambda: states()[3] == "held")
        await wait_for(pilot, lambda: "Entry 3 is held." in screen_text(app))
        await wait_for(pilot, lambda: screen._row is not None and screen._row.entry.state == "held")
        await press(pilot, "space", until=lambda: states()[3] == "waiting")
        await press(pilot, "D", until=lambda: states()[3] == "removed")
        store.change(lambda queue: queue.with_entry(queue.entry(2).moved("skipped")))
        await wait_for(pilot, lambda: screen._row is not None and screen._row.entry.state == "skipped")
        await press(pilot, "space", until="Entry 2 waits again, for a new run.")
        assert states()[2] == "waiting"
        monkeypatch.setattr("core.queue.view.read_status", lambda: None)
        await press(pilot, "r", until="The runner is started")
        monkeypatch.setattr("core.queue.view.read_status", lambda: RunnerStatus(pid=1, pid_started="x", doing="waits"))
        await wait_for(pilot, lambda: "x stop the runner" in screen_text(app))
        assert "The runner is started" in screen_text(app)
        monkeypatch.setattr("core.queue.view.read_status", lambda: None)
        await wait_for(pilot, lambda: "The runner is started" not in screen_text(app))
        monkeypatch.setattr("core.queue.view.read_status", lambda: RunnerStatus(pid=1, pid_started="x", doing="waits"))
        await wait_for(pilot, lambda: "x stop the runner" in screen_text(app))
        await press(pilot, "x", until=lambda: runner.stop.called)
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, QueueScreen))


@pytest.mark.long
async def test_times_by_the_plan_are_marked(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = Device(index=0, kind="cuda", name="NVIDIA GeForce RTX 4090", memory_total=24_000_000_000)
    monkeypatch.setattr("core.hardware.sampler.snapshot", lambda **_: [card])
    monkeypatch.setattr("core.hardware.torch_check.obstacle_here", lambda _gpu: None)
    (tmp_path / "config.json").write_text(json.dumps(published.LLAMA_3_8B))
    sections: dict[str, dict[str, Any]] = {"model": {"base": str(tmp_path)}, "train": {"max_steps": 10_000}}
    add("first", "second", hardware={"device": "auto"}, **sections)
    short = sections | {"train": {"max_steps": 10_000, "max_hours": 0.5}}
    add("short", hardware={"device": "auto"}, **short)
    add("another", train={"max_steps": 10})
    async with queue(size=(80, 24)) as (pilot, app, _):
        await wait_for(pilot, lambda: "* by the plan: no run of this kind yet" in screen_text(app))
        lines = {name: line for line in screen_text(app).splitlines() for name in ("first", "another") if name in line}
        assert re.search(r"waiting +\d\d:\d\d – .*\* +first", lines["first"])
        assert re.search(r"\*\^ +short", screen_text(app))
        assert "no run of this kind yet · ^ ends early by train.max_hours" in screen_text(app)
        assert "takes" not in lines["another"], "a model that is not here"
        # With a runner they have a day and an hour each.
        monkeypatch.setattr("core.queue.view.read_status", lambda: RunnerStatus(pid=1, pid_started="x", doing="waits"))
        await wait_for(pilot, lambda: re.search(r"\d\d:\d\d – \w+ \d\d:\d\d\* +second", screen_text(app)) is not None)
        whole = r"all done ~\w+ \d\d:\d\d · \* by the plan · \^ ends early "
        # The legend is not cut beside the end of all runs too.
        await pilot.press("down", "down", "down")
        await press(pilot, "D", until=lambda: re.search(whole, screen_text(app)))


async def test_values_a_sweep_and_the_night_are_typed_in_the_box(
    config: Path, runner: Mock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with queue(config, size=(80, 24)) as (pilot, app, screen):
        await wait_for(pilot, lambda: "r start" not in screen_text(app) and "A clear" not in screen_text(app))
        await press(pilot, "V", until=lambda: isinstance(app.screen, ValuesForm))
        await pilot.press(*(TYPED.get(key, key) for key in "rank=16"), "enter")
        await wait_for(pilot, lambda: "(sweep s1) from the current configuration." in screen_text(app))
        await pilot.press("V")
        await wait_for(pilot, lambda: isinstance(app.screen, ValuesForm))
        await press(pilot, *"rank", "enter", until="rank names no option with values")
        await press(pilot, "escape", until=lambda: app.screen is screen)
        await press(pilot, "enter", until="method.rank")
        await press(pilot, "escape", until=lambda: app.screen is screen)
        await press(pilot, "n", until=lambda: isinstance(app.screen, ValuesForm))
        # The key of the help, which is text once something has been typed.
        await press(pilot, "question_mark", until=("Help · Tonight", "Limits for every run"))
        await press(pilot, "escape", until=lambda: isinstance(app.screen, ValuesForm))
        await press(pilot, "7", "question_mark", until="7?")
        await pilot.press("backspace", "backspace")
        monkeypatch.setattr("core.governor.check.read_device", lambda *_: BLIND)
        await press(pilot, *"75", "enter", until="does not report its temperature")
        monkeypatch.setattr("core.governor.check.read_device", lambda *_: replace(BLIND, temperature_c=50.0))
        await press(pilot, "enter", until="at most 75 °C")
        assert store.read_queue().night.values == {"hardware.temperature_limit_c": 75.0}


async def test_what_may_not_be_done_is_reported_and_enter_shows_the_run_of_an_entry(home: Path) -> None:
    run = ScriptedRun(home).train_to(10)
    add("a", "b")
    store.change(lambda queue: queue.with_entry(queue.entry(1).moved("starting", run=run.run.id)))
    async with queue() as (pilot, app, screen):
        await wait_for(pilot, lambda: screen._row is not None and screen._row.entry.id == 1)
        await press(pilot, "D", until="Entry 1 is starting and cannot be removed.")
        await press(pilot, "enter", until=lambda: not isinstance(app.screen, QueueScreen))
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.run == run.run)


async def test_a_torn_queue_is_reported(home: Path) -> None:
    add("a")
    store.queue_path().write_text("{")
    async with running(size=(120, 40)) as (_, pilot):
        await press(pilot, "Q", until="The queue cannot be read")


async def test_a_run_while_another_is_on_is_offered_to_the_queue(home: Path, config: Path, runner: Mock) -> None:
    ScriptedRun(home).train_to(10)
    async with running(LocaltuneApp(config), (120, 40), until=has_live_run) as (app, pilot):
        await wait_for(pilot, lambda: app.desktop.panes.config is not None)
        await press(pilot, "2", "r", until=lambda: asks(app, "add it to the queue"))
        await press(pilot, "plus", until=lambda: states() == {1: "waiting"})
        await wait_for(pilot, lambda: runner.start.called)
        await wait_for(pilot, lambda: any("Entry 1 of the queue" in told.message for told in app._notifications))


async def test_what_needs_the_user_and_the_end_ring_once(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "localtune").mkdir()
    script = ScriptedRun(home).train_to(10)
    app = LocaltuneApp()
    rung: list[str] = []
    monkeypatch.setattr(app, "bell", lambda: rung.append("bell"))
    app.desktop._write = rung.append
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: app.state.live_run is not None)
        (tmp_path / "localtune" / "notify.toml").write_text("bell = true\ndesktop = true\n")
        script.write(GovernorEvent(action="pause", cause="temperature", value=86.0, limit=83.0))
        script.write(NoticeEvent(level="error", code="checkpoint_failed", message="The disk is \x1b[31mfull."))
        script.write_state(state="paused", reason="the checkpoint was not written")
        await wait_for(pilot, lambda: len(rung) == 2)
        # Half a minute without a sign of life.
        script.heartbeat = time.time() - 100
        script.write_state(state="training")
        await wait_for(pilot, lambda: len(rung) == 4)
        script.write_state(step=11)
        view = app.state.view
        await wait_for(pilot, lambda: view is not None and view.state.step == 11)
        script.end("failed", "the disk is \x1b[31mfull")
        await wait_for(pilot, lambda: len(rung) == 6)
    assert rung[::2] == ["bell"] * 3, "once, however long it lasts, and not for heat, which passes"
    told = ("needs you: The disk is", "needs you: no sign of life for ", "has failed: the disk is")
    for text, said in zip(rung[1::2], told, strict=True):
        assert text.startswith(f"\x1b]9;143600-tickets {said}")
        assert text.endswith("\x07")
        assert "\x1b" not in text[1:]
