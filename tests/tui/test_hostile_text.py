"""Hostile text, which would take over a terminal, through every widget of the shell: none of it may be drawn."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.app import App
from textual.content import Content
from textual.screen import Screen
from textual.widget import Widget

from core.errors import UserError
from core.hardware.snapshot import Device
from core.runs.catalog.answers import questions_of
from core.runs.catalog.result import result_of
from core.runs.catalog.rows import RunRow
from core.runs.catalog.trained import python_code
from core.runs.record import events
from core.runs.record.history import RunHistory
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.tui.harness import FORBIDDEN, HOSTILE, Stage, running, screen_text
from tests.tui.scripted_run import ScriptedRun
from tui.app import LocaltuneApp
from tui.glyphs import BRAILLE
from tui.keys import KeyTable
from tui.screens.dialogs import ErrorDialog, elsewhere_dialog, kill_dialog, quit_dialog, stop_dialog, unanswered_dialog
from tui.screens.help import HelpScreen
from tui.state import AppState, RunView
from tui.widgets import run_lines
from tui.widgets.answers import LAYOUT_WORDS, AnswerWalk, walk_lines
from tui.widgets.charts.chart_data import ChartData, ChartMark
from tui.widgets.charts.device_panel import DevicePanel
from tui.widgets.charts.line_chart import LineChart, chart_marks
from tui.widgets.empty_state import EmptyState
from tui.widgets.lists.log_view import LogView
from tui.widgets.lists.run_list import RunList
from tui.widgets.run_end import end_lines
from tui.widgets.status_bar import StatusBar
from tui.widgets.text_block import TextBlock

FIGURES: dict[str, Any] = {"epoch": 0.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "supervised_tokens": 5}
FIGURES |= {"seconds": 1.0, "tokens_per_second": 10.0}
EVIL = HOSTILE + "[@click=app.quit]x[/] [/nope]"
STALLED = RunState(state="stalled", reason=EVIL)


@pytest.fixture
def view(home: Any) -> RunView:
    """A run whose every text is hostile."""
    run = Run(home / "runs" / f"20261124-143600-{EVIL.replace('/', '')}".replace("\x00", ""))
    history = RunHistory()
    for event in _events():
        history.apply(event)
    return RunView(run, RunState(state="failed", reason=EVIL, step=3, total_steps=9), history, model="m")


def _events() -> Iterator[events.Event]:
    yield events.PhaseEvent(t=0.0, name=EVIL, detail=EVIL, done=1, total=2)
    yield events.NoticeEvent(t=1.0, level="warning", code="x", message=EVIL, hint=EVIL)
    for step in range(1, 4):
        yield events.StepEvent(t=float(step), step=step, loss=1.0 / step, **FIGURES)
    yield events.SampleEvent(t=4.0, step=3, prompt=EVIL, text=EVIL, source=EVIL, expected=EVIL, exact_match=False)
    yield events.GovernorEvent(t=5.0, action=EVIL, cause=EVIL)
    yield events.PhaseEvent(t=6.0, name="rehearsing", detail=EVIL)
    yield events.FailedEvent(t=9.0, reason=EVIL, step=3, hint=EVIL)


def _chart(view: RunView) -> Widget:
    chart = LineChart()
    marks = [*chart_marks(view.history), ChartMark(2, EVIL), ChartMark(2, EVIL, EVIL)]
    chart.data = ChartData(view.history.loss, view.history.eval_loss, marks, 9)
    return chart


def _log(view: RunView) -> Widget:
    log = LogView()
    log._lines.extend(view.history.log)
    return log


def _runs(view: RunView) -> Widget:
    run_list = RunList(lambda: 0.0)
    run_list._rows = [RunRow(run=view.run, state="failed", step=3, total_steps=9)]
    return run_list


def _status(view: RunView) -> Widget:
    status = StatusBar()
    status.show(AppState(view=view, host=EVIL), 1e9)
    return status


def _answers(view: RunView) -> Content:
    walk, lines = AnswerWalk(), list[Content]()
    walk.show(questions_of(view.history.samples))
    for _ in LAYOUT_WORDS:
        lines += walk_lines(walk, 100, 20)
        walk.turn_layout()
    return Content("\n").join(lines)


def _lines(make: Callable[[RunView], Content]) -> Callable[[RunView], Widget]:
    return lambda view: TextBlock(make(view))


WIDGETS: dict[str, Callable[[RunView], Widget]] = {
    "chart": _chart,
    "devices": lambda _: DevicePanel(),
    "log": _log,
    "runs": _runs,
    "status": _status,
    "end": _lines(lambda view: end_lines(result_of(view.run, view.state, view.history), [("r", "run")], 100, BRAILLE)),
    "answers": _lines(_answers),
    "banner": _lines(lambda view: run_lines.banner(replace(view, state=STALLED), KeyTable())),
    "phases": _lines(lambda view: run_lines.phases(view, 9.0, 100, BRAILLE)),
    "progress": _lines(lambda view: run_lines.progress(view, 100, BRAILLE, 9.0)),
    "numbers": _lines(lambda view: run_lines.numbers(view, 100)),
    "empty": lambda _: EmptyState("Nothing [/] here.", [("[/]", "[@click=app.quit]x")]),
}


async def test_a_widget_draws_nothing_hostile(view: RunView) -> None:
    app = Stage(Widget())
    async with app.run_test(size=(120, 20)) as pilot:
        await app.widget.remove()
        for name, make in WIDGETS.items():
            widget = make(view)
            await app.mount(widget)
            if isinstance(widget, DevicePanel):
                widget.show_devices(
                    [Device(index=0, kind="cuda", name=EVIL, temperature_c=90.0, throttle_reasons=[EVIL])]
                )
            await pilot.pause()
            text = screen_text(app)
            assert text.strip(), name
            assert not FORBIDDEN & set(text), name
            assert _clickable(app) == [], name
            await widget.remove()


async def test_a_dialog_draws_nothing_hostile(view: RunView) -> None:
    screens: dict[str, Callable[[], Screen[Any]]] = {
        "quit": lambda: quit_dialog(view),
        "stop": lambda: stop_dialog(view),
        "kill": lambda: kill_dialog(view),
        "unanswered": lambda: unanswered_dialog(UserError(EVIL, EVIL)),
        "elsewhere": lambda: elsewhere_dialog(EVIL, python_code(Path(EVIL), is_model=False), is_model=False),
        "error": lambda: ErrorDialog(EVIL, UserError(EVIL, EVIL)),
        "help": lambda: HelpScreen(EVIL[-6:], "About", KeyTable(), "train"),
    }
    app = Stage(TextBlock(Content("under it")))
    async with app.run_test(size=(120, 30)) as pilot:
        for kind, make in screens.items():
            await app.push_screen(make())
            await pilot.pause()
            text = screen_text(app)
            assert text.strip(), kind
            assert not FORBIDDEN & set(text), kind
            assert _clickable(app) == [], kind
            await app.pop_screen()


async def test_the_whole_app_shows_a_hostile_run(home: Any) -> None:
    script = ScriptedRun(home).train_to(5)
    script.write(*_events())
    script.write_state(state="failed", reason=EVIL)
    app = LocaltuneApp(run="latest")
    async with running(app, (200, 50), notifications=True, until="failed after step") as (_, pilot):
        assert not FORBIDDEN & set(screen_text(app))
        app.notify(EVIL, markup=False)
        app.desktop.warn("title", EVIL)
        await pilot.pause()
        assert app.is_running


def _clickable(app: App[Any]) -> list[str]:
    """Actions that a click on the screen would run."""
    segments = itertools.chain.from_iterable(app.screen._compositor.render_strips())
    return [str(item.style.meta["@click"]) for item in segments if item.style and "@click" in item.style.meta]
