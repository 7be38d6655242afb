"""Questions of the ask bar: awaited, answered, given up, and replaced by another."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.app import ComposeResult
from textual.containers import Vertical

from tests.tui.harness import PaneApp, press, screen_text, wait_for
from tests.tui.test_typed_ahead import type_at_once
from tui.widgets.forms import ask_bar
from tui.widgets.forms.ask_bar import AskBar, KeyQuestion
from tui.widgets.forms.inputs import SafeInput


class Asking(Vertical):
    """A container with a bar, an input that has the focus before, and the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[object] = []
        self.typed: list[str] = []

    def compose(self) -> ComposeResult:
        yield SafeInput(id="before").add_class("-first-focus")
        yield AskBar()

    @property
    def bar(self) -> AskBar:
        return self.query_one(AskBar)

    async def text(self, value: str = "") -> None:
        self.answers.append(await self.bar.ask("find", value, changed=self.typed.append))

    async def path(self) -> None:
        self.answers.append(await self.bar.ask_path("open"))

    async def path_then_key(self) -> None:
        await self.path()
        self.answers.append(await self.bar.ask_key("Really?", {"y": "yes"}))


async def test_a_text_is_awaited_and_the_focus_goes_back() -> None:
    pane = Asking()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await pane.bar.converse(pane.text("old"))
        assert pane.bar.is_asking, "the question is open at once"
        type_at_once(pilot, "new")
        await wait_for(pilot, lambda: pane.typed[-1:] == ["new"])
        assert pane.answers == []
        await press(pilot, "enter", until=lambda: pane.answers == ["new"] and not pane.bar.is_asking)
        assert pane.query_one("#before").has_focus


async def test_what_is_given_up_is_none_and_so_is_no_path() -> None:
    pane = Asking()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        for work, key in ((pane.text, "escape"), (pane.path, "escape"), (pane.path, "enter")):
            await pane.bar.converse(work())
            await press(pilot, key, until=lambda: bool(pane.answers))
            assert pane.answers == [None]
            pane.answers.clear()
        await pane.bar.converse(pane.text())
        await press(pilot, "enter", until=lambda: pane.answers == [""])


async def test_a_word_typed_at_a_question_is_no_answer_whatever_its_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    pane = Asking()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await pane.bar.converse(pane.path_then_key())
        await press(pilot, *"a.toml", "enter", until=lambda: isinstance(pilot.app.focused, KeyQuestion))
        await pilot.pause()
        assert "press" not in screen_text(pilot.app)
        await press(pilot, *"alpaca.yml", "tab", "space")
        assert pane.bar.is_asking
        assert isinstance(pilot.app.focused, KeyQuestion)
        assert len(pane.answers) == 1
        assert "press y or esc" in screen_text(pilot.app)
        monkeypatch.setattr(ask_bar, "QUIET_SECONDS", 0.0)
        await press(pilot, "y", until=lambda: pane.answers == [Path("a.toml").absolute(), "y"])
        assert pane.query_one("#before").has_focus


async def test_a_question_gives_way_to_the_next_and_ends_with_the_bar() -> None:
    pane = Asking()
    async with PaneApp(pane).run_test(size=(80, 24)) as pilot:
        await pane.bar.converse(pane.text())
        pane.run_worker(pane.path())
        await wait_for(pilot, lambda: pane.answers == [None])
        assert pane.bar.is_asking
        await pane.bar.remove()
        await wait_for(pilot, lambda: pane.answers == [None, None])
