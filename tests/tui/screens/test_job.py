"""Jobs and their view, with a job of the test, the 4-bit measurement and the self-test."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from textual.content import Content
from textual.pilot import Pilot

from core import paths
from core.config.schema import Config
from core.directories import Progress
from core.errors import UserError
from core.jobs.job import JobProgress
from core.jobs.running import RunningJob
from core.quantization.result import Figures, QuantizationCost, sentence
from core.selftest import job
from core.selftest.job import SelfTestJob, selftest_job
from core.selftest.report import SUBJECTS
from tests.cases import cases
from tests.core.quantization.test_result import COST
from tests.tui.config_panes import write_config
from tests.tui.harness import ShellApp, has_form, pane_of, press, running, screen_lines, screen_text, shown, wait_for
from tests.waiting import has_ended
from tui.app import LocaltuneApp
from tui.glyphs import GlyphSet
from tui.jobs import JobPage
from tui.panes.data.pane import AnalysisPage
from tui.screens.dialogs import LEAVE, SAVE, quit_dialog, unsaved_dialog
from tui.screens.help import HelpScreen
from tui.screens.job import JobScreen
from tui.widgets.status_bar import fit, header_segments


class Counting(JobPage[JobProgress, int]):
    """A job that counts until it may end.

    Args:
        result: The value to return, or the error to raise.
    """

    width = 60
    takes = "take it"

    def __init__(self, result: int | UserError = 7) -> None:
        super().__init__(RunningJob("count"), "Counting")
        self.scripted = result
        self.may_end = threading.Event()
        self.taken = 0

    def run(self, tell: Callable[[JobProgress], None]) -> int:
        count = 0
        while not self.may_end.wait(0.01):
            count += 1
            tell(JobProgress("counting", count, 10_000))
        if isinstance(self.scripted, UserError):
            raise self.scripted
        return self.scripted

    def take(self) -> None:
        self.taken = self.job.result or 0

    def outcome(self) -> str:
        return f"It found {self.job.result}."

    def text(self, room: int, glyphs: GlyphSet) -> Content:
        lines = "\n".join(f"line {number} of {room} columns" for number in range(60))
        at = self.job.progress.done if self.job.progress is not None else 0
        return Content(
            {"asked": "Shall it?", "on": f"at {at}", "ended": f"found {self.job.result}\n{lines}"}[self.job.stage]
        )


@asynccontextmanager
async def at_work(
    page: Counting, *, may_end: bool = False, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Pilot[Any], ShellApp]]:
    """An app with a job that has been begun."""
    app = ShellApp()
    if may_end:
        page.may_end.set()
    async with app.run_test(size=size) as pilot:
        app.jobs.open(page)
        try:
            await press(pilot, "enter", until=lambda: page.job.stage != "asked")
            yield pilot, app
        finally:
            # Its thread would be waited for.
            page.may_end.set()


async def test_it_begins_when_asked_to_and_its_result_can_be_taken() -> None:
    page, app = Counting(), ShellApp()
    async with app.run_test(size=(80, 24)) as pilot:
        app.jobs.open(page)
        await shown(pilot, "Shall it?", "enter begin  esc leave")
        await press(pilot, "enter", until=lambda: re.search("at [1-9]", screen_text(app)))
        await shown(pilot, "x cancel  esc keep running")
        await pilot.press("enter")
        page.may_end.set()
        await shown(pilot, "enter take it  j k scroll  esc close")
        # The scrollbar has a column of its own.
        assert "line 0 of 53 columns" in screen_text(app)
        await press(pilot, "enter", until=lambda: page.taken == 7)
        assert not app.state.jobs


@cases("key", ["escape", "q"])
async def test_leaving_leaves_it_on_and_a_result_is_listed_until_it_is_seen(key: str) -> None:
    page = Counting()
    async with at_work(page) as (pilot, app):
        await press(pilot, key, until=lambda: not isinstance(app.screen, JobScreen))
        count = page.job.share
        await wait_for(pilot, lambda: page.job.share > count)
        # The end of a job of three seconds is told.
        page.job._began -= 10
        page.may_end.set()
        await wait_for(pilot, lambda: [note.message for note in app._notifications])
        assert [note.message for note in app._notifications] == ["✓ The count is done. It found 7. Press J."]
        assert list(app.state.jobs) == [page.job]
        app.jobs.show()
        await shown(pilot, "found 7")
        await press(pilot, key, until=lambda: not app.state.jobs)
        assert page.taken == 0


async def test_its_help_has_its_present_keys_and_does_not_outlive_it() -> None:
    page = Counting()
    async with at_work(page) as (pilot, app):
        view = app.screen
        assert isinstance(view, JobScreen)
        app.push_screen(HelpScreen("Counting", "job", app.keys, "", lambda: view.help_keys))
        await shown(pilot, "Help · Counting", "x cancel")
        page.may_end.set()
        await wait_for(pilot, lambda: "x cancel" not in screen_text(app))
        assert re.search(r"Help · Counting(.|\n)*│  enter take it +│", screen_text(app))
        view.dismiss()
        assert app.screen_stack == [app.screen_stack[0]]


def test_enter_stays_where_a_job_would_be_lost() -> None:
    for ask in (quit_dialog, partial(unsaved_dialog, "mine.toml")):
        assert ask(None, ["The count is running."]).choices[0].label == "stay"
        assert ask(None).choices[0].value in (LEAVE, SAVE)


@cases(("problems", "said"), [(0, "No problems."), (1, "1 kind of problem."), (2, "2 kinds of problems.")])
def test_the_analysis_says_how_many_problems_there_are(problems: int, said: str) -> None:
    page = AnalysisPage(Mock(view=None))
    page.job.result = Mock(problems=["x"] * problems)
    assert page.outcome() == said


async def test_several_are_listed() -> None:
    pages = [Counting(), Counting()]
    async with at_work(pages[0]) as (pilot, app):
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))
        app.jobs.begin(pages[1])
        app.jobs.show()
        await shown(pilot, "1  The count", "2  The count", "left")
        await press(pilot, "2", until=lambda: isinstance(app.screen, JobScreen))
        await press(pilot, "x", until=lambda: pages[1].job.stage == "canceled" and len(app.state.jobs) == 1)
        assert pages[0].job.stage == "on"
        pages[0].job._began = pages[0].job._clock()
        assert "J count" not in fit(header_segments(app.state, 1e9), 80).plain
        pages[0].job._began -= 10
        assert re.search(r"J count \d+%, \d+[sm] left", fit(header_segments(app.state, 1e9), 80).plain)
        assert app.jobs.losses()[0].startswith("The count is running (")


async def test_a_failure_is_reported() -> None:
    async with at_work(Counting(UserError("No.", "Try another.")), may_end=True) as (pilot, app):
        await shown(pilot, "✗ No.", "Try another.", "y copy  j k scroll  esc close")
        await press(pilot, "y", until="✓ copied: the error")
        assert app.clipboard == "No. Try another."


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


# The 4-bit measurement, opened from the Config pane.


@asynccontextmanager
async def asking(
    *keys: str, config: Path | None = None, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Pilot[Any], LocaltuneApp]]:
    """The app with the question whether to begin."""
    async with running(LocaltuneApp(config), size, until=has_form) as (app, pilot):
        await press(pilot, *keys, until=lambda: isinstance(app.screen, JobScreen) and "enter begin" in screen_text(app))
        yield pilot, app


class Measurement:
    """A measurement that waits for permission to end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tui.screens.bits.measure", self)
        self.result = COST
        self.may_end = threading.Event()
        self.configs: list[Config] = []

    def __call__(self, config: Config, progress: Progress) -> QuantizationCost:
        self.configs.append(config)
        while not self.may_end.wait(0.02):
            progress("layer by layer", 7, 30)
        return self.result


@pytest.fixture
def measurement(monkeypatch: pytest.MonkeyPatch) -> Measurement:
    return Measurement(monkeypatch)


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    return write_config(tmp_path)


async def test_the_layers_are_measured_shown_and_kept(measurement: Measurement, config_file: Path) -> None:
    async with asking("2", "K", config=config_file) as (pilot, app):
        assert measurement.configs == []
        await press(pilot, "enter", until=("layer by layer", "23%", "esc keep running"))
        measurement.may_end.set()
        await wait_for(pilot, lambda: "enter keep them in 16 bit" in screen_text(app))
        assert " ".join(sentence(COST).split()[:6]) in screen_text(app)
        assert "0.1000" in screen_text(app)
        assert all(len(line) <= 80 for line in screen_lines(app))
        assert measurement.configs[0].data.train == str(config_file.parent / "rows.jsonl")
        await press(pilot, "enter", until=lambda: not isinstance(app.screen, JobScreen))
        pane = pane_of(app, "config")
        await wait_for(pilot, lambda: pane.document.get("model.keep_16bit") is not None)
        assert pane.document.get("model.keep_16bit") == ["model.layers.0.*", "model.layers.2.*"]
        await wait_for(pilot, lambda: "model.keep_16bit has 2 entries" in screen_text(app))
        await pilot.press("u")
        assert pane.document.get("model.keep_16bit") is None


async def test_what_is_fine_offers_nothing_to_keep(measurement: Measurement, config_file: Path) -> None:
    measurement.result = replace(COST, whole=Figures(1.5, 0.02, 0.99), kept=None)
    measurement.may_end.set()
    async with asking("2", "K", config=config_file) as (pilot, app):
        await press(pilot, "enter", until="0.02 nats on your rows: fine.")
        assert "keep them" not in screen_text(app)
        await press(pilot, "enter", until=lambda: not isinstance(app.screen, JobScreen))
        assert pane_of(app, "config").document.get("model.keep_16bit") is None


# The self-test.


@pytest.fixture
def selftests(monkeypatch: pytest.MonkeyPatch) -> list[SelfTestJob]:
    """Jobs that are started, which do as the variable says."""
    started: list[SelfTestJob] = []

    def start() -> SelfTestJob:
        # Any model but the starter, which would have to be there.
        started.append(selftest_job(shape=lambda sizes: replace(sizes, model="another")))
        return started[-1]

    monkeypatch.setattr(job, "PROGRAM", "tests.core.selftest.scripted_check")
    monkeypatch.setattr("tui.screens.selftest.selftest_job", start)
    monkeypatch.setenv("SCRIPTED_PLAN", "{}")
    return started


async def test_the_key_opens_it_and_the_table_is_there_at_the_end(
    selftests: list[SelfTestJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRIPTED_PLAN", json.dumps({"training": "code", "speed": "not applicable"}))
    async with asking("f8") as (pilot, app):
        assert all(subject.title in screen_text(app) for subject in SUBJECTS)
        await press(pilot, "enter", until="esc close")
        await press(pilot, "pageup", "k", until=("Card 9000", "FAIL  training"))
        await press(pilot, "pagedown", "pagedown", until="1 of 7 checks failed")
        assert all(len(line) <= 80 for line in screen_lines(app))
        assert (paths.selftest_dir() / "report.txt").is_file()
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))


async def test_the_help_names_its_keys_and_gives_the_view_back(selftests: list[SelfTestJob]) -> None:
    async with asking("f8") as (pilot, app):
        await press(
            pilot, "question_mark", until=("Help · Self-test", "Trains small models", "enter begin", "esc leave")
        )
        await press(pilot, "question_mark", until="Good to know")
        await press(pilot, "escape", until=lambda: isinstance(app.screen, JobScreen))
        assert "enter begin" in screen_text(app)


async def test_canceling_it_ends_its_processes(selftests: list[SelfTestJob], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRIPTED_PLAN", json.dumps({"fast_paths": "hang"}))
    async with asking("f8") as (pilot, app):
        await press(pilot, "enter", until=("working 1 of 2", "pass  driver", "x cancel"))
        pid = selftests[0].pid
        assert pid is not None
        await pilot.press("enter")
        assert isinstance(app.screen, JobScreen)
        await press(pilot, "x", until=lambda: not isinstance(app.screen, JobScreen))
        await wait_for(pilot, lambda: has_ended(pid))
        await wait_for(pilot, lambda: os.listdir(paths.selftest_dir()) == [".lock"])


@pytest.mark.long
async def test_the_table_is_shown_where_the_report_cannot_be_written(selftests: list[SelfTestJob]) -> None:
    (paths.make_private_dir(paths.selftest_dir()) / "report.txt").mkdir()
    async with asking("f8", size=(120, 50)) as (pilot, _):
        await press(pilot, "enter", until=("The report was not written.", "pass  speed", "Passed: all 8 of 8 checks"))


async def test_a_screenshot_is_taken_of_a_screen_over_the_panes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with asking("f8") as (pilot, _):
        await press(pilot, "f4", until=lambda: list(tmp_path.glob("localtune*.svg")))
    (picture,) = tmp_path.glob("localtune*.svg")
    assert "Self-test" in picture.read_text(encoding="utf-8")
