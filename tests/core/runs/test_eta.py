"""The time left, of scripted runs and of recorded ones."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from core.config.schema import Config
from core.memory.rows import Rows
from core.runs.outlook.estimate import RunPace, median_pace, pace_of
from core.runs.outlook.estimate import estimate as estimate_before
from core.runs.outlook.time_left import Eta, Schedule, SteadyEta, estimate, eta_words
from core.runs.record import events
from core.runs.record.events import Event, FinishedEvent, PhaseEvent, StepEvent, StoppedEvent, decode_event
from core.runs.record.history import RunHistory
from core.runs.record.sentences import pending_words, progress_words, step_progress
from core.runs.record.state import RunState, StepProgress
from core.runs.record.store import Run
from core.runs.record.timings import RECENT_STEPS, Timings
from tests.cases import cases
from tests.core.runs.helpers import step_event, there

#: Largest error of the time left, as a share of the real time left or of the whole run: in the last minute a second
#: does not matter.
SHARE_OF_LEFT, SHARE_OF_WHOLE = 0.15, 0.05
#: Configurations and events of runs, without events and texts that do not matter for the time, and without paths of the
#: machine.
RECORDED = Path(__file__).with_name("recorded")
#: Runs recorded on a machine with two cores, at a steady pace. In ``disturbed``, other programs took the cores for a
#: third of the time.
STEADY = sorted({path.name for path in RECORDED.iterdir()} - {"disturbed"})


def step(number: int, at: float, seconds: float = 1.0, tokens: int = 100) -> StepEvent:
    return step_event(number, t=at, epoch=number / 10, tokens=tokens, supervised_tokens=tokens // 4, seconds=seconds)


def fold(*items: Event) -> Timings:
    timings = Timings()
    for item in items:
        timings.apply(item)
    return timings


def left_of(timings: Timings, schedule: Schedule, total: int, now: float) -> Eta:
    return there(estimate(timings, schedule, total, now))


def steady(count: int, seconds: float = 2.0, begin: float = 0.0) -> list[Event]:
    return [step(number, begin + number * seconds, seconds) for number in range(1, count + 1)]


class Moment(NamedTuple):
    """The estimated and the real time left."""

    step: int
    eta: Eta | None
    left: float
    whole: float

    @property
    def is_right(self) -> bool:
        most = max(SHARE_OF_LEFT * self.left, SHARE_OF_WHOLE * self.whole)
        return self.eta is not None and abs(self.eta.seconds - self.left) <= most


def values_of(name: str) -> dict[str, Any]:
    """The configuration of a recorded run."""
    return Run(RECORDED / name).values()


def recorded(name: str) -> Iterator[Event]:
    """The events of a recorded run."""
    lines = gzip.decompress((RECORDED / name / "events.jsonl.gz").read_bytes()).splitlines()
    return (event for line in lines if (event := decode_event(line)) is not None)


def moments(name: str) -> Iterator[Moment]:
    """The time left of a recorded run at each event and each second, from a tenth of its steps on.

    The time between a stop and the next step is left out: nobody knows when a run is continued.
    """
    values, items = values_of(name), list(recorded(name))
    total = max(event.step for event in items if isinstance(event, StepEvent))
    gaps = list(away(items))
    begin = next(event.t for event in items if is_at_work(event))
    end = items[-1].t
    whole = end - begin - sum(until - since for since, until in gaps)
    timings = Timings()
    for event, following in itertools.pairwise(items):
        timings.apply(event)
        now = event.t
        while now <= following.t and timings.step >= total / 10:
            if not any(since <= now < until for since, until in gaps):
                left = end - now - sum(until - since for since, until in gaps if since >= now)
                yield Moment(timings.step, estimate(timings, Schedule.of(values), total, now), left, whole)
            now += 1.0
    assert isinstance(items[-1], FinishedEvent)


def is_at_work(event: Event) -> bool:
    return isinstance(event, PhaseEvent) and event.name in ("training", "evaluating")


def away(items: list[Event]) -> Iterator[tuple[float, float]]:
    """From each stop to the first step or evaluation after it."""
    for index, event in enumerate(items):
        if isinstance(event, StoppedEvent):
            yield event.t, next(later.t for later in items[index:] if is_at_work(later))


@cases("name", STEADY)
def test_from_a_tenth_of_a_recorded_run_on_the_time_left_is_right(name: str) -> None:
    told = list(moments(name))
    wrong = [moment for moment in told if not moment.is_right]
    assert len(told) > 40
    assert not wrong, [(moment.step, moment.eta, round(moment.left, 1)) for moment in wrong[:5]]


def recorded_pace(name: str) -> tuple[Config, RunHistory, RunPace | None]:
    """The configuration of a recorded run, its history, and its pace for other runs."""
    history = RunHistory()
    for event in recorded(name):
        history.apply(event)
    config = Run(RECORDED / name).config()
    return config, history, pace_of("", config, history)


@cases("name", sorted({*STEADY} - {"continued", "fast-steps", "full"}))
def test_before_the_start_the_pace_of_the_other_runs_predicts_the_whole_run(name: str) -> None:
    config, history, _ = recorded_pace(name)
    others = [recorded_pace(other) for other in STEADY if other != name]
    alike = [pace for other, _, pace in others if pace is not None and other.method.name == config.method.name]
    same = [pace for pace in alike if pace.rows_per_step == config.train.batch_size]
    data, items = there(history.data), list(recorded(name))
    rows = Rows([(16, data.used)], data.supervised_tokens / data.tokens, data.tokens)
    config = config.with_options(train={"max_steps": history.step}, eval={"max_rows": data.held_out_rows or 0})
    found = there(estimate_before(config, rows, median_pace(same or alike)))
    assert found.seconds == pytest.approx(items[-1].t - items[0].t, rel=0.25)


def test_the_time_left_follows_the_pace_and_is_right_again_when_others_have_gone() -> None:
    """Two other programs took the cores, and the disk, from step 12 to 26; nobody can foresee that, or its end."""
    told = list(moments("disturbed"))
    before, amid = ([m.eta.seconds for m in told if m.eta is not None and m.step == at][-1] for at in (11, 15))
    assert amid > before, "it goes up where the run has become slower, although steps were done"
    recovered = [moment for moment in told if moment.step >= 26 + RECENT_STEPS]
    assert len(recovered) > 10
    assert all(moment.is_right for moment in recovered)


def test_an_evaluation_before_the_first_step_is_no_part_of_the_steps() -> None:
    """Ten steps of under a second each, after 20 seconds of measuring: from the first on, no step counts for more."""
    items = list(recorded("evaluation-before-steps"))
    schedule = Schedule.of(values_of("evaluation-before-steps"))
    timings, told = Timings(), []
    firsts: list[float] = []
    for event in items:
        timings.apply(event)
        eta = estimate(timings, schedule, 10, event.t)
        if timings.step == 0:
            assert eta is None or eta.is_rough
            firsts += [eta.steps] if eta is not None else []
        elif isinstance(event, StepEvent):
            assert eta is not None
            told.append((event.step, eta.steps, eta.evaluation))
    measured = next(event.seconds for event in items if isinstance(event, events.EvalEvent))
    slowest = max(event.seconds for event in items if isinstance(event, StepEvent))
    assert measured > 20 * slowest
    assert firsts
    assert all(steps <= 10 * 1.5 * slowest for steps in firsts), "by the speed of the measurement"
    assert [step for step, _, _ in told] == list(range(1, 11))
    assert all(steps <= (10 - step) * 1.2 * slowest for step, steps, _ in told)
    assert all(evaluation < measured for *_, evaluation in told), "one is left, of a model that stops sooner"


def test_the_end_is_in_the_time_left_and_evaluations_at_their_own_time() -> None:
    schedule = Schedule(measures=True, eval_steps=10, checkpoint_steps=10)
    timings = fold(
        *steady(10),
        PhaseEvent(t=20.0, name="evaluating"),
        events.EvalEvent(t=50.0, step=10, loss=1.0, perplexity=2.0, seconds=30.0),
        PhaseEvent(t=50.0, name="training", done=10),
        events.CheckpointEvent(t=54.0, step=10, path="", bytes=1, seconds=4.0),
    )
    eta = left_of(timings, schedule, 30, 54.0)
    assert eta.steps == pytest.approx(20 * 2.0)
    assert eta.evaluation == pytest.approx(2 * 30.0), "the one after step 20, and the last one"
    assert eta.saving == pytest.approx(2 * 4.0 + 1.0), "two checkpoints, and the result"
    assert not eta.is_rough
    without = schedule.changed({"eval.every_steps": None})
    assert left_of(timings, without, 30, 54.0).evaluation == pytest.approx(30.0)


def test_it_counts_down_within_a_step_but_not_below_what_comes_after() -> None:
    timings = fold(*steady(20))
    left = [left_of(timings, Schedule(), 30, 40.0 + passed).steps for passed in (0.0, 1.0, 2.0, 60.0)]
    assert left == pytest.approx([20.0, 19.0, 18.0, 18.0])


def test_the_time_left_that_is_shown_stands_still_rather_than_rises() -> None:
    steady_eta = SteadyEta()

    def shown(now: float, seconds: float) -> float:
        return there(steady_eta.follow(Eta(seconds, seconds / 4, 0.0), now)).seconds

    assert shown(0.0, 80.0) == pytest.approx(100.0)
    assert shown(10.0, 78.0) == pytest.approx(97.5), "it counts down slower where the end has moved"
    assert shown(12.0, 82.0) == pytest.approx(97.5), "it stands still"
    assert shown(14.0, 70.0) == pytest.approx(87.5)
    assert shown(16.0, 120.0) == pytest.approx(150.0), "much later is told at once"
    assert steady_eta.follow(None, 20.0) is None


def test_a_pause_stops_the_clock_and_does_not_count_as_an_evaluation() -> None:
    timings = fold(
        *steady(10),
        PhaseEvent(t=20.0, name="evaluating"),
        events.ControlEvent(t=22.0, command="pause", sender="socket", result="ok"),
    )
    schedule = Schedule(measures=True)
    first, later = (estimate(timings, schedule, 20, now) for now in (22.0, 500.0))
    assert first == later
    for event in (
        events.ControlEvent(t=1022.0, command="resume", sender="socket", result="ok"),
        events.EvalEvent(t=1028.0, step=10, loss=1.0, perplexity=2.0, seconds=8.0),
        PhaseEvent(t=1028.0, name="training", done=10),
    ):
        timings.apply(event)
    assert timings.evaluation_seconds == pytest.approx(8.0)


def test_a_pace_is_per_token_where_steps_vary() -> None:
    data = events.DataEvent(t=0.0, rows=40, used=40, dropped={}, tokens=1000, supervised_tokens=250, longest=200)
    # Ten milliseconds a token; the data has 100 tokens a step in the mean, and the steps so far had fewer.
    sizes = [(40, 0.4), (80, 0.8), (60, 0.6), (20, 0.2), (80, 0.8), (40, 0.4)]
    timings = fold(data, *[step(index + 1, index + 1.0, s, tokens) for index, (tokens, s) in enumerate(sizes)])
    assert timings.seconds_per_token == pytest.approx(0.01)
    assert 10 * 0.9 < left_of(timings, Schedule(), 16, 6.0).steps < 10 * 1.5


def test_one_accident_does_not_make_the_pace() -> None:
    items = steady(20)
    items[12] = step(13, 26.0, 300.0)
    assert fold(*items).seconds_per_step == pytest.approx(2.0, rel=0.2)


def test_before_anything_is_known_it_is_a_guess() -> None:
    assert estimate(Timings(), Schedule(), 100, 0.0) is None
    few, many = (left_of(fold(*steady(count)), Schedule(), 100, count * 2.0) for count in (2, 6))
    assert (few.is_rough, many.is_rough) == (True, False)
    assert (eta_words(None), eta_words(few)[0], eta_words(many)[0]) == ("", "~", "3")
    unmeasured = left_of(fold(*steady(6)), Schedule(measures=True), 100, 12.0)
    assert unmeasured.is_rough, "its evaluation at the end was never measured"


def test_before_the_first_step_the_first_evaluation_shows_the_speed_of_the_machine() -> None:
    data = events.DataEvent(
        t=0.0, rows=40, used=40, dropped={}, tokens=4000, supervised_tokens=400, longest=200,
        held_out_rows=8, held_out_tokens=800,
    )  # fmt: skip
    schedule = Schedule(measures=True, baseline=True, batch_rows=4)
    timings = fold(data, PhaseEvent(t=0.0, name="evaluating", total=8))
    timings.apply(PhaseEvent(t=2.0, name="evaluating", detail="loss", done=2, total=8))
    assert estimate(timings, schedule, 10, 2.0) is None, "the first batches warm it up"
    timings.apply(PhaseEvent(t=4.0, name="evaluating", detail="loss", done=4, total=8))
    # Ten milliseconds a token in a forward pass, thirty in a step of 400 tokens.
    eta = left_of(timings, schedule, 10, 4.0)
    assert (eta.steps, eta.evaluation) == pytest.approx((120.0, 4.0 + 8.0))
    assert eta.is_rough
    asked = replace(schedule, answers=True, probe=True)
    # Answers to 8 rows take 28.5 decoding steps of 88 tokens, and the probe 3000; twice, as the end is measured too.
    assert left_of(timings, asked, 10, 4.0).evaluation == pytest.approx(12.0 + 2 * 0.01 * (28.5 * 88 + 3000))
    timings.apply(events.ControlEvent(t=31.0, command="skip_evaluation", sender="socket", result="ok"))
    timings.apply(PhaseEvent(t=31.0, name="training", done=0))
    assert timings.evaluation_seconds is None, "one that was skipped says nothing of the next"


def test_a_run_that_goes_on_from_an_earlier_step_counts_from_there() -> None:
    timings = fold(*steady(16), events.StoppedEvent(t=40.0, reason="", step=16), PhaseEvent(t=90.0, name="importing"))
    timings.apply(PhaseEvent(t=100.0, name="training", done=12, total=20))
    assert left_of(timings, Schedule(), 20, 100.0).steps == pytest.approx(8 * 2.0)


@cases(
    ("values", "found"),
    [
        ({}, Schedule()),
        ({"data.eval": "e.jsonl"}, Schedule(measures=True, samples=3, probe=True)),
        ({"data.eval_share": 0.1, "eval.samples": 0, "train.batch_size": 4}, Schedule(True, probe=True, batch_rows=4)),
        ({"data.eval": "e.jsonl", "eval.exact_match": True, "eval.probe": False}, Schedule(True, answers=True)),
        ({"eval.prompts": "p.txt"}, Schedule(samples=3, prompts=True)),
        ({"eval.every_steps": True, "eval.every_epochs": "x", "checkpoint.every_steps": -1}, Schedule()),
    ],
)
def test_a_schedule_is_read_from_whatever_a_file_holds(values: dict[str, Any], found: Schedule) -> None:
    assert Schedule.of(values) == found


def test_evaluations_by_epochs_are_due_where_the_worker_has_them() -> None:
    schedule = Schedule(measures=True, eval_epochs=0.25)
    assert [schedule.evaluations_by(number, 10.0) for number in range(11)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4]


@cases(
    ("pending", "state", "now", "words"),
    [
        ((), "training", 205.0, ""),
        (("pause",), "training", 205.0, "pausing after this step (≤ 15 s)"),
        (("checkpoint",), "training", 205.0, "saving after this step (≤ 15 s)"),
        (("pause", "stop"), "training", 230.0, "stopping after this step"),
        (("pause",), "starting", 205.0, "pausing …"),
        (("skip_evaluation",), "evaluating", 205.0, "skipping the evaluation …"),
        (("stop",), "evaluating", 205.0, "stopping …"),
    ],
)
def test_pending_requests_are_shown_with_a_bound(pending: tuple[str, ...], state: str, now: float, words: str) -> None:
    timings = fold(PhaseEvent(t=0.0, name="training", done=0), *steady(10, seconds=20.0))
    if state == "evaluating":
        timings.apply(PhaseEvent(t=200.0, name="evaluating", total=8))
        state = "training"
    assert pending_words(pending, RunState(state=state, step=10, step_started=200.0), timings, now) == words


def test_progress_within_a_step_is_reported_where_there_is_time_to_read_it() -> None:
    progress = StepProgress("micro_batches", 3, 8)
    state = RunState(state="training", step_started=100.0, progress=progress)
    fast, slow = fold(*steady(10, seconds=0.5)), fold(*steady(10, seconds=20.0))
    assert step_progress(state, fast, 100.2) is None
    assert step_progress(state, fast, 110.0) == progress, "this one takes long"
    assert step_progress(state, slow, 100.2) == progress
    assert progress_words(progress) == "micro-batch 3/8"
    assert progress_words(StepProgress("evaluation", 18, 80)) == "evaluating 18/80"
    assert progress_words(StepProgress("checkpoint")) == "saving a checkpoint"


def test_the_split_of_the_time_left_is_reported_where_it_is_more_than_steps() -> None:
    assert eta_words(Eta(125.0, 120.0, 0.2), split=True) == "4m 05s (steps 2m 05s, evaluations 2m 00s)"
    assert eta_words(Eta(125.0, 0.0, 0.2), split=True) == "2m 05s"
    assert eta_words(Eta(125.0, 120.0, 0.2)) == "4m 05s"
    assert eta_words(Eta(0.2, 0.0, 0.0)) == "1s"


def test_a_schedule_of_impossible_values_has_nothing_planned() -> None:
    names = ("data.eval_share", "eval.every_steps", "eval.every_epochs", "checkpoint.every_steps", "eval.samples")
    for value in (10**400, -(10**400), True, "4", float("nan"), float("inf"), 0, None):
        schedule = Schedule.of(dict.fromkeys(names, value))
        assert (schedule.evaluations_by(100, 10), schedule.checkpoints_by(100, 100)) == (0, 10)


def test_steps_for_a_file_are_known_to_take_longer_before_they_begin() -> None:
    schedule = Schedule.of({"method.train_for": "q4_0"})
    assert schedule.steps_left(0, 30) == pytest.approx(20 + 1.8 * 10)
    assert schedule.steps_left(20, 30) == pytest.approx(1.8 * 10)
    assert schedule.steps_left(21, 30) == 9, "by then a step takes as long as those to come"
    assert Schedule().steps_left(0, 30) == 30
