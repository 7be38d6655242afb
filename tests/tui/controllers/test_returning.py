"""Returning: the app is left in several ways, and the next start restores its state."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core import paths
from core.config.document import ConfigDocument
from core.drafts import list_drafts
from core.runs.record.store import Run, create_run
from tests.tui.config_panes import go_to, write_config
from tests.tui.harness import asks, document_of, opened, pane_of, press, screen_text, view_of, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.pick import PickScreen
from tui.screens.start import StartCard
from tui.session import DataPlace, Session, read_session, session_path, write_session


async def left(pilot: Pilot[Any]) -> None:
    """Quit by the key."""
    await press(pilot, "q", until=lambda: not pilot.app.is_running)


def rows_file(directory: Path, count: int = 300) -> Path:
    """A file of chats; each tenth has an empty answer."""
    path = directory / "faq.jsonl"
    rows = (
        {
            "messages": [
                {"role": "user", "content": f"q{n}"},
                {"role": "assistant", "content": "" if n % 10 == 9 else "a"},
            ]
        }
        for n in range(count)
    )
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def made_run(path: Path, name: str = "faq", state: str = "finished", **values: Any) -> Run:
    """An ended run of a file of rows."""
    document = ConfigDocument()
    for option, value in {"data.train": str(path), **values}.items():
        document.set(option.replace("__", "."), value)
    run = create_run(document.validate(), name)
    ended(run, state)
    return run


def ended(run: Run, state: str = "finished", reason: str = "") -> None:
    """Write the end of a run."""
    text = {"state": state, "reason": reason, "step": 3, "total_steps": 5, "updated": time.time()}
    run.state_path.write_text(json.dumps(text))


def notes(app: LocaltuneApp) -> str:
    """All notices."""
    return "\n".join(note.message for note in app._notifications)


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_a_file_comes_back_with_pane_row_filter_and_option(here: Path) -> None:
    rows_file(here)
    path = write_config(here, '[data]\ntrain = "faq.jsonl"\n')
    async with opened(LocaltuneApp(config_path=path)) as (app, pilot):
        data, config = pane_of(app, "data"), pane_of(app, "config")
        await go_to(pilot, config, "train.batch_size")
        await wait_for(pilot, lambda: data.view is not None and data.view.analysis is not None, 60)
        await press(pilot, "1", "G", "k", "m", "f", until=lambda: data.session.filter is not None)
        await pilot.pause()
        index = data.index
        assert index > 200
        await left(pilot)
    session = read_session()
    assert session is not None
    assert session.config == str(path)
    assert session.data == DataPlace(str(here / "faq.jsonl"), index, "empty_answer", True)
    async with opened() as (app, pilot):
        data, config = pane_of(app, "data"), pane_of(app, "config")
        assert app.main.current == "data"
        assert document_of(app).path == path
        await wait_for(pilot, lambda: data.session.filter is not None, 60)
        assert (data.index, data.session.filter.code, data.body.shows_tokens) == (index, "empty_answer", True)
        assert config.option == "train.batch_size"
        assert data.place == session.data
        assert app.main.slot("data").has_focus_within
        assert not app._notifications


async def test_the_newest_run_is_what_an_app_without_a_memory_begins_with(here: Path) -> None:
    run = made_run(rows_file(here), train__learning_rate=5e-4)
    async with opened() as (app, pilot):
        document = document_of(app)
        assert (document.path, document.get("train.learning_rate")) == (None, 5e-4)
        assert not app.state.is_dirty
        await wait_for(pilot, lambda: pane_of(app, "data").view is not None)
        assert pane_of(app, "config").model.run_name == "faq"
        await press(pilot, "2", until=lambda: f"from {run.id[9:]}" in screen_text(app))
        await left(pilot)
    assert not list_drafts("config")
    assert app.return_value is None


async def test_edits_of_a_run_s_configuration_come_back_as_its_own(here: Path) -> None:
    run = made_run(rows_file(here))
    async with opened() as (app, pilot):
        app.configuration.set_options({"train.epochs": 7.0})
        assert app.state.is_dirty
        await left(pilot)
    assert app.return_value is not None
    assert "The configuration (faq) is kept" in app.return_value
    async with opened() as (app, _):
        assert document_of(app).get("train.epochs") == 7.0
        assert app.state.origin is not None
        assert app.state.origin.run == run
        assert app.state.is_of_config


async def test_what_is_gone_is_reported_and_nothing_else_is_lost(here: Path) -> None:
    data = rows_file(here)
    path = write_config(here, '[data]\ntrain = "faq.jsonl"\n')
    write_session(Session(config=str(path), option="train.epochs", pane="config", data=DataPlace(str(data), 7)))
    data.unlink()
    async with opened() as (app, pilot):
        assert document_of(app).path == path
        assert "faq.jsonl, which was open in the Data pane, is not there now." in notes(app)
        assert pane_of(app, "config").option == "train.epochs"
        await left(pilot)
    path.unlink()
    made_run(rows_file(here), "other")
    async with opened() as (app, _):
        assert "tickets.toml is not there any more." in notes(app)
        assert app.state.origin is not None


@pytest.mark.long
async def test_an_explicit_configuration_wins(here: Path) -> None:
    first = write_config(here)
    second = here / "second.toml"
    second.write_text('[data]\ntrain = "rows.jsonl"\n')
    write_session(Session(config=str(first), pane="data", data=DataPlace(str(here / "rows.jsonl"), 2)))
    async with opened(LocaltuneApp(config_path=second)) as (app, pilot):
        assert document_of(app).path == second
        await wait_for(pilot, lambda: app.main.current == "config")


async def test_an_explicit_run_brings_its_own_configuration(here: Path) -> None:
    first, path = made_run(rows_file(here), "first", train__epochs=2.0), write_config(here)
    made_run(here / "faq.jsonl", "second")
    write_session(Session(config=str(path), pane="data"))
    async with opened(LocaltuneApp(run="first"), with_run=True) as (app, _):
        assert view_of(app).run == first
        assert document_of(app).get("train.epochs") == 2.0


async def test_nothing_is_remembered_where_that_is_not_wanted(here: Path) -> None:
    paths.config_dir().mkdir(parents=True)
    (paths.config_dir() / "settings.toml").write_text("remember = false\n")
    write_session(Session(config=str(write_config(here)), pane="data"))
    made_run(rows_file(here))
    async with opened() as (app, pilot):
        assert app.main.current == "train"
        assert document_of(app).dumps() == ""
        await left(pilot)
    assert not session_path().exists()


async def test_a_hostile_file_is_no_error(here: Path) -> None:
    paths.make_private_dir(paths.home())
    session_path().write_text('{"time": 1, "config": "/proc/self/mem", "run": "/", "data": {"path": "/dev/zero"}}')
    async with opened() as (app, pilot):
        assert not asks(app, "close")
        await left(pilot)
    assert read_session() is not None


async def test_the_end_of_a_watched_run_is_reported_once(here: Path) -> None:
    script = ScriptedRun(paths.home(), "20261124-203633-faq", total=30).train_to(30)
    async with opened() as (app, pilot):
        await wait_for(pilot, lambda: "Attached to 203633-faq, which is training." in notes(app))
        app.leaving.leave_by_choice()
        await wait_for(pilot, lambda: not app.is_running)
    script.end("finished", "all steps done")
    async with opened() as (app, pilot):
        assert "203633-faq finished just now while you were away: loss 0." in notes(app)
        assert "exact match 0.83" in notes(app)
        await wait_for(pilot, lambda: app.state.view is not None)
        await left(pilot)
    async with opened() as (app, _):
        assert "while you were away" not in notes(app)


async def test_an_end_that_was_seen_is_not_told_again(here: Path) -> None:
    script = ScriptedRun(paths.home(), "20261124-203633-faq", total=30).train_to(30)
    async with opened() as (app, pilot):
        await wait_for(pilot, lambda: app.state.live_run is not None)
        script.end("failed", "no")
        await wait_for(pilot, lambda: app.state.view is not None and not app.state.view.is_live)
        app.returning.look()
    async with opened() as (app, _):
        assert "while you were away" not in notes(app)


async def test_a_run_that_another_program_has_made_is_reported_with_its_reason(here: Path) -> None:
    write_session(Session(pane="train", time=time.time() - 60))
    run = made_run(rows_file(here), "alpaca", "failed")
    ended(run, "failed", "there is no file x.csv")
    async with opened() as (app, _):
        (note,) = [note for note in app._notifications if "away" in note.message]
        assert note.message.endswith(
            "alpaca failed at step 3 of 5 just now while you were away: there is no file x.csv."
        )
        assert note.severity == "error"


# Starting again.


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """The runs that are started: their learning rate and their name."""
    found: list[tuple[float, str]] = []
    monkeypatch.setattr(
        "tui.bridge.Bridge.start", lambda _, config, name, __: found.append((config.train.learning_rate, name))
    )
    return found


async def test_r_starts_the_shown_run_again_and_not_the_configuration(
    here: Path, started: list[tuple[float, str]]
) -> None:
    rows_file(here)
    run = made_run(here / "faq.jsonl", train__learning_rate=5e-4)
    async with opened(LocaltuneApp(config_path=write_config(here)), with_run=True) as (app, pilot):
        await press(pilot, "3", until=lambda: f"r start {run.id[9:]} again" in screen_text(app))
        await press(pilot, "r", until=lambda: isinstance(app.screen, StartCard))
        assert f"Start {run.id[9:]} again" in screen_text(app)
        assert f"run {run.id[9:]}: 1 value" in screen_text(app)
        assert "other values" not in screen_text(app)
        await press(pilot, "enter", until=lambda: started)
        assert started == [(5e-4, "faq")]


@pytest.mark.long
async def test_the_card_says_where_the_configuration_has_other_values_by_now(
    here: Path, started: list[tuple[float, str]]
) -> None:
    run = made_run(rows_file(here))
    async with opened(with_run=True) as (app, pilot):
        app.configuration.set_options({"train.learning_rate": 1e-3})
        await press(pilot, "3", "r", until=lambda: isinstance(app.screen, StartCard))
        await wait_for(
            pilot, lambda: f"faq has other values now than {run.id[9:]}: 2, then r starts those." in screen_text(app)
        )
        await press(pilot, "escape", "2", "r", until=lambda: isinstance(app.screen, StartCard))
        await press(pilot, "enter", until=lambda: started)
        assert started == [(1e-3, "faq")]


async def test_a_run_whose_data_is_gone_is_not_started_again(here: Path, started: list[tuple[float, str]]) -> None:
    data = rows_file(here)
    made_run(data)
    data.unlink()
    async with opened(with_run=True) as (app, pilot):
        await press(pilot, "3", "r", until=lambda: asks(app, "close"))
        text = " ".join(screen_text(app).replace("│", " ").split())
        assert "cannot be started again" in text
        assert "There is no file at" in text
        assert not started


async def begin_anew(pilot: Pilot[Any], app: LocaltuneApp) -> None:
    """Begin a new configuration from the list of them."""
    await press(pilot, "O", until=lambda: isinstance(app.screen, PickScreen))
    await pilot.press(*"a new", "enter")
    await wait_for(pilot, lambda: document_of(app).dumps() == "")


# The configuration of a run, opened from the list.


async def test_e_in_runs_opens_the_configuration_and_undo_brings_the_edits_back(here: Path) -> None:
    run = made_run(rows_file(here), "alpaca", train__learning_rate=5e-4)
    async with opened(with_run=True) as (app, pilot):
        await pilot.press("2")
        await begin_anew(pilot, app)
        app.configuration.set_options({"train.epochs": 7.0})
        await press(pilot, "5", until=lambda: pane_of(app, "runs").check_action("edit_config", ()))
        await pilot.press("e")
        await wait_for(pilot, lambda: document_of(app).get("train.epochs") is None)
        assert document_of(app).get("train.learning_rate") == 5e-4
        assert app.state.origin is not None
        assert app.state.origin.run == run
        app.drafts.look()
        assert [draft.data["text"] for draft in list_drafts("config")] == ["[train]\nepochs = 7.0\n"]
        await pilot.press("u")
        await wait_for(pilot, lambda: document_of(app).get("train.epochs") == 7.0)
        app.drafts.look()
        assert len(list_drafts("config")) == 1


# Configurations that were never saved, in the list.


@pytest.mark.long
async def test_what_was_never_saved_is_listed_opened_and_discarded(here: Path) -> None:
    rows_file(here)
    async with opened() as (app, pilot):
        app.configuration.set_options({"data.train": here / "faq.jsonl", "train.epochs": 7.0})
        await pilot.press("2")
        await begin_anew(pilot, app)
        await press(pilot, "O", until=lambda: isinstance(app.screen, PickScreen))
        assert "faq" in screen_text(app)
        assert "not saved, " in screen_text(app)
        await pilot.press("enter")
        await wait_for(pilot, lambda: document_of(app).get("train.epochs") == 7.0)
        assert len(list_drafts("config")) == 1
        await begin_anew(pilot, app)
        await press(pilot, "O", until=lambda: isinstance(app.screen, PickScreen))
        await press(pilot, "delete", until="del again discards it for good")
        await pilot.press("down", "up", "delete")
        assert list_drafts("config")
        await pilot.press("delete")
        assert not list_drafts("config")
        assert "not saved" not in screen_text(app)


# The header.


async def test_an_early_internal_error_forgets_what_was_shown_again(here: Path) -> None:
    write_session(Session(pane="data"))
    async with opened() as (app, _):
        app.returning.look()
        assert read_session() is not None
        app.returning.forget_if_suspect()
        app.returning.look()
    assert read_session() is None


async def test_data_that_is_named_and_was_open_comes_back_to_its_row(here: Path) -> None:
    path = rows_file(here)
    write_session(Session(data=DataPlace(str(path), 7), pane="config"))
    async with opened(LocaltuneApp(data=Path("faq.jsonl"))) as (app, pilot):
        await wait_for(pilot, lambda: pane_of(app, "data").index == 7)
