"""The Runs pane: the account of a run, the filter and the deletion."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.queue import store
from core.runs.catalog.removal import list_trash
from core.runs.record import history as glimpse
from core.runs.record.store import Labels, read_labels, write_labels
from tests.core.queue.helpers import add
from tests.tui.harness import (
    asks,
    has_run,
    pane_of,
    press,
    resize,
    running,
    screen_lines,
    screen_text,
    shown,
    view_of,
    wait_for,
)
from tests.tui.scripted_run import CONFIG, ScriptedRun
from tui.app import LocaltuneApp
from tui.panes.train import TrainPane
from tui.state import RunView
from tui.widgets.lists.run_list import RunList

pytestmark = pytest.mark.slow


def two_runs(home: Path) -> tuple[ScriptedRun, ScriptedRun]:
    """An ended run, and a later one with another rank that has failed."""
    first = ScriptedRun(home, "20261123-090000-first", start=1_700_000_000.0).train_to(60)
    first.end("finished", "all steps done")
    second = ScriptedRun(home, "20261124-090000-second", start=1_700_100_000.0)
    second.run.config_path.write_text(CONFIG.replace("rank = 16", "rank = 32"), encoding="utf-8")
    second.train_to(10).end("failed", "the loss is NaN", "Lower train.learning_rate.")
    return first, second


@asynccontextmanager
async def listed(
    text: str = "5 Runs · 2", *, size: tuple[int, int] = (80, 24), notifications: bool = False
) -> AsyncIterator[tuple[LocaltuneApp, Pilot[Any]]]:
    """The app with a run, and its Runs pane, once a text is on the screen."""
    async with running(size=size, notifications=notifications, until=has_run) as (app, pilot):
        await wait_for(pilot, lambda: pane_of(app, "runs") is not None)
        await press(pilot, "5", until=text)
        yield app, pilot


async def test_the_run_under_the_cursor_is_described(home: Path) -> None:
    two_runs(home)
    async with listed("≠ 20261123-090000-first", size=(200, 50)) as (app, pilot):
        assert "the loss is NaN. Lower train.learning_rate." in " ".join(screen_text(app).replace("│", " ").split())
        assert "16 → 32" in screen_text(app)
        await wait_for(pilot, lambda: "of work" in screen_text(app))
        await press(pilot, "j", until=lambda: "loss 2" in screen_text(app) and "≠" not in screen_text(app))
        # The share of exact answers, and where there is room the size of the files.
        await wait_for(pilot, lambda: "0.83" in screen_text(app) and " kB" in screen_text(app))
        await pilot.resize_terminal(80, 24)
        await shown(pilot, "loss 2", "5 Runs · 2 · 10 more columns: d details")
        await press(pilot, "k", until=("≠ 20261123-090000-first", "16 → 32"))


async def test_the_filter_shows_what_is_typed_and_esc_leaves_a_kept_one(home: Path) -> None:
    first, _ = two_runs(home)
    async with listed() as (app, pilot):
        await pilot.press("slash", *"second")
        await wait_for(pilot, lambda: any(line.strip("│ ") == "second" for line in screen_lines(app)))
        await press(pilot, "enter", until="5 Runs · 1 of 2")
        await press(pilot, "escape", until="5 Runs · 2")
        assert not any(line.strip("│ ") == "second" for line in screen_lines(app))
        await pilot.press("slash", *"first", "enter", "enter")
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.run == first.run)
        assert app.main.current == "train"


async def test_what_comes_next_in_the_queue_stands_above_the_list(home: Path) -> None:
    two_runs(home)
    async with listed() as (app, pilot):
        assert "Queue" not in screen_text(app)
        add("tickets", "orders")
        await shown(pilot, "Q queue   next tickets · 2 wait", "the runner is stopped")
        store.change(lambda queue: queue.with_entry(queue.entry(1).moved("held")))
        await wait_for(pilot, lambda: "Q queue   next orders · 1 waits · 1 held" in screen_text(app))
        store.change(lambda queue: replace(queue, entries=()))
        await wait_for(pilot, lambda: "Queue" not in screen_text(app))


async def test_a_run_is_deleted_after_a_yes_only(home: Path) -> None:
    first, second = two_runs(home)
    async with listed("of work", size=(120, 34)) as (app, pilot):
        assert view_of(app).run == second.run
        await press(pilot, "D", until=lambda: asks(app, "move it to the trash"))
        await shown(pilot, "20261124-090000-second has failed at step 10 of 120.", " kB: the record and the adapter.")
        # The first answer, which enter gives, keeps it.
        await press(pilot, "enter", until=lambda: not asks(app, "move it to the trash"))
        assert second.run.path.exists()
        await press(pilot, "D", until=lambda: asks(app, "move it to the trash"))
        await press(pilot, "y", until=lambda: not second.run.path.exists())
        await wait_for(pilot, lambda: "5 Runs · 1" in screen_text(app))
        assert [item.id for item in list_trash()] == [second.run.id]
        # It comes back whole, and can be deleted for good.
        await press(pilot, "u", until=lambda: second.run.path.exists() and "5 Runs · 2" in screen_text(app))
        await press(pilot, "g", "D", until=lambda: asks(app, "delete it for good"))
        await press(pilot, "d", until=lambda: not second.run.path.exists() and "5 Runs · 1" in screen_text(app))
        assert list_trash() == []
        # The app shows the remaining run.
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.run == first.run)
        await wait_for(pilot, lambda: pane_of(app, "chat").target == first.run)
        # Of a run that is gone nothing can be asked.
        await press(pilot, "D", until=lambda: asks(app, "move it to the trash"))
        await press(pilot, "y", until=lambda: app.state.view is None)
        assert pane_of(app, "chat").target is None


async def test_a_live_run_is_not_deleted(home: Path) -> None:
    ScriptedRun(home).train_to(10)
    async with listed("▸ ● training", notifications=True) as (app, pilot):
        await press(pilot, "D", until="Not deleted")
        assert not asks(app, "move it to the trash")


async def test_names_tags_notes_and_the_archive(home: Path) -> None:
    first, second = two_runs(home)
    async with listed(size=(120, 34)) as (app, pilot):
        await press(pilot, "R", *"more data", "enter", until=lambda: read_labels(second.run.path).name == "more data")
        await wait_for(pilot, lambda: any("▸" in line and "more data" in line for line in screen_lines(app)))
        await press(
            pilot, "number_sign", *"keep v1", "enter", until=lambda: read_labels(second.run.path).tags == ("keep", "v1")
        )
        await press(pilot, "quotation_mark", until="what to remember of it")
        # As 'localtune-tui label' does while the question is open: a label keeps what another one has written.
        write_labels(second.run.path, Labels("more data", ("keep", "v2")))
        await press(pilot, *"too hot", "enter", until=lambda: read_labels(second.run.path).note == "too hot")
        await wait_for(pilot, lambda: "#keep #v2" in screen_text(app))
        # The filter knows them; the other run has none.
        await press(pilot, "slash", *"#keep", "enter", until="5 Runs · 1 of 2")
        await press(pilot, "escape", "Z", until="5 Runs · 1 · 1 archived")
        assert read_labels(second.run.path) == Labels("more data", ("keep", "v2"), "too hot", archived=True)
        assert "more data" not in "".join(line for line in screen_lines(app) if "▸" in line)
        await press(pilot, "A", until=("5 Runs · 2 · 1 archived too", "more data"))
        await press(pilot, "g", "Z", until=lambda: not read_labels(second.run.path).archived)
        assert read_labels(first.run.path) == Labels()


async def test_the_list_is_sorted_by_figures_of_runs_out_of_sight(home: Path) -> None:
    for number in range(30):
        run = ScriptedRun(home, f"20261123-09{number:02d}00-run{number}", start=1_700_000_000.0 + number * 60)
        # The oldest one has the most steps, and so the least loss.
        run.train_to(60 if number == 0 else 32).end("finished", "all steps done")
    async with listed("5 Runs · 30") as (app, pilot):
        await press(pilot, "s", until=lambda: "by best" in screen_text(app) and "best↑" in screen_text(app))
        await wait_for(pilot, lambda: "run0 " in screen_lines(app)[3] and "▸" in screen_lines(app)[3])
        await press(pilot, "minus", until=lambda: "best↓" in screen_text(app) and "run0 " not in screen_text(app))
        await pilot.click(RunList, offset=(screen_lines(app)[2].index("best"), 0))
        await wait_for(pilot, lambda: "best↑" in screen_text(app))
        widths = {len(line) for line in screen_lines(app)}
        assert widths == {80}


async def test_marked_runs_are_compared(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    two_runs(home)
    async with listed(notifications=True) as (app, pilot):
        await press(pilot, "space", "space", until="2 marked")
        await press(pilot, "c", until=("2 runs compared", "best eval loss"))
        await shown(pilot, "─ m curve  v axis  tab answers  j scroll  z zoom  esc close  ? more ─")
        # In the order in which they were marked, each with its letter on its curve and in the tables.
        await shown(pilot, "A 090000-second", "B 090000-first", "training loss over steps")
        await press(pilot, "v", until=("training loss over tokens", " tokens"))
        await press(pilot, "v", "m", until="eval loss over time spent in steps")
        await press(pilot, "M", "v", "G", until="method.rank")
        await press(pilot, "tab", until=lambda: "figures" in screen_lines(app)[-2])
        await press(pilot, "ctrl+s", "S", until=lambda: len(list(tmp_path.glob("compare*"))) == 3)
        report = next(tmp_path.glob("compare-*.md")).read_text(encoding="utf-8")
        assert "20261124-090000-second" in report
        await resize(pilot, 20, 5)
        await pilot.resize_terminal(80, 24)
        await press(pilot, "z", until=lambda: "best eval loss" not in screen_text(app) and "A 09" in screen_text(app))
        # The notices name how many were marked.
        app.clear_notifications()
        await press(pilot, "escape", "escape", until=lambda: "marked" not in screen_text(app))


@pytest.mark.long
async def test_everything_about_a_run_is_turned_through(home: Path) -> None:
    first, _ = two_runs(home)
    checkpoint = first.run.checkpoints_path / "step-00000060"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "manifest.json").write_text("{}")
    first.run.log_path.write_text("loading \x1b[31mweights\n")
    async with listed() as (app, pilot):
        await press(pilot, "j", "d", until=("[Curve]", "finished, step 60", "◆"))
        for part, said in (
            *(("Configuration", "what differs from the defaults"), ("Evaluations", "best")),
            *(("Checkpoints", "newest"), ("Samples", "It has no sample answers.")),
            *(("Events", "finished at step 60"), ("Log", "weights")),
        ):
            await pilot.press("tab")
            for text in (f"[{part}]", said):
                await shown(pilot, text)
        assert "\x1b" not in screen_text(app)
        await press(pilot, "left", "left", until="[Samples]")
        await resize(pilot, 20, 5)
        await pilot.resize_terminal(80, 24)
        await pilot.press("escape")
        await wait_for(pilot, lambda: "5 Runs · 2" in screen_text(app) and "[Samples]" not in screen_text(app))


@pytest.mark.long
async def test_a_long_run_is_shown_before_all_of_it_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glimpse, "LONG_BYTES", 4096)
    first, _ = two_runs(home)
    seen: list[bool] = []
    show = TrainPane.show

    def noted(pane: TrainPane, view: RunView | None) -> None:
        if view is not None:
            seen.append(view.is_partial)
        show(pane, view)

    monkeypatch.setattr(TrainPane, "show", noted)
    async with listed(size=(120, 34)) as (app, pilot):
        await pilot.press("j", "enter")

        def is_whole() -> bool:
            view = app.state.view
            return view is not None and view.run == first.run and not view.is_partial

        await wait_for(pilot, is_whole)
        assert True in seen
        assert len(view_of(app).history.loss) == 60
        # The whole record has brought the end of the run, and its model to the chat.
        await wait_for(pilot, lambda: "reading the rest" not in screen_text(app) and "finished" in screen_text(app))
        await wait_for(pilot, lambda: pane_of(app, "chat").target == first.run)
        # The account beside the list is made of the glimpse.
        await press(pilot, "5", until="eval loss 0.480")
