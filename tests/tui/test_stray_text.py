"""Text that is typed into the app by mistake, in a real terminal: nothing opens, nothing starts, nothing ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tui.data_panes import row, write_lines
from tests.tui.harness import wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.terminal import Terminal, app_environment
from tests.tui.test_app import ready, record_commands
from tui.app import LocaltuneApp
from tui.driver import BURST_GOES_ON
from tui.widgets.forms.inputs import PromptInput

MISTYPED = "clear; localtune-tui trian\r"
LOST = "Typed text went nowhere"
TITLES = {"1": "1 Data", "2": "2 Config", "3": "3 Train", "4": "4 Chat", "5": "5 Runs"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with data and a configuration, a run that is on, and an editor that leaves a trace."""
    made = tmp_path_factory.mktemp("workplace")
    write_lines(made / "rows.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    (made / "mine.toml").write_text('[model]\nbase = "nowhere"\n[data]\ntrain = "rows.jsonl"\n')
    editor = made / "editor"
    editor.write_text(f'#!/bin/sh\ntouch "{made}/edited"\n')
    editor.chmod(0o755)
    ScriptedRun(made / "home").train_to(30)
    return made


@pytest.fixture(scope="module")
def terminal(workplace: Path) -> Iterator[Terminal]:
    environment = {**app_environment(workplace / "home"), "EDITOR": str(workplace / "editor")}
    with Terminal.app(str(workplace / "mine.toml"), environment=environment, size=(100, 30)) as terminal:
        terminal.wait_for_text("3 Train · 2026")
        terminal.press("1")
        terminal.wait_for_text("1 Data · rows.jsonl")
        yield terminal


def test_keys_typed_ahead_go_to_the_pane_that_the_number_has_shown(terminal: Terminal) -> None:
    terminal.press("3")
    terminal.wait_for_text("─ 3 Train")
    terminal.press("1jj/question 7\r")
    terminal.wait_for_text("question 7: row 8")
    terminal.press("3")
    terminal.wait_for_text("─ 3 Train")
    terminal.press("1:2\r")
    terminal.wait_for_text("─ row 2 ")
    terminal.press("5iwhat is it?")
    terminal.wait_for_text("─ 4 Chat")
    terminal.wait_for_text("what is it?")
    terminal.press("\x1b")
    terminal.wait_for_rest()


def test_a_command_line_typed_into_a_pane_does_nothing(terminal: Terminal, workplace: Path) -> None:
    for number, title in TITLES.items():
        terminal.press(number)
        terminal.wait_for_text(f"─ {title}")
        terminal.press(MISTYPED)
        terminal.wait_for_text(LOST)
        terminal.wait_for_rest()
        assert f"─ {title}" in terminal.text
        assert not terminal.has_ended()
        assert not (workplace / "edited").exists()
        assert len(list((workplace / "home" / "runs").iterdir())) == 1
        # A key that comes later is one again, and no question is open that would take it; keys that come at once are
        # still the end of the text.
        over = time.monotonic() + 2 * BURST_GOES_ON
        terminal.wait_for(lambda: time.monotonic() > over)  # noqa: B023 - within this turn of the loop
        terminal.press("?")
        terminal.wait_for_text(f"Help · {title.partition(' ')[2]}")
        terminal.press("\x1b")
        terminal.wait_for(lambda: "Help · " not in terminal.text)


def test_a_paste_where_nothing_is_entered_does_nothing(terminal: Terminal, workplace: Path) -> None:
    terminal.press("2")
    terminal.wait_for_text("─ 2 Config")
    terminal.press(f"\x1b[200~{MISTYPED}\x1b[201~")
    terminal.wait_for_text(LOST)
    terminal.wait_for_rest()
    assert not (workplace / "edited").exists()


def test_the_end_of_a_text_that_comes_a_little_later_goes_with_it(terminal: Terminal) -> None:
    terminal.press("1")
    terminal.wait_for_text("─ 1 Data")
    terminal.press("make all")
    terminal.press("\r")
    terminal.press("q")
    terminal.wait_for_text(LOST)
    terminal.wait_for_rest()
    assert not terminal.has_ended()
    assert "leave it running" not in terminal.text


@pytest.mark.long
async def test_the_model_is_asked_from_every_pane(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    record_commands(monkeypatch)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await ready(pilot)
        await wait_for(pilot, lambda: app.state.view is not None)
        for number in TITLES:
            await pilot.press(number, "i", "1", "i")
            await wait_for(pilot, lambda: isinstance(app.focused, PromptInput))
            assert isinstance(app.focused, PromptInput)
            assert app.focused.text == "1i"
            assert app.main.slot("chat").display
            app.focused.clear()
            await pilot.press("escape")
            await wait_for(pilot, lambda: not isinstance(app.focused, PromptInput))
        # A dialog over the panes keeps its keys.
        await pilot.press("question_mark", "i", "1")
        await pilot.pause()
        assert len(app.screen_stack) == 2
