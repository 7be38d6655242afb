"""Keys typed ahead, which come in one chunk over a slow line: those after a key that asks for a text are the text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key
from textual.keys import _character_to_key
from textual.pilot import Pilot

from core.config.recent import remember_config
from tests.tui.config_panes import go_to, write_config
from tests.tui.config_panes import opened as config_opened
from tests.tui.data_panes import opened, row, write_lines
from tests.tui.harness import PaneApp, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_app import record_commands
from tui.app import LocaltuneApp
from tui.datasets.view import DatasetView
from tui.panes.config.pane import ConfigPane
from tui.panes.data.pane import DataPane
from tui.screens.box import DifferenceScreen
from tui.screens.choice import ChoiceDialog
from tui.screens.columns.columns import ColumnForm, ColumnsScreen
from tui.screens.pick import PickScreen
from tui.screens.presets import PresetScreen
from tui.widgets.forms.inputs import SafeInput


def type_at_once(pilot: Pilot[Any], text: str) -> None:
    """Post every key before the first one is handled; a line break is ``enter``."""
    for character in text:
        key = {"\n": "enter", "\x13": "ctrl+s", "\t": "tab"}.get(character) or _character_to_key(character)
        pilot.app.post_message(Key(key, None if ord(character) < 32 else character))


async def typed(pilot: Pilot[Any]) -> str:
    """The text of the focused input."""
    await wait_for(pilot, lambda: isinstance(pilot.app.focused, SafeInput))
    await pilot.pause()
    line = pilot.app.focused
    assert isinstance(line, SafeInput)
    return line.value


async def test_what_is_typed_behind_a_key_that_asks_is_the_text_and_the_keys_come_back(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    pane = DataPane()
    async with PaneApp(pane).run_test(size=(100, 24)) as pilot:
        await opened(pilot, pane, path)
        pane.body.rows.focus()
        await pilot.pause()
        # Each of these letters is a key of the pane, and so are the keys themselves.
        for chunk, text in (("/mfsC/o:q", "mfsC/o:q"), (":2m/", "2m/"), ("onob/:lm", "nob/:lm")):
            type_at_once(pilot, chunk)
            assert (await typed(pilot)).removeprefix(f"{tmp_path}/") == text
            assert not pane.body.shows_tokens
            assert not pane.shows_report
            await pilot.press("escape")
            await wait_for(pilot, lambda: pane.body.rows.has_focus)
        for number in (3, 7):
            type_at_once(pilot, f":{number}")
            assert await typed(pilot) == str(number)
            await pilot.press("enter")
            await wait_for(pilot, lambda: pane.body.rows.has_focus)
            await pilot.pause()
            assert pane.index == number - 1
        for term in ("quest", "no such text"):
            # The last search is offered again, and is replaced by typed text.
            type_at_once(pilot, f"/{term}")
            assert await typed(pilot) == term
            await pilot.press("enter")
            await wait_for(pilot, lambda: pane.body.rows.has_focus)
        await pilot.press("slash")
        assert await typed(pilot) == "no such text"


async def test_a_value_typed_behind_enter_is_the_value(tmp_path: Path) -> None:
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await config_opened(pilot, pane, write_config(tmp_path))
        field = await go_to(pilot, pane, "train.epochs")
        type_at_once(pilot, "\n5\n")
        await wait_for(pilot, lambda: field.value not in (None, 2.0) and pane.form.has_focus)
        # The input begins with the present value, and typed text goes after it.
        assert field.value == 25.0
        assert pane.form.current is field


async def test_what_is_typed_behind_the_keys_of_the_configuration_goes_where_they_lead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=(100, 24)) as pilot:
        await wait_for(pilot, lambda: bool(pane.form.shown))
        pane.form.focus()
        await pilot.pause()
        before = pane.document.dumps()
        for chunk, text in (("/xdI/", "xdI/"), ("Sxdu/q.toml", "xdu/q.toml"), ("\x13xdu/q.toml", "xdu/q.toml")):
            type_at_once(pilot, chunk)
            assert (await typed(pilot)).endswith(text)
            assert pane.document.dumps() == before
            await pilot.press("escape")
            await wait_for(pilot, lambda: pane.form.has_focus)
        await config_opened(pilot, pane, write_config(tmp_path))
        type_at_once(pilot, "vf")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, DifferenceScreen))
        await pilot.press("escape")
        await wait_for(pilot, lambda: pane.form.has_focus)
        cursor = pane.form.cursor
        type_at_once(pilot, "Pj")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, PresetScreen))
        screen = pilot.app.screen
        assert isinstance(screen, PresetScreen)
        await wait_for(pilot, lambda: screen._list.highlighted not in (None, 0))
        assert pane.form.cursor == cursor


async def test_the_editor_of_a_value_still_saves_with_its_key(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await config_opened(pilot, pane, path)
        await go_to(pilot, pane, "train.epochs")
        await pilot.press("enter", "ctrl+u", "9", "ctrl+s")
        await wait_for(pilot, lambda: "epochs = 9" in path.read_text())


async def test_what_is_typed_behind_open_finds_the_configuration(tmp_path: Path, private_home: Path) -> None:
    for name in ("apples", "pears"):
        (tmp_path / f"{name}.toml").write_text('[data]\ntrain = "rows.jsonl"\n')
        remember_config(tmp_path / f"{name}.toml")
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await config_opened(pilot, pane, write_config(tmp_path))
        pane.form.focus()
        await pilot.pause()
        type_at_once(pilot, "Oapp")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, PickScreen))
        assert await typed(pilot) == "app"
        await pilot.press("escape")
        await wait_for(pilot, lambda: not isinstance(pilot.app.screen, PickScreen))
        type_at_once(pilot, "Oapp\n")
        await wait_for(pilot, lambda: pane.document.path == tmp_path / "apples.toml")


async def test_a_column_typed_behind_enter_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"wer": "x", "was": "a", "warum": "b"}) + "\n")
    pane = DataPane()
    async with PaneApp(pane).run_test(size=(100, 30)) as pilot:
        await opened(pilot, pane, path)
        assert isinstance(pane.view, DatasetView)
        screen = ColumnsScreen(pane.view, ColumnForm("auto", {}))
        await pilot.app.push_screen(screen)
        await wait_for(pilot, lambda: screen.sample is not None)
        await pilot.pause()
        await pilot.press("j")
        await pilot.pause()
        type_at_once(pilot, "\nwaru")
        await wait_for(pilot, lambda: isinstance(pilot.app.screen, PickScreen))
        assert await typed(pilot) == "waru"


async def test_what_is_typed_ahead_confirms_nothing_and_commands_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, lambda: app.state.live_run is not None)
        await pilot.press("3")
        await pilot.pause()
        type_at_once(pilot, "syp")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        await pilot.pause()
        assert isinstance(app.screen, ChoiceDialog)
        assert sent == []
        await pilot.press("y")
        await wait_for(pilot, lambda: sent == ["stop"])


async def test_a_key_that_comes_twice_answers_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, lambda: app.state.live_run is not None and app.state.document is not None)
        for opening, leaving in (("?", "\n\n"), ("s", "yy"), ("e", "\n\n"), ("s", "nn")):
            type_at_once(pilot, opening)
            await wait_for(pilot, lambda: len(app.screen_stack) == 2)
            await pilot.pause()
            type_at_once(pilot, leaving)
            await wait_for(pilot, lambda: len(app.screen_stack) == 1)
            await pilot.pause()
            assert app.is_running
        assert sent == ["stop"]


async def test_a_question_takes_no_key_that_was_typed_before_it_was_read(tmp_path: Path) -> None:
    path = write_config(tmp_path)
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await config_opened(pilot, pane, path)
        pane.document.set("train.epochs", 5.0)
        pane.form.focus()
        await pilot.pause()
        before = pane.document.dumps()
        type_at_once(pilot, "Oyx")
        await wait_for(pilot, lambda: pane.ask_bar.is_asking)
        await pilot.pause()
        assert pane.ask_bar.is_asking
        assert not pane.filter.shows_expert
        assert pane.document.dumps() == before
        assert "has not been saved" in screen_text(pilot.app)
        await pilot.press("escape")
        await wait_for(pilot, lambda: pane.form.has_focus)
