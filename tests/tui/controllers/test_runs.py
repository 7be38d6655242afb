"""Quitting with unsaved edits: asked about, saved, discarded, or canceled."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.drafts import list_drafts
from core.errors import UserError
from tests.cases import cases
from tests.tui.config_panes import go_to, write_config
from tests.tui.harness import asks, has_live_run, pane_of, press, running, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.bridge import Bridge
from tui.panes.config.pane import ConfigPane
from tui.screens.start import StartCard


async def edit(pilot: Pilot[Any], app: LocaltuneApp) -> ConfigPane:
    """The config pane with an unsaved edit."""
    await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config") is not None)
    pane = pane_of(app, "config")
    assert isinstance(pane, ConfigPane)
    await wait_for(pilot, lambda: bool(pane.form.shown) and pane.document is app.state.document)
    await pilot.press("2")
    await go_to(pilot, pane, "train.epochs")
    await press(pilot, "enter", "ctrl+u", "7", "enter", until=lambda: pane.form.has_focus and app.state.is_dirty)
    await pilot.pause()
    return pane


@asynccontextmanager
async def edited(path: Path) -> AsyncIterator[tuple[LocaltuneApp, Pilot[Any], ConfigPane]]:
    """The app with an unsaved edit of a file."""
    async with running(LocaltuneApp(config_path=path)) as (app, pilot):
        yield app, pilot, await edit(pilot, app)


async def asked(pilot: Pilot[Any], key: str = "q") -> None:
    await press(pilot, key, until=lambda: asks(pilot.app, "save and leave"))
    await pilot.pause()


@cases("key", ["q", "ctrl+q"])
async def test_edits_are_saved_also_while_they_are_typed_and_then_it_leaves(
    home: Path, tmp_path: Path, key: str
) -> None:
    path = write_config(tmp_path)
    async with edited(path) as (app, pilot, _):
        await press(pilot, *(("enter", "ctrl+u", "9") if key == "ctrl+q" else ()))
        await asked(pilot, key)
        assert "tickets.toml has edits that are not saved." in screen_text(app)
        await press(pilot, "s", until=lambda: not app.is_running)
    assert f"epochs = {9 if key == 'ctrl+q' else 7}" in path.read_text()


async def test_edits_are_given_up_only_by_their_own_key(home: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    before = path.read_text()
    async with edited(path) as (app, pilot, _):
        await asked(pilot)
        await press(pilot, "q", "ctrl+q", "ctrl+c")
        assert asks(app, "save and leave")
        await press(pilot, "escape", until=lambda: not asks(app, "save and leave"))
        assert app.is_running
        assert app.state.is_dirty
        await asked(pilot)
        await press(pilot, "d", until=lambda: not app.is_running)
    assert path.read_text() == before


async def test_a_configuration_without_a_file_is_kept_without_a_question(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await edit(pilot, app)
        app.configuration.set_options({"data.train": tmp_path / "rows.jsonl"})
        await press(pilot, "q", until=lambda: not app.is_running)
    assert (
        app.return_value == "The configuration (rows) is kept, but not in a file. Come back to it with: localtune-tui"
    )
    assert len(list_drafts("config")) == 1


async def test_a_configuration_that_cannot_be_kept_is_asked_about(home: Path, tmp_path: Path) -> None:
    (home / "drafts").write_text("a file where a directory belongs")
    async with running() as (app, pilot):
        app.configuration.set_options({"train.epochs": 7.0})
        await wait_for(pilot, lambda: app.state.is_dirty)
        app.drafts.look()
        assert app.drafts.kept == ""
        await asked(pilot)
        assert "has edits that are not saved" in screen_text(app)
        await press(pilot, "escape", until=lambda: len(app.screen_stack) == 1)
        # As soon as there is room for it, it is kept without a question.
        (home / "drafts").unlink()
        await press(pilot, "q", until=lambda: not app.is_running)
    assert len(list_drafts("config")) == 1


@pytest.mark.long
async def test_a_later_save_does_not_leave_after_a_leave_was_given_up(home: Path, tmp_path: Path) -> None:
    path = write_config(tmp_path)
    async with edited(path) as (app, pilot, pane):
        path.write_text("# theirs\n" + path.read_text())
        await asked(pilot)
        await press(pilot, "s", until=lambda: pane.ask_bar.is_asking)
        await press(pilot, "escape", until=lambda: pane.form.has_focus)
        await press(pilot, "ctrl+s", until=lambda: pane.ask_bar.is_asking)
        await press(pilot, "o", until=lambda: "epochs = 7" in path.read_text() and not app.state.is_dirty)
        await pilot.pause()
        assert app.is_running


async def test_a_file_that_somebody_else_has_changed_is_not_overwritten_on_the_way_out(
    home: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path)
    async with edited(path) as (app, pilot, pane):
        path.write_text("# theirs\n" + path.read_text())
        await asked(pilot)
        await press(pilot, "s", until=lambda: pane.ask_bar.is_asking)
        await wait_for(pilot, lambda: "was changed by another program" in screen_text(app))
        assert path.read_text().startswith("# theirs")
        await press(pilot, "o", until=lambda: not app.is_running)
    assert "epochs = 7" in path.read_text()


async def test_beside_a_live_run_it_is_reported_that_it_goes_on(home: Path, tmp_path: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    async with running(LocaltuneApp(config_path=write_config(tmp_path)), until=has_live_run) as (app, pilot):
        await edit(pilot, app)
        await asked(pilot)
        text = " ".join(screen_text(app).replace("│", " ").split())
        assert "has edits that are not saved" in text
        assert "it goes on after you leave" in text
        await press(pilot, "d", until=lambda: not app.is_running)
    assert app.return_value is not None
    assert app.return_value.endswith("Come back with: localtune-tui")
    assert script.run.state().state == "training"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Starts of runs that take until a test says that they are over."""
    found: list[object] = []
    monkeypatch.setattr(Bridge, "start", lambda *asked: found.append(asked))
    return found


async def ask_to_start(pilot: Pilot[Any], app: LocaltuneApp, times: int = 1) -> None:
    """Ask for the sample run, and start it from its card."""
    for _ in range(times):
        app.starting.start_sample()
    await wait_for(pilot, lambda: isinstance(app.screen, StartCard))
    await press(pilot, "enter", until=lambda: not isinstance(app.screen, StartCard))


async def test_a_start_is_asked_for_once_and_waited_for(home: Path, started: list[object]) -> None:
    async with running(notifications=True) as (app, pilot):
        await ask_to_start(pilot, app, times=3)
        await wait_for(pilot, lambda: len(started) == 1)
        assert app.state.is_starting
        app.starting.start_sample()
        await press(pilot, "q", until="as soon as its worker is up")
        assert app.is_running
        await press(pilot, "q", until=lambda: asks(app, "leave now"))
        await pilot.pause()
        await press(pilot, "enter", until=lambda: not asks(app, "leave now"))
        assert app.is_running
        app.runs.started(ScriptedRun(home).run)
        await wait_for(pilot, lambda: not app.is_running)
    assert "has started" in (app.return_value or "")
    assert len(started) == 1


async def test_a_start_that_fails_ends_the_waiting_and_one_that_takes_long_can_be_left(
    home: Path, started: list[object]
) -> None:
    async with running(notifications=True) as (app, pilot):
        await ask_to_start(pilot, app)
        await pilot.press("q")
        app.runs.action_failed("The sample could not be started", UserError("There is no room."))
        await wait_for(pilot, lambda: "There is no room." in screen_text(app))
        assert not app.state.is_starting
        await press(pilot, "y", until=lambda: app.clipboard == "There is no room." and not app.desktop.is_covered)
        await ask_to_start(pilot, app)
        await pilot.press("q")
        await pilot.pause()
        assert not asks(app, "leave now")
        await press(pilot, "q", until=lambda: asks(app, "leave now"))
        await pilot.pause()
        await press(pilot, "l", until=lambda: not app.is_running)


async def test_a_run_that_is_there_can_be_followed_by_another(home: Path, started: list[object]) -> None:
    async with running() as (app, pilot):
        await ask_to_start(pilot, app)
        await wait_for(pilot, lambda: len(started) == 1)
        script = ScriptedRun(home).train_to(3).end("finished")
        app.runs.started(script.run)
        await wait_for(pilot, lambda: app.state.view is not None and not app.state.is_starting)
        await ask_to_start(pilot, app)
        await wait_for(pilot, lambda: len(started) == 2)


async def test_a_model_that_the_run_makes_ready_is_found_by_the_panes(
    home: Path, tmp_path: Path, tiny_model_dir: Path
) -> None:
    model, config = tmp_path / "model", write_config(tmp_path)
    config.write_text(config.read_text() + f'[model]\nbase = "{model}"\n')
    script = ScriptedRun(home)
    script.write_state(state="starting")
    async with running(LocaltuneApp(config), (80, 24), until=has_live_run) as (app, pilot):
        await press(pilot, "1", until="tokens not counted")
        await press(pilot, "2", until="There is no model")
        shutil.copytree(tiny_model_dir, model)
        script.begin()
        await wait_for(pilot, lambda: "There is no model" not in screen_text(app))
        await press(pilot, "1", until="3 used · 0 dropped · no problems · longest")
