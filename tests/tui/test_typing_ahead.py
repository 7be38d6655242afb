"""Keys that come in one chunk, as they do over a slow line: those behind a key that asks for a text are the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.events import Key
from textual.keys import _character_to_key
from textual.pilot import Pilot

from tests.tui.data_panes import opened, row, write_lines
from tests.tui.harness import PaneApp, wait_for
from tui.panes.config import ConfigPane
from tui.panes.data import DataPane
from tui.widgets.safe_input import SafeInput


def type_at_once(pilot: Pilot[None], text: str) -> None:
    """Post every key before the first one is looked at."""
    for character in text:
        pilot.app.post_message(Key(_character_to_key(character), character))


async def typed(pilot: Pilot[None]) -> str:
    """The text of the line that has the keys."""
    await wait_for(pilot, lambda: isinstance(pilot.app.focused, SafeInput))
    await pilot.pause()
    line = pilot.app.focused
    assert isinstance(line, SafeInput)
    return line.value


# Each of these letters is a key of the pane, and so are the keys themselves.
@pytest.mark.parametrize(
    ("chunk", "text"),
    [("/mfsC/o:q", "mfsC/o:q"), (":2m/", "2m/"), ("onob/:lm", "nob/:lm")],
)
async def test_what_is_typed_behind_a_key_that_asks_is_the_text(tmp_path: Path, chunk: str, text: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    pane = DataPane()
    async with PaneApp(pane).run_test(size=(100, 24)) as pilot:
        await opened(pilot, pane, path)
        pane.rows.focus()
        await pilot.pause()
        type_at_once(pilot, chunk)
        assert (await typed(pilot)).removeprefix(f"{tmp_path}/") == text
        assert not pane.shows_tokens
        assert not pane.shows_report


async def test_the_line_gives_the_keys_back_and_asks_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [row(f"question {number}", "yes") for number in range(9)])
    pane = DataPane()
    async with PaneApp(pane).run_test(size=(100, 24)) as pilot:
        await opened(pilot, pane, path)
        pane.rows.focus()
        await pilot.pause()
        for number in (3, 7):
            type_at_once(pilot, f":{number}")
            assert await typed(pilot) == str(number)
            await pilot.press("enter")
            await wait_for(pilot, lambda: pane.rows.has_focus)
            await pilot.pause()
            assert pane.index == number - 1
        for term in ("quest", "no such text"):
            # What was looked for before is offered again, and gives way to what is typed.
            type_at_once(pilot, f"/{term}")
            assert await typed(pilot) == term
            await pilot.press("enter")
            await wait_for(pilot, lambda: pane.rows.has_focus)
        await pilot.press("slash")
        assert await typed(pilot) == "no such text"


async def test_the_search_of_the_configuration_takes_what_is_typed_ahead() -> None:
    pane = ConfigPane()
    async with PaneApp(pane).run_test(size=(100, 24)) as pilot:
        await wait_for(pilot, lambda: bool(pane.form.shown))
        pane.form.focus()
        await pilot.pause()
        type_at_once(pilot, "/xdI/")
        assert await typed(pilot) == "xdI/"
