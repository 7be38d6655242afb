"""Key hints: they can be clicked, and are up to date."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.cases import cases
from tests.tui.data_panes import row, write_lines
from tests.tui.fake_session import FakeSession, factory
from tests.tui.harness import has_live_run, pane_of, press, running, screen_lines, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tests.tui.test_app import record_commands
from tui.app import LocaltuneApp
from tui.panes.base import hint_at
from tui.widgets.forms.inputs import PromptInput


@cases(("column", "key"), [(0, ""), (5, ""), (7, "m"), (13, "m"), (15, ""), (16, "^s"), (20, "^s"), (30, ""), (99, "")])
def test_the_hint_at_a_column(column: int, key: str) -> None:
    assert hint_at("╰──── m tokens  ^s save it ╯", column) == key


async def click(pilot: Pilot[Any], text: str) -> None:
    """Click a text on the screen."""
    lines = screen_lines(pilot.app)
    y = max(number for number, line in enumerate(lines) if text in line)
    await pilot.click(offset=(lines[y].index(text), y))


async def test_keys_in_borders_and_in_the_last_line_can_be_clicked(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ScriptedRun(home).train_to(30)
    sent = record_commands(monkeypatch)
    write_lines(tmp_path / "rows.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    config = tmp_path / "mine.toml"
    config.write_text('[data]\ntrain = "rows.jsonl"\n')
    async with running(LocaltuneApp(config_path=config), (100, 30)) as (app, pilot):
        await wait_for(pilot, lambda: "c checkpoint" in screen_text(app))
        await click(pilot, "c checkpoint")
        await wait_for(pilot, lambda: sent == ["checkpoint"])
        await click(pilot, "1 Data")
        await wait_for(pilot, lambda: "s statistics" in screen_text(app))
        await click(pilot, "s statistics")
        await wait_for(pilot, lambda: pane_of(app, "data").shows_report)
        await click(pilot, "? help")
        await wait_for(pilot, lambda: "Help · Data" in screen_text(app))


async def test_the_keys_of_the_chat_agree_while_it_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRun(home).train_to(30)
    async with running(size=(120, 30), until=has_live_run) as (app, pilot):
        pane = pane_of(app, "chat")
        session = FakeSession({"tuned": ["short", " and", " tuned"]}, step=30)
        session.gate = threading.Semaphore(0)
        monkeypatch.setattr(pane._holder, "_factory", factory(session))
        await pilot.press("i", "h", "i")

        def agrees(stops: bool) -> bool:
            lines = screen_lines(app)
            shown = "esc stops the answer" if stops else "esc leaves the prompt"
            other = "esc leaves the prompt" if stops else "esc stops the answer"
            border = "esc stop " if stops else "esc leave "
            return shown in lines[-1] and other not in screen_text(app) and any(border in line for line in lines)

        await wait_for(pilot, lambda: agrees(stops=False))
        await press(pilot, "enter", until=lambda: agrees(stops=True))
        assert isinstance(app.focused, PromptInput)
        await pilot.resize_terminal(100, 26)
        await wait_for(pilot, lambda: agrees(stops=True))
        session.gate.release(3)
        await wait_for(pilot, lambda: agrees(stops=False))
        await pilot.resize_terminal(120, 30)
        await wait_for(pilot, lambda: agrees(stops=False))
