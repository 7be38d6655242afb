"""Learning curve: points, intervals, areas, and the gain of more rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.runs.catalog import compare
from core.runs.catalog.learning_curve import LearningCurve, binomial_interval, look_ahead, mean_interval
from core.runs.record.events import DataEvent, EvalEvent, Event, SampleEvent
from core.runs.record.state import RunState
from core.runs.record.store import create_run
from tests.cases import cases
from tests.core.runs.helpers import config_for, there, write_events


def record(home: Path, rows: int, loss: float, exact: float, seed: int = 1, rank: int = 8) -> compare.RunRecord:
    """A finished run on some of 400 rows, with 40 held out and two questions answered."""
    config = config_for(home)
    data = config.data.model_copy(update={"eval": "/data/held_out.jsonl", "weights": [rows / 400]})
    train = config.train.model_copy(update={"seed": seed})
    method = config.method.model_copy(update={"rank": rank})
    run = create_run(config.model_copy(update={"data": data, "train": train, "method": method}), f"share {rows}")
    areas = [("billing", True), ("shipping", rows == 400)]
    events: list[Event] = [
        DataEvent(rows=400, used=rows, dropped={}, tokens=9, supervised_tokens=3, longest=5, held_out_rows=40),
        EvalEvent(step=0, loss=0.01, perplexity=1.0, seconds=1.0, exact_match=0.0, rows=40),
        EvalEvent(step=4, loss=loss, perplexity=2.0, seconds=1.0, exact_match=exact, rows=40),
        *(
            SampleEvent(
                step=4,
                prompt=area,
                text="{}",
                source="step-4",
                expected=json.dumps({"area": area}),
                exact_match=right,
                valid_json=True,
            )
            for area, right in areas
        ),
    ]
    write_events(run, *events)
    RunState(state="finished", step=4, total_steps=4, updated=300.0).write(run.state_path)
    return compare.read_record(run)


def test_runs_that_differ_in_their_rows_alone_are_a_curve(home: Path) -> None:
    records = [record(home, 400, 0.5, 0.9), record(home, 100, 1.0, 0.5), record(home, 200, 0.7, 0.75)]
    curve = there(LearningCurve.of(records, "area"))
    assert [(point.rows, point.loss, point.exact_match) for point in curve.points] == [
        (100, 1.0, 0.5), (200, 0.7, 0.75), (400, 0.5, 0.9),
    ]  # fmt: skip
    assert all(point.loss_interval is None for point in curve.points), "one seed is no interval"
    assert curve.points[0].exact_interval == pytest.approx((0.352, 0.648), abs=1e-3)
    assert [(area.name, area.right) for area in curve.points[0].areas] == [("billing", 1.0), ("shipping", 0.0)]
    lines = curve.lines()
    assert lines[0].split() == ["100", "rows", "loss", "1.00", "exact", "50%", "(35%", "to", "65%)"]
    assert "shipping, 1 asked: 0%" in lines[4]
    assert "The next 100 rows of this kind: loss about 0.447" in lines[-1]
    text = compare.text_lines(compare.compare_runs(records))
    assert text[text.index("learning curve") + 1].split()[:2] == ["100", "rows"]


def test_seeds_give_the_loss_an_interval_and_no_more_questions(home: Path) -> None:
    records = [record(home, rows, rows**-0.5 + seed / 100, 0.5, seed) for rows in (100, 400) for seed in (1, 2, 3)]
    curve = there(LearningCurve.of(records, "area"))
    low, high = there(curve.points[0].loss_interval)
    assert (low + high) / 2 == pytest.approx(0.12)
    assert high - low == pytest.approx(2 * 4.30 * 0.01 / 3**0.5, rel=1e-3)
    assert curve.points[0].exact_interval == pytest.approx(binomial_interval(20, 40))
    assert [area.questions for area in curve.points[0].areas] == [1, 1]
    assert (curve.outlook, curve.doubt[:10]) == (None, "Two points")


def test_runs_with_other_options_are_no_curve(home: Path) -> None:
    records = [record(home, 100, 1.0, 0.5), record(home, 200, 0.7, 0.75, rank=16)]
    assert LearningCurve.of(records) is None
    assert compare.compare_runs(records).curve is None
    assert LearningCurve.of(records[:1]) is None


def test_a_run_that_has_not_finished_is_no_point(home: Path) -> None:
    records = [record(home, 100, 1.0, 0.5), record(home, 200, 0.7, 0.75)]
    assert LearningCurve.of(records) is not None
    RunState(state="stopped", step=2, total_steps=4, updated=300.0).write(records[1].run.state_path)
    assert LearningCurve.of(records) is None


@cases(
    ("points", "said"),
    [
        ([(100, 1.0), (200, 1.1), (400, 0.5)], "does not fall"),
        ([(100, 1.0), (200, 0.7), (400, 0.7)], "does not fall"),
        ([(100, 1.0), (200, 0.7)], "Two points"),
    ],
)
def test_a_curve_that_tells_nothing_gives_no_figure(points: Sequence[tuple[int, float]], said: str) -> None:
    outlook, doubt = look_ahead(points)
    assert outlook is None
    assert said in doubt


def test_a_power_law_is_continued() -> None:
    outlook = there(look_ahead([(rows, rows**-0.5) for rows in (100, 200, 400)])[0])
    assert (outlook.loss, outlook.lowest, outlook.highest) == pytest.approx((500**-0.5,) * 3)
    bent = there(look_ahead([(100, 1.0), (200, 0.5), (400, 0.4)])[0])
    assert bent.lowest < bent.loss < bent.highest < 0.4


def test_intervals_are_those_of_the_tables() -> None:
    assert binomial_interval(0, 10) == pytest.approx((0, 0.278), abs=1e-3)
    assert binomial_interval(10, 10) == pytest.approx((0.722, 1), abs=1e-3)
    assert mean_interval([1.0]) is None
