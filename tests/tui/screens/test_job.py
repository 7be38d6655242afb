"""The screen that follows a job: asked for, at work, ended, and left at any time."""

from __future__ import annotations

import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from textual.content import Content
from textual.pilot import Pilot

from core.errors import UserError
from core.jobs.job import JobCancelledError
from tests.cases import cases
from tests.tui.harness import ShellApp, press, screen_lines, screen_text, shown, wait_for
from themes.loader import variable_defaults
from tui.glyphs import GlyphSet
from tui.screens.job import JobScreen, JobState


class Counting:
    """A job that counts until it may end.

    Args:
        result: The value to return, or the error to raise.
    """

    title = "Counting"
    width = 60
    takes = "take it"

    def __init__(self, result: int | UserError = 7) -> None:
        self.result = result
        self.may_end = threading.Event()
        self.given_up = threading.Event()
        self.is_closed = False

    def run(self, tell: Callable[[int], None]) -> int:
        count = 0
        while not self.may_end.wait(0.01):
            count += 1
            try:
                tell(count)
            except JobCancelledError:
                self.given_up.set()
                raise
        if isinstance(self.result, UserError):
            raise self.result
        return self.result

    def close(self) -> None:
        self.is_closed = True

    def answer(self, result: int) -> int | None:
        return result or None

    def text(self, state: JobState[int, int], room: int, glyphs: GlyphSet) -> Content:
        lines = "\n".join(f"line {number} of {room} columns" for number in range(60))
        told = {"asked": "Shall it?", "on": f"at {state.progress or 0}", "ended": f"found {state.result}\n{lines}"}
        return Content(str(state.error) if state.error is not None else told[state.stage])


class Asking(ShellApp):
    """An app that shows a job and keeps the answers."""

    def __init__(self, page: Counting) -> None:
        super().__init__()
        self.page = page
        self.answers: list[int | None] = []

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return variable_defaults(True)

    def on_mount(self) -> None:
        self.push_screen(JobScreen(self.page), self.answers.append)


@asynccontextmanager
async def at_work(
    page: Counting, *, may_end: bool = False, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Pilot[None], Asking]]:
    """The app with a job that has been begun."""
    app = Asking(page)
    if may_end:
        page.may_end.set()
    async with app.run_test(size=size) as pilot:
        await pilot.press("enter")
        yield pilot, app


async def test_it_begins_when_told_to_and_its_result_can_be_taken() -> None:
    app = Asking(Counting())
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, lambda: "Shall it?" in screen_text(app) and "enter begin  esc leave" in screen_text(app))
        # Nothing has ended, so there is nothing to close.
        await pilot.press("q")
        await press(pilot, "enter", until=lambda: re.search("at [1-9]", screen_text(app)))
        assert "esc cancel" in screen_text(app)
        await pilot.press("enter", "q")
        assert app.answers == []
        app.page.may_end.set()
        await wait_for(pilot, lambda: "enter take it  j k scroll  esc close" in screen_text(app))
        # The scrollbar has a column of its own.
        assert "line 0 of 53 columns" in screen_text(app)
        await press(pilot, "enter", until=lambda: app.answers == [7])
    assert app.page.is_closed
    assert not app.page.given_up.is_set()


@cases("key", ["escape", "q"])
async def test_a_result_can_be_left(key: str) -> None:
    async with at_work(Counting(), may_end=True) as (pilot, app):
        await wait_for(pilot, lambda: "enter take it" in screen_text(app))
        await press(pilot, key, until=lambda: app.answers == [None])


async def test_leaving_gives_the_job_up() -> None:
    async with at_work(Counting()) as (pilot, app):
        await wait_for(pilot, lambda: "at " in screen_text(app))
        await press(pilot, "escape", until=lambda: app.answers == [None] and app.page.given_up.is_set())
    assert app.page.is_closed


async def test_a_failure_is_told() -> None:
    async with at_work(Counting(UserError("No.", "Try another.")), may_end=True) as (pilot, _):
        await shown(pilot, "No. Try another.", "j k scroll  esc close")


async def test_the_box_scrolls_by_every_key_and_stays_within_the_terminal() -> None:
    async with at_work(Counting(), may_end=True, size=(60, 20)) as (pilot, app):
        # All columns, less border, padding and scrollbar.
        await wait_for(pilot, lambda: "line 0 of 53 columns" in screen_text(app))
        for keys, shown in (
            (("G",), "line 59"),
            (("g",), "found 7"),
            (("end",), "line 59"),
            (("home",), "found 7"),
            (("pagedown", "space"), "line 40"),
            (("pageup", "pageup"), "found 7"),
            (("j", "down", "down"), "line 15"),
            (("k", "up", "up"), "found 7"),
        ):
            await pilot.press(*keys)
            await wait_for(pilot, lambda shown=shown: shown in screen_text(app))  # type: ignore[misc]
        assert all(len(line) <= 60 for line in screen_lines(app))
