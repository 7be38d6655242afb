"""Snapshots of the app at fixed sizes, with everything that moves held still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from core.runs.record.store import Labels, write_labels
from tests.short_list import long_but
from tests.snapshots.conftest import MOMENT, Compare, settle, until
from tests.tui.harness import pane_of, press, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.screens.start.summary import StartPlan

SIZES = {"80x24": (80, 24), "200x50": (200, 50)}
#: Keys that leave only the Train pane on the screen.
ZOOM = {"80x24": (), "200x50": ("3",)}


@pytest.fixture
def run(private_home: Path) -> ScriptedRun:
    """The run of the snapshots: 64 of 120 steps, on a clock of its own."""
    return ScriptedRun(private_home, start=MOMENT).train_to(64)


@pytest.mark.parametrize("theme", ["localtune-dark", "localtune-light"])
@pytest.mark.parametrize("size", SIZES)
def test_train(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun, size: str, theme: str) -> None:
    app.theme = theme
    assert snap_compare(app, terminal_size=SIZES[size], run_before=until("64/120", *ZOOM[size]))


@pytest.mark.parametrize("size", long_but(["160x45"], ["120x30", "160x45", "200x50"]))
def test_live_panes(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun, size: str) -> None:
    width, height = map(int, size.split("x"))
    assert snap_compare(app, terminal_size=(width, height), run_before=until("64/120", "0" if width < 160 else "4"))


@pytest.mark.parametrize("size", SIZES)
def test_empty(snap_compare: Compare, app: LocaltuneApp, size: str) -> None:
    assert snap_compare(app, terminal_size=SIZES[size], run_before=until("No run yet.", *ZOOM[size]))


def test_no_runs(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, run_before=until("No runs yet.", "5"))


def test_runs(snap_compare: Compare, app: LocaltuneApp, private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The real sizes have the number of the process in them.
    monkeypatch.setattr("core.runs.catalog.rows.directory_size", lambda _: 78_000_000)
    for number, state in enumerate(("finished", "stopped", "failed")):
        script = ScriptedRun(private_home, f"2026112{number}-090000-tickets-{state}", start=MOMENT)
        script.train_to(40 * (number + 1))
        script.end(state, "as asked")
        script.write_state(updated=MOMENT - 86400.0 * (3 - number))
    assert snap_compare(app, terminal_size=(120, 34), run_before=until("2m 33s of work", "5"))


def test_starting(snap_compare: Compare, app: LocaltuneApp, private_home: Path) -> None:
    script = ScriptedRun(private_home, start=MOMENT)
    script.write_state(state="starting")
    script.phase("importing", 0)
    script.phase("loading_model", 3.1)
    script.phase("rehearsing", 2.2, detail="8×212", done=1, total=3)
    app.clock = lambda: MOMENT + 7.5
    assert snap_compare(app, run_before=until("▸ rehearsing"))


def test_failed(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun) -> None:
    run.end("failed", "The device ran out of memory at step 65.", "Set train.max_length to 1024 or less.")
    app._run_name = "latest"
    assert snap_compare(app, run_before=until("failed at step 64"))


def test_help(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, run_before=until("Help · Train", "question_mark"))


def test_quit(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun) -> None:
    async def ask(pilot: Pilot[Any]) -> None:
        await until("64/120")(pilot)
        await press(pilot, "q", until="leave it running")

    assert snap_compare(app, run_before=ask)


@pytest.mark.parametrize(
    ("keys", "text"),
    [("s", "keep training"), ("sk", "leave it alone"), ("e", "esc leave")],
    ids=["stop", "kill", "settings"],
)
def test_control(snap_compare: Compare, app: LocaltuneApp, run: ScriptedRun, keys: str, text: str) -> None:
    run.write_state(pid=4711, host="ws1")

    async def ask(pilot: Pilot[Any]) -> None:
        await until("64/120")(pilot)
        for key in keys:
            await pilot.press(key)
            await settle(pilot)
        await wait_for(pilot, lambda: text in screen_text(pilot.app))
        await settle(pilot)

    assert snap_compare(app, run_before=ask)


def test_too_small(snap_compare: Compare, app: LocaltuneApp) -> None:
    assert snap_compare(app, terminal_size=(50, 15), run_before=until("too small"))


@pytest.mark.parametrize("size", ["80x24", "120x30"])
def test_start_card(
    snap_compare: Compare, app: LocaltuneApp, tiny_model_dir: Path, tmp_path: Path, monkeypatch: Any, size: str
) -> None:
    plan = StartPlan(135_000_000, 1_500_000_000, 22_900_000_000, True, "", 90, 61.0)
    monkeypatch.setattr("tui.screens.start.summary.find_plan", lambda *_: plan)
    rows = "".join(f"What is {number} plus {number}?,{2 * number}\n" for number in range(200))
    (tmp_path / "faq.csv").write_text("question,answer\n" + rows)
    base = tmp_path / "SmolLM2-135M-Instruct"
    base.symlink_to(tiny_model_dir)
    text = f'model.base = "{base}"\n[data]\ntrain = "faq.csv"\neval_share = 0.1\n[train]\nbatch_size = 2\n'
    (tmp_path / "faq.toml").write_text(text)
    app._config_path = tmp_path / "faq.toml"
    width, height = map(int, size.split("x"))

    async def run(pilot: Pilot[Any]) -> None:
        await until("No run yet.", "3")(pilot)
        await wait_for(pilot, lambda: pane_of(app, "data").view is not None and pane_of(app, "data").view.analysis)
        await until("✓ fits", "r")(pilot)

    assert snap_compare(app, terminal_size=(width, height), run_before=run)


@pytest.fixture
def forms_config(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A configuration with a model, and rows whose columns no format has."""
    header, row = "frage;antwort;persona", "Wie geht das?;So geht das.;Du hilfst gern."
    (tmp_path / "mine.csv").write_text(f"{header}\n{row}\nUnd das?;Auch so.;Du hilfst gern.\nWas?;;\n")
    columns = 'columns = {user = "frage", assistant = "antwort"}'
    text = f'[model]\nbase = "{tiny_model_dir}"\n\n[data]\ntrain = "mine.csv"\n{columns}\n'
    (tmp_path / "c.toml").write_text(text)
    return tmp_path / "c.toml"


@pytest.mark.parametrize("size", SIZES)
def test_templates(snap_compare: Compare, app: LocaltuneApp, forms_config: Path, size: str) -> None:
    forms_config.write_text(forms_config.read_text().replace("mine.csv", "rows.jsonl").partition("columns")[0])
    (forms_config.parent / "rows.jsonl").write_text('{"prompt": "ask", "completion": "a reply\\nin two lines"}\n')
    app._config_path = forms_config

    async def run(pilot: Pilot[Any]) -> None:
        await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "data").view is not None)
        await press(pilot, "1", "T", until=lambda: getattr(app.screen, "templates", None) is not None)
        screen: Any = app.screen
        await wait_for(pilot, lambda: len(screen.previews) == len(screen.templates.entries))
        await press(pilot, "j", until="chatml · 27 lines")

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)


@pytest.mark.parametrize("size", SIZES)
def test_columns(snap_compare: Compare, app: LocaltuneApp, forms_config: Path, size: str) -> None:
    app._config_path = forms_config

    async def run(pilot: Pilot[Any]) -> None:
        await wait_for(pilot, lambda: app.state.document is not None and pane_of(app, "data").view is not None)
        await press(pilot, "1", "C", until="2 of the first 3 rows")

    assert snap_compare(app, terminal_size=SIZES[size], run_before=run)


@pytest.mark.parametrize("size", long_but(["80x24"], SIZES))
def test_trash(
    snap_compare: Compare, app: LocaltuneApp, private_home: Path, monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    sizes = {
        "old": 1_270_000_000,
        "tickets": 78_000_000,
        "faq-with-a-longer-name-than-there-is-room-for-in-a-narrow-terminal": 78_000_000,
    }
    monkeypatch.setattr("core.runs.catalog.removal.directory_size", lambda path: sizes[path.name.split("-", 2)[2]])
    monkeypatch.setattr("tui.screens.trash.free_bytes", lambda: 214_000_000_000)
    for day, name in enumerate(sizes):
        (private_home / f"trash/202611{20 + day}-0{day}3000/202611{10 + day}-090000-{name}").mkdir(parents=True)
    assert snap_compare(app, terminal_size=SIZES[size], run_before=until("3 runs, ", "5", "U"))


def test_runs_with_notes_and_costs(
    snap_compare: Compare, app: LocaltuneApp, private_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.runs.catalog.rows.directory_size", lambda _: 78_000_000)
    for number, note in enumerate(("", "best so far, but the answers are too long", "baseline")):
        script = ScriptedRun(private_home, f"2026112{number}-090000-tickets-{number}", start=MOMENT)
        tariff = '\n[hardware]\ntariff = 32.0\ncurrency = "EUR"\n'
        script.run.config_path.write_text(script.run.config_path.read_text() + tariff)
        script.train_to(40 * (number + 1))
        script.end("finished", "all steps done")
        script.write_state(updated=MOMENT - 86400.0 * (3 - number))
        write_labels(script.run.path, Labels(note=note))
    assert snap_compare(app, terminal_size=SIZES["200x50"], run_before=until("2m 33s of work", "5"))
