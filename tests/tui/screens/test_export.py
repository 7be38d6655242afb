from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from textual.pilot import Pilot

from core import paths
from core.config.schema import Config
from core.export import job
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.core.export.test_result import make_result, write_result
from tests.tui.harness import FORBIDDEN, asks, press, running, screen_lines, screen_text, shown, wait_for, words
from tests.waiting import has_ended
from tui.app import LocaltuneApp
from tui.screens.export import ExportScreen
from tui.screens.job import JobScreen
from tui.widgets.lists.run_list import RunList


def make_run(method: Literal["lora", "full"] = "lora") -> Run:
    """A finished run with a result, of nothing that could be loaded."""
    sections = {"model": {"base": "/models/base"}, "data": {"train": "/rows.jsonl"}, "method": {"name": method}}
    run = create_run(Config.model_validate(sections), "tickets")
    RunState(state="finished", step=30, total_steps=30, updated=time.time()).write(run.state_path)
    directory = run.adapter_path if method == "lora" else run.model_path
    directory.mkdir()
    for name in ("adapter_config.json", "config.json"):
        (directory / name).write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(b"\0" * 5_000_000)
    return run


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Exports that do as the variable says."""
    monkeypatch.setattr(job, "PROGRAM", "tests.core.export.scripted_export")
    monkeypatch.setenv("SCRIPTED_EXPORT", "result")
    return monkeypatch


@asynccontextmanager
async def exporting(run: Run, *, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Pilot[Any], LocaltuneApp]]:
    """The screen of a run's export, which is planned."""
    async with running(size=size) as (app, pilot):
        await pilot.pause()
        app.runs.export(run)
        await wait_for(pilot, lambda: "kind" in words(pilot) and "looking at what" not in words(pilot))
        yield pilot, app


async def test_the_key_opens_it_and_the_result_is_there_at_the_end(scripted: pytest.MonkeyPatch) -> None:
    run = make_run()
    async with running() as (app, pilot):
        await press(pilot, "5", until=lambda: isinstance(app.focused, RunList) and app.focused.selected is not None)
        await press(pilot, "X", until=lambda: isinstance(app.screen, ExportScreen))
        await wait_for(pilot, lambda: "it is compared with the trained model" in words(pilot))
        await shown(pilot, "a file for llama.cpp", "Q8_0")
        await press(pilot, "down", "right", "right", "right", until="Q4_K_M")
        assert f"{run.id}-gguf-q4_k_m" in "".join(line.strip(" │") for line in screen_lines(app))
        await wait_for(pilot, lambda: "compared with the trained model" in words(pilot))
        await press(pilot, "enter", until="llama-server -m")
        text = screen_text(app)
        for said in (
            "✓ Answers like the trained model: mostly, 19 of 20",
            "tickets-Q4_K_M.gguf  105 MB",
            "llama-server -m",
        ):
            assert said in text
        assert "0.0123 nats" not in text
        await press(pilot, "d", "G", until=("0.0123 nats", "One thing to know."))
        copied: list[str] = []
        scripted.setattr(app, "copy_to_clipboard", copied.append)
        await press(pilot, "l", until="copied: the line for llama-server")
        assert copied[0].startswith("llama-server -m ")
        assert not FORBIDDEN & set(screen_text(app))
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, JobScreen))
        assert not app.state.jobs


async def test_the_file_is_unproven_until_its_proof(scripted: pytest.MonkeyPatch) -> None:
    scripted.setenv("SCRIPTED_EXPORT", "written")
    async with exporting(make_run()) as (pilot, app):
        await press(pilot, "enter", until=("written: tickets.gguf 1.0 kB, unproven; checking, 5s left", "75%"))
        await press(pilot, "escape", "q", until=lambda: "Leaving cancels it; the files stay in" in words(pilot))
        # Neither a repeated request nor enter ends it.
        app.leaving.ask()
        await press(pilot, "enter", until=lambda: not app.desktop.is_covered)
        assert (app.is_running, app.state.jobs[0].stage) == (True, "on")
        await press(pilot, "q", until=lambda: asks(app, "leave and cancel the job"))
        await press(pilot, "l", until=lambda: not app.is_running)


async def test_leaving_says_that_the_unfinished_file_is_lost(scripted: pytest.MonkeyPatch) -> None:
    scripted.setenv("SCRIPTED_EXPORT", "hang")
    async with exporting(make_run()) as (pilot, _):
        await press(pilot, "enter", until=("25%", "x cancel  esc keep running"))
        lost = "Leaving cancels it and deletes the unfinished file."
        await press(pilot, "escape", "q", until=lambda: lost in words(pilot))


async def test_kinds_change_what_there_is_to_choose(scripted: pytest.MonkeyPatch) -> None:
    run = make_run()
    async with exporting(run, size=(120, 40)) as (pilot, app):
        await wait_for(pilot, lambda: "a file for llama.cpp" in screen_text(app))
        await press(pilot, "left", "left", until=("PEFT's directory", "as they were trained", "about 5.0 MB"))
        await press(pilot, "down", "down", "space", *"/tmp/it", "enter", until="/tmp/it")
        assert "enter use it" not in screen_text(app)
        await press(pilot, "right", until="tab complete  enter use it  esc cancel")
        await pilot.press("escape")
        assert isinstance(app.screen, ExportScreen)
        await press(pilot, "escape", until=lambda: not isinstance(app.screen, ExportScreen))


async def test_what_cannot_be_exported_is_reported_and_not_begun(scripted: pytest.MonkeyPatch) -> None:
    run = make_run("full")
    write_result(make_result(paths.exports_dir() / f"{run.id}-merged"))
    async with exporting(run, size=(100, 30)) as (pilot, app):

        def told() -> str:
            return " ".join(line.strip(" │") for line in screen_lines(app))

        await wait_for(pilot, lambda: "is there already, and nothing is overwritten" in told())
        await pilot.press("enter")
        assert "enter export" not in screen_text(app)
        await press(pilot, "down", "down", until="enter change")
        await press(pilot, "enter", until="enter use it")
        await press(pilot, "escape", until="enter change")
        await press(pilot, "up", "up", "right", until="trained the weights themselves")


async def test_without_llama_cpp_it_is_reported_before_minutes_are_spent(scripted: pytest.MonkeyPatch) -> None:
    scripted.setattr("core.export.llama_cpp.has_library", lambda: False)
    async with exporting(make_run(), size=(100, 30)) as (pilot, app):
        await wait_for(pilot, lambda: "The file is not verified: llama.cpp's library" in screen_text(app))
        assert "compared with the trained model" not in words(pilot)
        assert "enter export" in screen_text(app)
        await press(pilot, "down", "right", "right", "right", until="Q4_K_M is written by llama.cpp's quantizer")
        assert "enter export" not in screen_text(app)


async def test_an_error_is_reported_with_its_remedy(scripted: pytest.MonkeyPatch) -> None:
    scripted.setenv("SCRIPTED_EXPORT", "error")
    async with exporting(make_run()) as (pilot, app):
        await press(pilot, "enter", until=("Its mean divergence is 0.3 nats.", "Choose a type with more bits."))
        assert app.screen.has_class("-alarm")


async def test_canceling_minutes_of_work_asks_once_more(scripted: pytest.MonkeyPatch) -> None:
    scripted.setenv("SCRIPTED_EXPORT", "hang")
    scripted.setattr("tui.screens.job._ASKS_SECONDS", 0.0)
    async with exporting(make_run()) as (pilot, app):
        await press(pilot, "enter", until=("25%", "merging the"))
        await press(pilot, "enter", "x", until="x again ends it")
        page = app.screen.page  # type: ignore[attr-defined]
        pid = page._export.pid
        await press(pilot, "x", until=lambda: not isinstance(app.screen, JobScreen))
        await wait_for(pilot, lambda: has_ended(pid))
        told = [note.message for note in app._notifications]
        assert any(note.endswith(" as Q8_0 was canceled: nothing of it is kept.") for note in told)
