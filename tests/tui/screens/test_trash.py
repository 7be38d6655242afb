"""The trash in the app: a deleted run can be restored, or deleted for good after a confirmation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.runs.catalog.removal import list_trash, trash_run
from core.runs.record.store import Run
from tests.tui.harness import asks, pane_of, press, running, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.trash import TrashScreen

NAMES = ("20261101-000001-first", "20261102-000002-second", "20261103-000003-third")


@pytest.fixture
def runs(home: Path) -> list[Run]:
    """Three runs in the trash in order of deletion, and another run outside it."""
    made = []
    for name in (*NAMES, "20261104-000004-kept"):
        made.append(ScriptedRun(home, name).train_to(5).end("finished", "all steps done").run)
    for run in made[:3]:
        trash_run(run)
    return made


@asynccontextmanager
async def trash() -> AsyncIterator[tuple[Pilot[Any], LocaltuneApp]]:
    """The app with the trash, opened from the Runs pane."""
    async with running() as (app, pilot):
        await wait_for(pilot, lambda: app.state.view is not None and pane_of(app, "runs") is not None)
        await press(pilot, "5", until="5 Runs · 1")
        await press(pilot, "U", until=lambda: isinstance(app.screen, TrashScreen) and "3 runs, " in screen_text(app))
        yield pilot, app


async def test_any_run_in_the_trash_is_restored_and_listed(runs: list[Run]) -> None:
    async with trash() as (pilot, app):
        shown = screen_text(app)
        assert shown.index("third") < shown.index("second") < shown.index("first")
        assert "free on this disk" in shown
        await press(pilot, "j", "enter", until="Restored 20261102-000002-second.")
        assert runs[1].path.is_dir()
        await wait_for(pilot, lambda: "2 runs, " in screen_text(app))
        # One whose id is taken again stays.
        runs[2].path.mkdir()
        await press(pilot, "k", "enter", until="There is a run 20261103-000003-third again.")
        assert [item.id for item in list_trash()] == [NAMES[2], NAMES[0]]
        runs[2].path.rmdir()
        await press(pilot, "escape", until="5 Runs · 2")


async def test_what_is_deleted_for_good_is_asked_first(runs: list[Run]) -> None:
    async with trash() as (pilot, app):
        await press(pilot, "D", until=lambda: asks(app, "delete 20261103-000003-third for good"))
        await press(pilot, "n", until=lambda: isinstance(app.screen, TrashScreen))
        assert len(list_trash()) == 3
        await press(pilot, "D", until=lambda: asks(app, "delete 20261103-000003-third for good"))
        await press(pilot, "y", until=("freed.", "2 runs, "))
        assert [item.id for item in list_trash()] == [NAMES[1], NAMES[0]]
        await press(pilot, "A", until=lambda: asks(app, "delete all of them for good"))
        await press(pilot, "y", until="The trash is empty")
        assert list_trash() == []
        # Keys about a run do nothing without one.
        await pilot.press("enter", "D", "A")
        assert isinstance(app.screen, TrashScreen)
