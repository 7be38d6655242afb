"""The Runs pane: the account of a run, the filter and the deletion."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.harness import asks, pane_of, screen_lines, screen_text, wait_for
from tests.tui.scripted_run import CONFIG, ScriptedRun
from tui.app import LocaltuneApp

pytestmark = pytest.mark.slow


def two_runs(home: Path) -> tuple[ScriptedRun, ScriptedRun]:
    """An ended run, and a later one with another rank that has failed."""
    first = ScriptedRun(home, "20261123-090000-first", start=1_700_000_000.0)
    first.train_to(60)
    first.end("finished", "all steps done")
    second = ScriptedRun(home, "20261124-090000-second", start=1_700_100_000.0)
    second.run.config_path.write_text(CONFIG.replace("rank = 16", "rank = 32"), encoding="utf-8")
    second.train_to(10)
    second.end("failed", "the loss is NaN", "Lower train.learning_rate.")
    return first, second


@pytest.mark.parametrize("size", [(80, 24), (120, 34), (200, 50)])
async def test_the_run_under_the_cursor_is_told_of(home: Path, size: tuple[int, int]) -> None:
    two_runs(home)
    app = LocaltuneApp()
    async with app.run_test(size=size) as pilot:
        await wait_for(pilot, lambda: pane_of(app, "runs") is not None)
        await pilot.press("5")
        await wait_for(pilot, lambda: "≠ 20261123-090000-first" in screen_text(app))
        assert "the loss is NaN. Lower train.learning_rate." in " ".join(screen_text(app).replace("│", " ").split())
        assert "16 → 32" in screen_text(app)
        await wait_for(pilot, lambda: "of work" in screen_text(app))
        await pilot.press("j")
        await wait_for(pilot, lambda: "loss 2" in screen_text(app) and "≠" not in screen_text(app))
        if size[0] >= 120:
            # The last evaluation, and the size of the files.
            await wait_for(pilot, lambda: "0.83" in screen_text(app) and " kB" in screen_text(app))


async def test_the_filter_shows_what_is_typed_and_esc_leaves_a_kept_one(home: Path) -> None:
    two_runs(home)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24)) as pilot:
        await wait_for(pilot, lambda: pane_of(app, "runs") is not None)
        await pilot.press("5")
        await wait_for(pilot, lambda: "5 Runs · 2" in screen_text(app))
        await pilot.press("slash", *"second")
        await wait_for(pilot, lambda: any(line.strip("│ ") == "second" for line in screen_lines(app)))
        await pilot.press("enter")
        await wait_for(pilot, lambda: "5 Runs · 1 of 2" in screen_text(app))
        await pilot.press("escape")
        await wait_for(pilot, lambda: "5 Runs · 2" in screen_text(app))
        assert not any(line.strip("│ ") == "second" for line in screen_lines(app))


async def test_a_run_is_deleted_after_a_yes_only(home: Path) -> None:
    first, second = two_runs(home)
    app = LocaltuneApp()
    async with app.run_test(size=(120, 34)) as pilot:
        await wait_for(pilot, lambda: app.state.view is not None and pane_of(app, "runs") is not None)
        assert app.state.view is not None
        assert app.state.view.run == second.run
        await pilot.press("5")
        await wait_for(pilot, lambda: " kB" in screen_text(app))
        await pilot.press("D")
        await wait_for(pilot, lambda: asks(app, "delete it"))
        assert "20261124-090000-second has failed at step 10 of 120." in screen_text(app)
        assert " kB will be gone for good: the record and the adapter." in screen_text(app)
        # The first answer, which enter gives, keeps it.
        await pilot.press("enter")
        await wait_for(pilot, lambda: not asks(app, "delete it"))
        assert second.run.path.exists()
        await pilot.press("D")
        await wait_for(pilot, lambda: asks(app, "delete it"))
        await pilot.press("y")
        await wait_for(pilot, lambda: not second.run.path.exists())
        await wait_for(pilot, lambda: "5 Runs · 1" in screen_text(app))
        # The app shows the one that is left.
        await wait_for(pilot, lambda: app.state.view is not None and app.state.view.run == first.run)
        await wait_for(pilot, lambda: pane_of(app, "chat").target == first.run)
        # Of a run that is gone nothing can be asked.
        await pilot.press("D")
        await wait_for(pilot, lambda: asks(app, "delete it"))
        await pilot.press("y")
        await wait_for(pilot, lambda: app.state.view is None)
        assert pane_of(app, "chat").target is None


async def test_a_live_run_is_not_deleted(home: Path) -> None:
    live = ScriptedRun(home)
    live.train_to(10)
    app = LocaltuneApp()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await wait_for(pilot, lambda: pane_of(app, "runs") is not None)
        await pilot.press("5")
        await wait_for(pilot, lambda: "▸ ● training" in screen_text(app))
        await pilot.press("D")
        await wait_for(pilot, lambda: "Not deleted" in screen_text(app))
        assert not asks(app, "delete it")


async def test_the_app_opens_with_data(home: Path, tmp_path: Path) -> None:
    rows = tmp_path / "faq.csv"
    rows.write_text("question,answer\nWhy is it so?,Because.\n", encoding="utf-8")
    app = LocaltuneApp(data=rows)
    async with app.run_test(size=(130, 34)) as pilot:
        await wait_for(pilot, lambda: "Why is it so?" in screen_text(app))
        assert app.main.current == "data"
        assert app.state.document is not None
        assert app.state.document.path is None
        config = tmp_path / "my.toml"
        config.touch()
        await pilot.press("o", "ctrl+u", *str(config), "enter")
        await wait_for(pilot, lambda: "my.toml is a configuration, not data." in screen_text(app))
