"""Empty panes: ways to start, with the data files of the directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tui.harness import FORBIDDEN, HOSTILE, has_run, pane_of, press, running, screen_lines, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.datasets.here import FoundFile, Here
from tui.keys import KeyTable
from tui.widgets.empty_state import FirstSteps, steps_content, ways_to_begin
from tui.widgets.forms.inputs import PathInput


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two data files."""
    for age, name in enumerate(("faq.csv", "notes.csv")):
        path = tmp_path / name
        path.write_text("question,answer\n" + "a,b\n" * (3 + age))
        os.utime(path, (1_700_000_000 - age, 1_700_000_000 - age))
    monkeypatch.chdir(tmp_path)
    return tmp_path


async def test_the_first_screen_asks_for_data_and_lists_what_is_here(directory: Path, home: Path) -> None:
    async with running(size=(200, 50)) as (app, pilot):
        for size in ((200, 50), (80, 24), (60, 20)):
            await pilot.resize_terminal(*size)
            await wait_for(pilot, lambda: len(screen_lines(app)[0]) == size[0])  # noqa: B023 - within this turn
            await wait_for(pilot, lambda: "faq.csv     3 rows" in screen_text(app))
            text = screen_text(app)
            assert "Fine-tune a language model on your data, locally." in text
            assert "No run yet. What should the model learn from?" in text
            # The first page is there once, also where the Data pane is beside it.
            assert text.count("my own file") == 1
            assert ("No data yet." in text) == (size == (200, 50))
            for line in (
                *("o   my own file", "▸ faq.csv", "notes.csv   4 rows", "E   the sample tickets"),
                "I   a config",
            ):
                assert line in text
        await pilot.press("j", "enter")
        await wait_for(pilot, lambda: app.main.current == "data" and pane_of(app, "data").view is not None)
        assert pane_of(app, "data").view.path == directory / "notes.csv"


async def test_a_file_named_beside_a_live_run_is_shown(directory: Path, home: Path) -> None:
    ScriptedRun(home).train_to(3)
    async with running(LocaltuneApp(data=directory / "faq.csv"), until=has_run) as (app, pilot):
        await wait_for(pilot, lambda: app.main.current == "data" and "faq.csv" in screen_text(app))
        assert "● training   3/120" in screen_lines(app)[0]


async def test_news_of_what_is_here_leaves_open_rows_alone(directory: Path, home: Path) -> None:
    async with running(LocaltuneApp(data=directory / "faq.csv"), (100, 30), until="3 rows") as (app, pilot):
        await wait_for(pilot, lambda: pane_of(app, "data").view is not None)
        empty = pane_of(app, "data").query_one(FirstSteps)
        (directory / "later.csv").write_text("question,answer\na,b\n")
        app.runs.look_around()
        await wait_for(pilot, lambda: len(empty.here.files) == 3)
        await pilot.pause()
        assert "No data yet" not in screen_text(app)
        assert not empty.display


async def test_the_keys_lead_on_from_the_train_pane_and_the_data_pane_lists_the_files_too(
    directory: Path, home: Path
) -> None:
    async with running(size=(100, 30), until="faq.csv") as (app, pilot):
        await press(pilot, "1", until="No data yet. What should the model learn from?")
        await press(pilot, "j", "k", "j", "k", "enter", until=lambda: pane_of(app, "data").view is not None)
        assert pane_of(app, "data").view.path == directory / "faq.csv"
        await pilot.press("3")
        await press(pilot, "o", until=lambda: app.main.current == "data" and isinstance(app.focused, PathInput))
        await pilot.press("escape", "3", "I")
        await wait_for(pilot, lambda: app.main.current == "config" and isinstance(app.focused, PathInput))


async def test_with_data_the_empty_pane_offers_the_start(directory: Path, home: Path) -> None:
    (directory / "c.toml").write_text('[data]\ntrain = "faq.csv"\n')
    async with running(LocaltuneApp(directory / "c.toml"), (100, 30)) as (app, pilot):
        await press(pilot, "3", until="r   start a run of the configuration")
        assert "▸ faq.csv" not in screen_text(app)


async def test_r_without_data_names_the_keys_and_then_the_file_that_is_open(directory: Path, home: Path) -> None:
    async with running(size=(100, 30), notifications=True, until="faq.csv") as (app, pilot):

        def is_told(text: str) -> bool:
            return any(text in note.message for note in app._notifications)

        await press(pilot, "r", until=lambda: is_told("o opens a file, t uses it for training, r starts."))
        assert app.main.current == "data"
        await press(pilot, "3", "enter", until=lambda: pane_of(app, "data").view is not None)
        await press(pilot, "r", until=lambda: is_told("t uses faq.csv for training, and r starts then."))


async def test_an_earlier_run_is_named_and_its_end_is_reported(directory: Path, home: Path) -> None:
    script = ScriptedRun(home).train_to(30)
    async with running(size=(100, 30), until=has_run) as (app, pilot):
        await wait_for(pilot, lambda: pane_of(app, "data") is not None)
        await press(pilot, "1", until="5   my run: tickets, in progress")
        script.end("finished")
        await wait_for(pilot, lambda: "5   my run: tickets, finished" in screen_text(app))


def test_hostile_names_stay_in_their_line() -> None:
    files = (FoundFile(Path("/data") / HOSTILE.replace("\x00", "").replace("/", ""), 10**9, None),)
    ways = ways_to_begin(KeyTable(), Here(files, 12, HOSTILE, HOSTILE), 0.0, sample="data.sample", sample_text="x")
    content = steps_content("No data yet.", ways, files, 0)
    assert not FORBIDDEN & set(content.plain)
    assert len(content.plain.splitlines()) == 2 + len(ways) + len(files)
