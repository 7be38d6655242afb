"""Snapshots of the config pane: presets, differences, warnings, the long help, a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.config.document import ConfigDocument
from core.hardware.card import Card
from core.runs.record.state import RunState
from core.runs.record.store import Run, create_run
from tests.short_list import long_but
from tests.snapshots.conftest import MOMENT, Compare, until
from tests.tui.harness import pane_of, press, screen_text, wait_for
from tui.app import LocaltuneApp
from tui.widgets.charts.plan_bar import PlanView

SIZES = {"80x24": (80, 24), "200x50": (200, 50)}
GB = 1_000_000_000


def plan(_: ConfigDocument, _measures: bool) -> PlanView:
    """A memory plan that barely fits."""
    parts = (("weights", 5_700_000_000), ("adapters", 600_000_000), ("activations", 12 * GB), ("loss", GB))
    return PlanView(parts, 19_300_000_000, 22_900_000_000, True, ("train.micro_batch_size = 2 halves the activations",))


@pytest.fixture
def config(tmp_path: Path, private_home: Path, app: LocaltuneApp, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with a preset in force, changes, a warning, and a run before it."""
    monkeypatch.setattr("core.hardware.card.find_card", lambda **_: Card("RTX 4090", 24 << 30, (8, 9)))
    rows = '{"prompt": "ask", "completion": "a reply"}\n'
    (tmp_path / "rows.jsonl").write_text(rows * 400)
    path = tmp_path / "tickets.toml"
    text = "# preset: 24gb-7b\n[data]\ntrain = 'rows.jsonl'\n[method]\nrank = 16\nalpha = 64.0\n[train]\n"
    text += "epochs = 1.0\nbatch_size = 16\nmax_length = 4096\nlearning_rate = 2e-2 # high\n"
    path.write_text(text)
    used = ConfigDocument(text.replace("2e-2", "1e-4").replace("epochs = 1.0", "epochs = 2.0"), path).validate()
    run = Run(create_run(used, "tickets").path.rename(private_home / "runs" / "20261120-090000-tickets"))
    RunState(state="finished", host="ws1", updated=MOMENT - 86400.0).write(run.state_path)
    app._config_path = path
    return path


async def ready(pilot: Pilot[Any], app: LocaltuneApp) -> None:
    """The pane alone on the screen, with all of its facts."""
    await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config").form.fields)
    pane = pane_of(app, "config")
    await pilot.press("2")
    await wait_for(
        pilot,
        lambda: (
            pane.known.last_run is not None and pane.known.card is not None and "about 25 steps" in screen_text(app)
        ),
    )


@pytest.mark.parametrize("size", SIZES)
def test_config(snap_compare: Compare, app: LocaltuneApp, config: Path, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "config").form.fields)
        pane_of(app, "config").planner = plan
        await ready(pilot, app)
        pane_of(app, "config").refresh_plan()
        await pilot.press("h")
        pane_of(app, "config").go_to_option("train.learning_rate")
        await wait_for(pilot, lambda: "✓ fits" in screen_text(app))
        await until("The highest learning rate")(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_presets(snap_compare: Compare, app: LocaltuneApp, config: Path, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await ready(pilot, app)
        await press(pilot, "P", until="● 24gb-7b")
        await pilot.press("k", "k")
        await until("24gb-small-long-context")(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_compare(snap_compare: Compare, app: LocaltuneApp, config: Path, size: str) -> None:
    async def run(pilot: Pilot[Any]) -> None:
        await ready(pilot, app)
        pane_of(app, "config").document.set("train.learning_rate", 1e-4)
        await pilot.press("v", "f")
        await until("- learning_rate = 2e-2 # high")(pilot)

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)
