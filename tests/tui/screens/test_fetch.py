"""Hub entries in the data pane: confirmed, downloaded from a real server, canceled, and used without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from tests.core.hub.conftest import hub as hub
from tests.core.hub.conftest import rows
from tests.core.hub.fake_hub import FakeHub, Repository
from tests.tui.harness import PaneApp, paste, press, requested, screen_text, wait_for
from tui.files import data_paths, entry_text, path_text
from tui.panes.config.model import ConfigModel
from tui.panes.data.pane import DataPane
from tui.screens import fetch
from tui.screens.job import JobScreen

ENTRY = "hf://datasets/me/set"


@pytest.fixture(autouse=True)
def _dataset(hub: FakeHub) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(1, 2), "test.jsonl": rows(9)})


@asynccontextmanager
async def asking(
    entry: str = ENTRY, *, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Pilot[None], PaneApp, DataPane]]:
    """A pane with the question about an entry."""
    pane = DataPane()
    app = PaneApp(pane)
    async with app.run_test(size=size) as pilot:
        await pilot.press("o")
        await paste(pilot, entry)
        await press(pilot, "enter", until=lambda: isinstance(pilot.app.screen, JobScreen))
        yield pilot, app, pane


async def test_nothing_is_asked_of_the_hub_before_the_user_agrees(hub: FakeHub) -> None:
    async with asking(size=(60, 20)) as (pilot, app, _):
        words = " ".join(screen_text(app).replace("│", " ").split())
        assert f"{ENTRY} is not on this machine." in words
        assert hub.endpoint.removeprefix("http://") in words
        # The key that submits the prompt agrees to nothing.
        await pilot.press("enter")
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))
        assert "is not on this machine" in " ".join(screen_text(app).split())
        assert hub.asked == []
        await press(pilot, "f5", until=lambda: isinstance(app.screen, JobScreen))


async def test_it_is_downloaded_opened_and_used(hub: FakeHub) -> None:
    async with asking(size=(100, 30)) as (pilot, app, pane):
        await press(pilot, "y", until=lambda: pane.view is not None)
        assert pane.view is not None
        assert pane.view.count == 2
        assert pane.view.detection is not None
        assert "The split train is 1 of 2 data files." in pane.view.detection.reason
        await press(pilot, "t", until=lambda: requested(pilot, "configuration.use_dataset"))
        document = ConfigDocument("", Path("/somewhere/run.toml"))
        assert path_text(document, requested(pilot, "configuration.use_dataset")[0].args[0]) == ENTRY
        # Opened again, it needs no confirmation.
        asked = len(hub.asked)
        await press(pilot, "o", until=lambda: ENTRY in screen_text(app))
        await press(pilot, "enter")
        assert not isinstance(app.screen, JobScreen)
        assert len(hub.asked) == asked


async def test_a_download_goes_on_without_its_view_can_be_canceled_and_goes_on_later(hub: FakeHub) -> None:
    hub.datasets["me/set"] = Repository({"train.jsonl": rows(*range(100_000))})
    hub.stalls["train.jsonl"] = 2 << 20
    async with asking() as (pilot, app, pane):
        await press(pilot, "y", until=("x cancel  esc keep running", "downloading train.jsonl"))
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))
        (job,) = app.state.jobs
        assert job.stage == "on"
        app.jobs.show()
        await press(pilot, "x", until=lambda: not isinstance(app.screen, JobScreen) and job.stage == "canceled")
        assert pane.view is None
        hub.stalls.clear()
        hub.resume.set()
        await press(pilot, "f5", until=lambda: isinstance(app.screen, JobScreen))
        await press(pilot, "y", until=lambda: pane.view is not None)
    assert any("range" in asked.headers for asked in hub.asked)


async def test_a_large_one_is_asked_about_twice(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LARGE", 50)
    async with asking() as (pilot, _, pane):
        await press(pilot, "y", until="1 file, 74 B")
        assert hub.files_asked() == []
        await press(pilot, "y", until=lambda: pane.view is not None)
    assert hub.files_asked() == ["train.jsonl"]


async def test_what_a_configuration_names_is_not_asked_for_unasked(hub: FakeHub) -> None:
    pane = DataPane()
    app = PaneApp(pane)
    document = ConfigDocument(f'data.train = "{ENTRY}"\n')
    async with app.run_test(size=(80, 24)) as pilot:
        (path,) = data_paths(document, "train")
        assert entry_text(path) == ENTRY
        pane.show(path)
        await wait_for(pilot, lambda: "is not on this machine" in screen_text(app))
        assert not isinstance(app.screen, JobScreen)
        assert "asks whether to download it" in " ".join(screen_text(app).split())
    problems = ConfigModel(document).problems()
    assert problems["data.train"].startswith(f"{ENTRY} is not on this machine")
    assert hub.asked == []
