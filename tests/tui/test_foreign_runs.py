"""Foreign runs, not written by our worker: all that the app draws of them, and the app on the worst of them."""

from __future__ import annotations

import math
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.hardware.snapshot import Device
from core.runs.catalog.answers import questions_of
from core.runs.catalog.result import read_detail, result_of
from core.runs.catalog.rows import FigureReader, RunCatalog
from core.runs.record.state import RunState
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.runs.event_strategies import HOSTILE_LINES
from tests.examples import examples
from tests.tui.harness import FORBIDDEN, press, resize, running, screen_text, wait_for
from tests.tui.scripted_run import ScriptedRun
from tui import bridge
from tui.bridge import RunAdvanced, RunAttached
from tui.glyphs import ASCII, BLOCK, BRAILLE
from tui.keys import KeyTable
from tui.state import AppState, RunView
from tui.widgets.answers import LAYOUT_WORDS, AnswerWalk, walk_lines
from tui.widgets.charts.bars import bar
from tui.widgets.charts.chart_data import ChartData
from tui.widgets.charts.device_panel import device_lines
from tui.widgets.charts.line_chart import LineChart, RunChart, Zoom
from tui.widgets.lists import run_list
from tui.widgets.run_end import end_hints, end_lines
from tui.widgets.run_lines import banner, numbers, phases, progress
from tui.widgets.status_bar import fit, header_segments

STEP = (
    '{"t": %s, "type": "step", "step": %s, "epoch": 0.1, "loss": %s, "lr": %s, "grad_norm": %s, "tokens": %s, '
    '"supervised_tokens": 5, "seconds": %s, "tokens_per_second": %s}'
)


def draw_all(view: RunView) -> list[str]:
    """The text of the Train pane, the header and the list of runs about a run."""
    found = [numbers(view, 120).plain, banner(view, KeyTable()).plain]
    for now in (0.0, 1e12):
        found += [progress(view, 100, BRAILLE, now).plain, phases(view, now, 100, BRAILLE).plain]
    result = result_of(view.run, view.state, view.history)
    hints = end_hints(result, KeyTable(), has_answers=True)
    found += [end_lines(result, hints, width, glyphs).plain for width in (58, 120) for glyphs in (BRAILLE, ASCII)]
    walk = AnswerWalk()
    walk.show(questions_of(view.history.samples))
    for _ in LAYOUT_WORDS:
        found += [line.plain for width in (3, 80, 120) for line in walk_lines(walk, width, 10)]
        walk.turn_layout()
    for devices in (view.history.devices, [Device(index=0, kind="cpu", name="c")]):
        view.history.devices = devices
        found.append(fit(header_segments(AppState(view=view), 1e9), 160).plain)
        found += [line.plain for width in (60, 120) for item in devices for line in device_lines(item, width, BRAILLE)]
    for glyphs in (BRAILLE, BLOCK, ASCII):
        chart = LineChart(glyphs)
        curves = RunChart()
        curves.turn_second(view.history, -1)
        chart.data = curves.data(view)
        for is_log in (False, True):
            chart.set_reactive(LineChart.log_axis, is_log)
            for width, height in ((120, 20), (13, 4), (3, 2), (80, 10)):
                chart.cursor, chart.zoom = (view.step, Zoom(9.0)) if width == 80 else (None, Zoom())
                found += ["".join(cell[0] for cell in row) for row in chart._draw(width, height).cells]
    return found


@settings(
    deadline=None, max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(st.lists(HOSTILE_LINES, max_size=12), st.sampled_from(["training", "failed", "finished", "lost", "stalled"]))
def test_no_record_ends_what_is_drawn(lines: list[bytes], state: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory))
        run.events_path.write_bytes(b"".join(line + b"\n" for line in lines))
        posted: list[object] = []
        stop = threading.Event()

        def post(message: object) -> None:
            posted.append(message)
            stop.set()

        bridge.follow_run(run, post, stop)
    (attached,) = posted
    assert isinstance(attached, RunAttached)
    view = RunView(run, RunState(state=state, step=3, total_steps=2**63 - 1), attached.history)
    for text in draw_all(view):
        assert max(map(len, text.split("\n"))) < 5000


@given(
    st.lists(st.floats(), min_size=1, max_size=6), st.integers(-(2**63), 2**63 - 10), st.sampled_from([0, 10, 2**63])
)
def test_a_chart_holds_whatever_floats_there_are(values: list[float], first: int, total: int) -> None:
    chart = LineChart()
    for number, value in enumerate(values):
        chart.data.loss.append(first + number, value)
        chart.data.evals.append(first + number, -value)
    chart.data = ChartData(chart.data.loss, chart.data.evals, (), total)
    for is_log in (False, True):
        chart.set_reactive(LineChart.log_axis, is_log)
        for keys in ("", "hh+", "l+>", "--<"):
            for key in keys:
                by = 1 if key in "l+>" else -1
                {"h": chart.move_cursor, "l": chart.move_cursor, "+": chart.zoom_by, "-": chart.zoom_by}.get(
                    key, chart.pan
                )(by)
            chart._draw(80, 12)
    assert all(math.isfinite(bucket.last) for bucket in chart.data.loss.smooth_bucket(80))


@cases(("share", "filled"), [(math.nan, 0), (math.inf, 9), (-math.inf, 0), (1e308, 9), (-1.0, 0), (0.5, 4), (1.0, 9)])
def test_a_bar_of_any_share_has_its_width(share: float, filled: int) -> None:
    full, empty = bar(share, 9, ASCII)
    assert (len(full), len(full + empty)) == (filled, 9)


def _lines(*values: tuple[object, ...]) -> list[str]:
    return [STEP % value for value in values]


_DEVICES = '[{"index": 0, "kind": "cuda", "name": "\\u001b]0;x\\u0007", "memory_used": %s, "memory_total": 1, %s}]'
WORST = {
    "huge integer": ['{"t": 1, "type": "checkpoint", "step": 3, "path": "x", "bytes": %s, "seconds": 1}' % ("9" * 400)],
    "infinite range": _lines((1, 1, "1e308", 1, 1, 1, 1, 1), (2, 2, "-1e308", 1e300, "1e308", 2**62, 1e300, 1e308)),
    "no calendar": _lines((1e18, 1, 1, 1, 1, 1, 1, 1), ("-1e18", 2, 1, 1, 1, 1, 1, 1), ('"NaN"', 3, 1, 1, 1, 1, 1, 1)),
    "steps at both ends": _lines((1, -(2**63), 1, 1, 1, 1, 1, 1), (2, 2**63, "5e-324", 1, 1, -5, "-1", 1)),
    "devices": [
        '{"t": 1, "type": "hardware", "devices": %s}' % (_DEVICES % (2**62, '"temperature_c": 1e308, "clock": 1e300')),
        '{"t": 1, "type": "hardware", "devices": [{"a": %s}]}' % ("[" * 400 + "]" * 400),
        '{"t": 1, "type": "hardware", "devices": [], "energy_wh": 1e308}',
    ],
    "no JSON": ["[" * 100_000, "\0" * 1000, '{"t": 1, "type": "phase", "name": "\\ud800", "done": 1, "total": -1}'],
    "long line": ["x" * (3 << 20)],
    "many names": [f'{{"t": 1, "type": "phase", "name": "p{number}"}}' for number in range(300)],
}


async def test_the_app_shows_the_worst_runs(home: Path) -> None:
    await show_all(home, {name: WORST[name] for name in ("infinite range", "devices", "no JSON")})


@pytest.mark.long
async def test_the_app_shows_every_bad_run(home: Path) -> None:
    await show_all(home, WORST)


async def show_all(home: Path, worst_runs: dict[str, list[str]]) -> None:
    """Show a run after the other in the panes, as bad lines come, at two sizes."""
    scripts = []
    for number, lines in enumerate(worst_runs.values()):
        script = ScriptedRun(home, f"20261124-14360{number}-tickets", total=2**63 - 1).begin()
        script.steps(1, 3).hardware()
        append(script, lines)
        scripts.append(script)
    async with running(size=(160, 46)) as (app, pilot):
        for number, (worst, script) in enumerate(reversed([*zip(worst_runs, scripts, strict=True)])):
            if app.state.view is not None:
                app.runs.open(script.run)
            await wait_for(pilot, lambda: app.state.view is not None and app.state.view.run == script.run)  # noqa: B023
            await wait_for(pilot, lambda: "training" in screen_text(app))
            assert app.state.view is not None
            view = app.state.view
            append(script, worst_runs[worst])
            script.write_state(state="failed", reason=f"the end {number}")
            await wait_for(pilot, lambda: f"the end {number}" in screen_text(app))  # noqa: B023
            for key in ("3", "l", "5", "3"):
                await press(pilot, key)
                assert not FORBIDDEN & set(screen_text(app)), worst
            await resize(pilot, 80, 24)
            assert app.is_running
            assert view.history.step_count >= 1, worst
            await pilot.resize_terminal(160, 46)


def append(script: ScriptedRun, lines: list[str]) -> None:
    """Append lines to the events of a run."""
    with script.run.events_path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def _odd(kind: str) -> Callable[[Path], None]:
    return {
        "fifo": lambda path: os.mkfifo(path),
        "directory": lambda path: path.mkdir(),
        "deep": lambda path: path.write_text("a = " + "[" * 50_000),
        "device": lambda path: path.symlink_to("/dev/zero"),
        "hex": lambda path: path.write_text("[model]\nbase = 'x'\n[method]\nname = 'lora'\nrank = 0x" + "f" * 50_000),
    }[kind]


@cases("kind", ["fifo", "directory", "deep", "device", "hex"])
def test_the_list_of_runs_has_odd_ones_too(home: Path, kind: str) -> None:
    script = ScriptedRun(home, f"20261124-143600-{kind}").steps(1, 2)
    for path in (script.run.config_path, script.run.state_path, script.run.events_path):
        content = path.read_bytes()
        path.unlink()
        _odd(kind)(path)
        descriptors = len(os.listdir("/proc/self/fd"))
        for row in RunCatalog().rows():
            figures = FigureReader().read(row.run)
            assert read_detail(row.run, row.run).changes == ()
            for column in run_list._COLUMNS:
                assert len(column.cell(row, figures, 0.0)) < 100
        assert len(os.listdir("/proc/self/fd")) == descriptors
        path.rmdir() if kind == "directory" else path.unlink()
        path.write_bytes(content)


async def test_the_list_of_runs_is_drawn_with_times_that_are_none(home: Path) -> None:
    for name, moment in (("a\x1b[31m", 2**40), ("99991231-235959-late", 0), ("00010101-000000-early", -(2**33))):
        script = ScriptedRun(home, name)
        for path in (script.run.state_path, script.run.config_path, script.run.path):
            os.utime(path, (moment, moment))
    async with running(size=(160, 46)) as (app, pilot):
        await press(pilot, "5", until="5 Runs · 3")
        assert not FORBIDDEN & set(screen_text(app))


def test_a_long_history_is_passed_on_piece_by_piece(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "LIVE_SECONDS", 0.01)
    monkeypatch.setattr(bridge, "CATCH_UP_SECONDS", 0.001)
    script = ScriptedRun(home, total=30_000).steps(1, 2)
    posted: list[object] = []
    stop = threading.Event()

    def post(message: object) -> None:
        posted.append(message)
        if isinstance(message, RunAttached):
            script.steps(3, 20_000).end("finished")
        elif isinstance(message, RunAdvanced) and message.state.is_over:
            stop.set()

    bridge.follow_run(script.run, post, stop)
    advanced = [message for message in posted if isinstance(message, RunAdvanced)]
    assert sum(len(message.events) for message in advanced) == 20_000 - 2 + 1
    assert len(advanced) > 3
    assert max(len(message.events) for message in advanced) < 6000
    # Its end is not posted before the events that led to it.
    assert [message.state.is_over for message in advanced] == [*[False] * (len(advanced) - 1), True]
