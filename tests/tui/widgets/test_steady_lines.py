"""The lines of a run keep their columns while its figures grow and shrink."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from textual.content import Content

from core.runs.outlook import time_left
from core.runs.outlook.time_left import Eta
from core.runs.record.history import read_history
from tests.cases import cases
from tests.tui.scripted_run import GPU, HOST, ScriptedRun
from tui.glyphs import ASCII, BRAILLE
from tui.state import AppState, RunView
from tui.widgets import run_lines
from tui.widgets.charts.device_panel import device_lines, host_line
from tui.widgets.status_bar import fit, header_segments

#: Times left, in seconds, just above and below a change of their digits.
TIMES = (7300.0, 3601.0, 3599.0, 601.0, 599.0, 61.0, 59.0, 10.0, 9.0, 1.0)


@pytest.fixture
def views(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunView]:
    """A run at the steps where its figures get a digit more."""
    script = ScriptedRun(home, start=1e9, total=1200)
    script.begin()
    script.steps(1, 3)
    script.evaluate(3, 0.45)
    script.hardware()
    view = RunView(script.run, script.run.state(), read_history(script.run), "SmolLM2 · qlora r16")
    left = TIMES[0]
    monkeypatch.setattr(type(view), "eta", lambda *_: Eta(left, 0.0, 0.0))

    def walk() -> Iterator[RunView]:
        nonlocal left
        steps = (8, 9, 10, 11, 99, 100, 101, 999, 1000, 1200)
        for seconds, step, rate in zip(TIMES, steps, (99, 999, 1000, 9999) * 3, strict=False):
            left = seconds
            view.state = replace(view.state, step=step)
            last = view.history.last_step
            assert last is not None
            view.history.last_step = replace(last, tokens_per_second=float(rate))
            yield view

    return walk()


def places(line: str, *marks: str) -> tuple[int, ...]:
    """The columns of texts in a line."""
    found = tuple(line.find(mark) for mark in marks)
    assert -1 not in found, line
    return found


def test_the_progress_of_a_run_stays_in_its_columns(views: Iterator[RunView]) -> None:
    widths = (76, 98, 150)
    drawn = [[run_lines.progress(view, width, ASCII, 1e9).plain for width in widths] for view in views]
    for lines in zip(*drawn, strict=True):
        assert len({places(line, "/1200", "%", "ETA") for line in lines}) == 1, lines


def test_the_header_stays_in_its_columns(views: Iterator[RunView]) -> None:
    drawn = []
    for view in views:
        segments = header_segments(AppState(view=view, host="ws1"), 1e9, loss=True)
        drawn.append([fit(segments, width).plain for width in (78, 118, 198)])
    for lines in zip(*drawn, strict=True):
        assert len({places(line, "/1200", "ETA", "loss", "°C", "GB", "ws1") for line in lines}) == 1, lines


def test_numbers_stay_in_their_columns(views: Iterator[RunView]) -> None:
    lines = []
    for view, at in zip(views, (9, 10, 99, 100, 999, 1000), strict=False):
        view.history.evals[-1] = replace(view.history.evals[-1], step=at)
        lines.append(run_lines.numbers(view, 110).plain)
    assert len({places(line, "eval", "grad", "lr", "tok/s") for line in lines}) == 1, lines


@cases("width", [60, 78, 110, 190])
def test_a_device_stays_in_its_columns(width: int) -> None:
    values = ((9.0, 9.0, 0.5, 9.0, 300.0), (99.0, 99.0, 9.96, 99.0, 999.0), (100.0, 100.0, 23.0, 100.0, 2520.0))
    found: set[tuple[int, ...]] = set()
    for heat, load, used, power, clock in values:
        # Far from its limits, whose words have a length of their own.
        device = replace(
            GPU,
            temperature_c=heat,
            temperature_limit_c=110.0,
            utilization=load,
            memory_used=round(used * 1e9),
            memory_total=80_000_000_000,
            power_w=power,
            clock=clock,
            throttle_reasons=[],
        )
        lines: list[Content] = device_lines(device, width, BRAILLE)
        text = "\n".join(line.plain for line in lines)
        found.add(places(text, "°C", "VRAM", "GB", " W", *(("%",) if width > 60 else ())))
    assert len(found) == 1, found


def test_the_machine_stays_in_its_columns() -> None:
    lines = [
        host_line(replace(HOST, ram_used=round(used * 1e9), load=load), BRAILLE, 150).plain
        for used, load in ((0.9, 0.1), (9.9, 9.9), (10.1, 10.0), (63.9, 16.0))
    ]
    assert len({places(line, "cores", "RAM", "swap", "disk", "CPU") for line in lines}) == 1, lines


def test_a_time_left_has_room() -> None:
    assert all(len(time_left._left(seconds)) <= run_lines.ETA_WIDTH for seconds in TIMES)
