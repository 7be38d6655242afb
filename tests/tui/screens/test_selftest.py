from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core import paths
from core.selftest import job
from core.selftest.job import SelfTestJob, selftest_job
from core.selftest.report import SUBJECTS
from tests.tui.harness import press, running, screen_lines, screen_text, shown, wait_for
from tests.waiting import has_ended
from tui.app import LocaltuneApp
from tui.screens.job import JobScreen


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A self-test that does as the variable says."""
    monkeypatch.setattr(job, "PROGRAM", "tests.core.selftest.scripted_check")
    monkeypatch.setenv("SCRIPTED_PLAN", "{}")
    return monkeypatch


def make() -> SelfTestJob:
    # Any model but the starter, which would have to be there.
    return selftest_job(shape=lambda sizes: replace(sizes, model="another"))


@asynccontextmanager
async def asking(size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Pilot[Any], LocaltuneApp]]:
    """The app with the question whether to begin."""
    async with running(size=size) as (app, pilot):
        await press(pilot, "f8", until=lambda: isinstance(app.screen, JobScreen) and "enter begin" in screen_text(app))
        yield pilot, app


async def test_the_key_opens_it_and_the_table_is_there_at_the_end(scripted: pytest.MonkeyPatch) -> None:
    scripted.setenv("SCRIPTED_PLAN", json.dumps({"training": "code", "speed": "not applicable"}))
    scripted.setattr("tui.screens.selftest.selftest_job", make)
    async with asking() as (pilot, app):
        assert all(subject.title in screen_text(app) for subject in SUBJECTS)
        await press(pilot, "enter", until="esc close")
        await pilot.press("pageup", "k")
        await shown(pilot, "Card 9000", "FAIL  training")
        await press(pilot, "pagedown", "pagedown", until="1 of 6 checks failed")
        assert all(len(line) <= 80 for line in screen_lines(app))
        assert (paths.selftest_dir() / "report.txt").is_file()
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))


async def test_escape_cancels_it_and_ends_its_processes(scripted: pytest.MonkeyPatch) -> None:
    scripted.setenv("SCRIPTED_PLAN", json.dumps({"fast_paths": "hang"}))
    made: list[SelfTestJob] = []

    def remembered() -> SelfTestJob:
        made.append(make())
        return made[0]

    scripted.setattr("tui.screens.selftest.selftest_job", remembered)
    async with asking() as (pilot, app):
        await press(pilot, "enter", until=("working 1 of 2", "pass  driver"))
        pid = made[0].pid
        assert pid is not None
        assert "esc cancel" in screen_text(app)
        await pilot.press("enter")
        assert isinstance(app.screen, JobScreen)
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))
        await wait_for(pilot, lambda: has_ended(pid))
        await wait_for(pilot, lambda: os.listdir(paths.selftest_dir()) == [".lock"])


@pytest.mark.long
async def test_the_table_is_shown_where_the_report_cannot_be_written(scripted: pytest.MonkeyPatch) -> None:
    (paths.make_private_dir(paths.selftest_dir()) / "report.txt").mkdir()
    scripted.setattr("tui.screens.selftest.selftest_job", make)
    async with asking((120, 50)) as (pilot, _):
        await press(pilot, "enter", until=("The report was not written.", "pass  speed", "Passed: all 7 of 7 checks"))


async def test_a_screenshot_is_taken_of_a_screen_over_the_panes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with asking() as (pilot, _):
        await press(pilot, "f4", until=lambda: list(tmp_path.glob("localtune*.svg")))
    (picture,) = tmp_path.glob("localtune*.svg")
    assert "Self-test" in picture.read_text(encoding="utf-8")
