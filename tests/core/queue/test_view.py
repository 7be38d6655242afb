from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from core.config.schema import Config
from core.queue import store
from core.queue.estimate import Estimator
from core.queue.night import Night
from core.queue.status import RunnerStatus
from core.queue.view import QueueReader, next_begin
from core.runs.outlook.estimate import Estimate, NoEstimate, PaceBook, limited
from core.runs.record.events import StepEvent
from core.runs.record.store import Run, append_events, create_run
from tests.core.queue.helpers import add, config_for
from tests.core.runs.helpers import live_state, step_event, write_events

RUNNER = RunnerStatus(pid=1, pid_started="x", doing="waits", entry=None, updated=0.0)
NOW = 10_000.0


class Known(Estimator):
    """An estimator with a figure for every run with ``train.max_steps``."""

    def __init__(self) -> None:
        super().__init__(lambda: PaceBook([]))

    def estimate(self, config: Config) -> Estimate | NoEstimate:
        steps = config.train.max_steps
        if steps is None:
            return NoEstimate("it does not say its steps")
        every = Estimate(10.0 * steps, steps, 2.0 * steps, "r", "plan" if config.method.rank == 32 else "pace")
        return limited(config, every)


def test_each_begins_when_the_one_before_is_expected_to_end(home: Path) -> None:
    add("a", train={"max_steps": 6})
    add("b", train={"max_steps": 3})
    add("c", train={"max_steps": 2})
    store.change(lambda queue: queue.held(2))
    view = QueueReader(Known()).view(store.read_queue(), RUNNER, NOW)
    assert [(row.begins, row.ends) for row in view.rows] == [(NOW, NOW + 60), (None, None), (NOW + 60, NOW + 80)]
    assert [row.place for row in view.rows] == [1, 2, 3]
    assert view.ends == NOW + 80


def test_quiet_hours_are_counted_and_a_line_says_what_differs_from_the_one_above(home: Path) -> None:
    add("a", train={"max_steps": 6, "learning_rate": 1e-3}, night={"quiet_hours": "22:00-07:00"})
    add("a", train={"max_steps": 6, "learning_rate": 2e-4})
    add("a", train={"max_steps": 6, "learning_rate": 2e-4}, method={"rank": 8})
    evening = datetime(2026, 11, 24, 22, 30).timestamp()
    seven = datetime(2026, 11, 25, 7).timestamp()
    reader = QueueReader(Known())
    view = reader.view(store.read_queue(), RUNNER, evening)
    assert [(row.begins, row.ends) for row in view.rows] == [
        (seven + 60 * place, seven + 60 * (place + 1)) for place in range(3)
    ]
    words = [row.about for row in view.rows]
    assert words[0] == "a · quiet_hours 22:00-07:00, learning_rate 0.001"
    assert words[1:] == ["a · quiet_hours none, learning_rate 0.0002", "a · rank 8"]
    store.change(lambda queue: replace(queue, night=Night.read({"quiet_hours": "none"}, evening)))
    assert reader.view(store.read_queue(), RUNNER, evening).ends == evening + 180
    store.edit(1, ["max_steps = 3"])
    assert reader.view(store.read_queue(), RUNNER, evening).ends == evening + 150


def test_an_entry_without_another_names_its_own_changes_and_quiet_hours(home: Path) -> None:
    add("a", night={"quiet_hours": "22:00-07:00"})
    store.edit(1, ["rank = 32"])
    view = QueueReader(Known()).view(store.read_queue(), RUNNER, NOW)
    assert [row.about for row in view.rows] == ["a · quiet_hours 22:00-07:00, rank 32"]


def test_a_duration_by_the_plan_is_distinguished_from_one_at_a_measured_pace(home: Path) -> None:
    add("a", train={"max_steps": 6})
    add("b", train={"max_steps": 3}, method={"rank": 32})
    add("c")
    add("d", train={"max_steps": 2})
    reader = QueueReader(Known())
    assert reader.read(NOW, known_only=True).rows[0].seconds is None
    view = reader.view(store.read_queue(), RUNNER, NOW)
    assert [row.to_dict()["expected_by"] for row in view.rows] == ["pace", "plan", None, "pace"]
    assert view.has_plans
    # After one that is not known, nothing is.
    assert [(row.begins, row.ends) for row in view.rows[1:]] == [(NOW + 60, NOW + 90), (NOW + 90, None), (None, None)]
    assert view.ends is None
    assert [row.seconds for row in reader.read(NOW, known_only=True).rows] == [60, 30, None, 20]
    idle = reader.view(store.read_queue(), None, NOW)
    assert [row.begins for row in idle.rows] == [row.begins for row in view.rows], "as if a runner started now"
    assert {row.to_dict(starts=False)["begins_expected"] for row in idle.rows} == {None}, "nobody starts them"
    store.change(lambda queue: queue.removed(2))
    assert not QueueReader(Known()).view(store.read_queue(), RUNNER, NOW).has_plans


def test_a_run_that_a_limit_ends_early_gives_the_device_on_earlier(home: Path) -> None:
    add("a", train={"max_steps": 720, "max_hours": 1})
    add("b", train={"max_steps": 2})
    view = QueueReader(Known()).view(store.read_queue(), RUNNER, NOW)
    assert [(row.begins, row.ends, row.marks) for row in view.rows] == [
        (NOW, NOW + 3600, "^"), (NOW + 3600, NOW + 3620, "")
    ]  # fmt: skip
    end = {"option": "train.max_hours", "limit": 1.0, "step": 360, "steps": 720}
    assert [row.to_dict()["early_end"] for row in view.rows] == [end, None]
    assert view.early_ends == ["train.max_hours"]


def step(number: int, moment: float) -> StepEvent:
    return step_event(number, t=moment, tokens=80, seconds=10.0)


def other_run(total: int, **train: float) -> Run:
    """A run that the queue did not start, after six steps of ten seconds each."""
    run = create_run(config_for(train={"max_steps": total, **train}), "a")
    live_state(step=6, total_steps=total, updated=NOW).write(run.state_path)
    write_events(run, *(step(number, NOW - 10 * (6 - number)) for number in range(1, 7)))
    return run


def live_run(total: int, **train: float) -> Run:
    """The run of the first of two entries."""
    add("a", "b")
    run = other_run(total, **train)
    store.change(lambda queue: queue.with_entry(queue.entry(1).moved("starting", run=run.id, begun=NOW - 60)))
    return run


def test_the_end_of_a_live_run_follows_its_steps_and_only_new_events_are_read(home: Path) -> None:
    run, reader = live_run(10), QueueReader(Known())
    row = reader.view(store.read_queue(), RUNNER, NOW).rows[0]
    assert row.ends == pytest.approx(NOW + 40, abs=3)
    assert (row.step, row.total_steps, row.begins) == (6, 10, NOW - 60)
    append_events(run, step(7, NOW + 10))
    live_state(step=7, total_steps=10, updated=NOW).write(run.state_path)
    row = reader.view(store.read_queue(), RUNNER, NOW + 10).rows[0]
    assert row.ends == pytest.approx(NOW + 40, abs=3)
    live_state("failed", step=7, total_steps=10, updated=NOW).write(run.state_path)
    row, following = reader.view(store.read_queue(), RUNNER, NOW + 10).rows
    assert (row.state, row.ends, following.begins) == ("failed", None, NOW + 10)


def test_the_first_begins_when_a_run_that_the_queue_did_not_start_has_ended(home: Path) -> None:
    run, reader = other_run(10), QueueReader(Known())
    assert next_begin(Known(), NOW) == pytest.approx(NOW + 40, abs=3)
    add("a", train={"max_steps": 6})
    (row,) = reader.view(store.read_queue(), RUNNER, NOW).rows
    assert row.begins == pytest.approx(NOW + 40, abs=3)
    assert row.ends == pytest.approx(NOW + 100, abs=3)
    live_state("paused", step=6, total_steps=10).write(run.state_path)
    (row,) = reader.view(store.read_queue(), RUNNER, NOW).rows
    assert row.begins is None, "nobody knows when it goes on"
    live_state("finished", step=10, total_steps=10, updated=NOW).write(run.state_path)
    (row,) = reader.view(store.read_queue(), RUNNER, NOW).rows
    assert row.begins == NOW


def test_an_entry_whose_index_is_made_is_shown_so_and_the_next_begin_is_unknown(home: Path) -> None:
    live_run(10)
    entry = store.read_queue().entry(1).moved("running", outcome="finished", ended=NOW - 5, reason="all steps done")
    store.change(lambda queue: queue.with_entry(entry))
    row, following = QueueReader(Known()).view(store.read_queue(), RUNNER, NOW).rows
    assert (row.state, row.begins, row.ends) == ("index", NOW - 60, None)
    assert following.begins is None


def test_a_live_run_ends_by_its_limit_too(home: Path) -> None:
    live_run(1000, max_hours=0.05)
    row = QueueReader(Known()).view(store.read_queue(), RUNNER, NOW).rows[0]
    # By its record, it has worked for 50 of its 180 seconds.
    assert row.ends == pytest.approx(NOW + 130, abs=3)
    assert row.early_end is not None
    assert (row.early_end.option, row.early_end.step, row.marks) == ("train.max_hours", 19, "^")


def test_the_run_that_has_ended_is_the_pace_of_those_after_it(home: Path) -> None:
    add("a", "b", train={"max_steps": 10})
    run = create_run(config_for(train={"max_steps": 10}), "a")
    store.change(lambda queue: queue.with_entry(queue.entry(1).moved("starting", run=run.id, begun=NOW)))
    reader = QueueReader(Estimator())
    assert reader.view(store.read_queue(), RUNNER, NOW).rows[1].seconds is None
    write_events(run, *(step(number, NOW + number) for number in range(1, 11)))
    assert reader.view(store.read_queue(), RUNNER, NOW).rows[1].seconds is None, "it goes on"
    store.change(lambda queue: queue.with_entry(queue.entry(1).moved("done", outcome="finished", ended=NOW + 100)))
    row = reader.view(store.read_queue(), RUNNER, NOW).rows[0]
    assert (row.entry.name, row.by) == ("b", "pace")
    assert row.seconds == pytest.approx(100.0)


def test_the_next_run_begins_when_all_before_it_have_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert next_begin(Known(), NOW) == NOW
    add("a", train={"max_steps": 6})
    store.change(lambda queue: queue.held(1))
    assert next_begin(Known(), NOW) == NOW, "a held one is not before it"
    add("b", train={"max_steps": 3})
    assert next_begin(Known(), NOW) is None, "nobody starts it"
    monkeypatch.setattr("core.queue.view.read_status", lambda: RUNNER)
    assert next_begin(Known(), NOW) == NOW + 30
    add("c", train={"max_steps": 3}, method={"rank": 32})
    assert next_begin(Known(), NOW) is None, "a memory plan is no measurement"
