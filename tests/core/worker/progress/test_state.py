"""Best step, limits and intervals of a run."""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.config.schema import Config
from core.worker.progress.state import BestStep, Intervals, Limits
from tests.cases import cases
from tests.core.worker.steps.stepper import make_state


def test_a_restored_state_continues_like_the_saved_state() -> None:
    state = make_state(64)
    state.step, state.checkpointing, state.offloading, state.token_budget = 7, True, True, 32
    state.best.measured(7, 0.5)
    state.finite.accepts(7, math.nan, 1.0, [])
    manifest = json.loads(json.dumps({"step": state.step, **state.facts()}))
    state.best.saved(7)
    other = make_state(64)
    other.overrides = {"eval.every_steps": 3}
    other.restore(manifest)
    assert other.facts() == {**state.facts(), "overrides": {"eval.every_steps": 3}}, "what was set stays in force"
    assert (other.step, other.saved) == (7, 7)
    del manifest["activation_offload"]
    other.restore(manifest)
    assert not other.offloading, "earlier versions moved no activations"


def test_a_restarted_run_keeps_its_memory_settings() -> None:
    state = make_state(64)
    beginning = state.facts()
    state.step, state.saved, state.token_budget, state.checkpointing = 5, 4, 16, True
    state.best.measured(5, 0.5)
    state.restart(beginning)
    assert [state.step, state.saved, state.best.best_step] == [0, None, None]
    assert (state.token_budget, state.checkpointing) == (16, True)


LOSSES = st.lists(st.floats(0, 10) | st.just(math.nan) | st.just(math.inf), max_size=12)


def test_the_lowest_finite_loss_is_the_best_and_the_untouched_model_is_no_candidate() -> None:
    best = BestStep()
    assert not best.measured(0, 0.1)
    improved = [best.measured(step, loss) for step, loss in ((2, 2.0), (4, math.nan), (6, 1.5), (8, 1.5))]
    assert improved == [True, False, True, False]
    assert (best.best_step, best.best_loss) == (6, 1.5)
    assert not best.is_exhausted


def test_patience_counts_evaluations_without_a_fall_of_min_delta() -> None:
    best = BestStep(patience=2, min_delta=0.1)
    for step, loss, waited in ((1, 1.0, 0), (2, 0.95, 1), (3, 0.89, 0), (4, math.nan, 1)):
        best.measured(step, loss)
        assert best.waited == waited
        assert not best.is_exhausted
    best.measured(5, 0.85)
    assert best.is_exhausted
    assert best.best_step == 5


def test_a_checkpoint_is_good_once_its_own_weights_have_given_a_finite_loss() -> None:
    best = BestStep()
    best.saved(5)
    assert not best.protected
    best.proved(4)
    assert not best.protected
    best.proved(5)
    best.saved(10)
    assert best.protected == {5}
    best.measured(10, math.nan)
    assert best.last_good == 5
    best.measured(20, 0.5)
    best.saved(20)
    assert best.protected == {20}


@given(losses=LOSSES, cut=st.integers(0, 12), patience=st.integers(1, 4), saves=st.sets(st.integers(1, 12)))
def test_a_resumed_run_selects_like_a_whole_one(losses: list[float], cut: int, patience: int, saves: set[int]) -> None:
    whole, first = BestStep(patience, 0.5), BestStep(patience, 0.5)
    resumed: BestStep | None = None
    for step, loss in enumerate(losses, 1):
        for best in (whole, resumed or first):
            best.proved(step - 1)
            best.measured(step, loss)
        if step in saves or step == cut:
            facts = json.loads(json.dumps((resumed or first).facts(), allow_nan=False))
            for best in (whole, resumed or first):
                best.saved(step)
            if step == cut:
                # Whatever it knew before, as when a run goes back within its process.
                resumed = BestStep(patience, 0.5)
                resumed.measured(99, -1.0)
                resumed.saved(99)
                resumed.restore(facts, step)
                resumed.measured(step, loss)
    assert (resumed or first).facts() == whole.facts()


def test_measurements_after_a_restart_are_not_compared_with_earlier_ones() -> None:
    best = BestStep(patience=2)
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3)):
        best.measured(step, loss)
    assert (best.best_step, best.is_exhausted) == (1, True)
    best.begin_anew()
    assert (best.best_step, best.is_exhausted, best.last_measured) == (None, False, 3)
    assert best.measured(4, 0.5)
    again = BestStep(patience=2)
    again.restore(best.facts(), 4)
    assert (again.best_step, again.best_loss, again.waited) == (4, 0.5, 0)


class Clock:
    """Time and energy as a test says."""

    now = 100.0
    watt_hours: float | None = 0.0

    def limits(self, hours: float | None = None, watt_hours: float | None = None) -> Limits:
        return Limits(hours, watt_hours, lambda: self.watt_hours, lambda: self.now)


def test_hours_of_work_end_a_run_without_pauses_and_energy_where_it_is_known() -> None:
    clock = Clock()
    limits = clock.limits(hours=1.5)
    for later, reached in ((5399, None), (100, None), (1, "train.max_hours = 1.5 is reached")):
        limits.pause(later if later == 100 else 0)
        clock.now += later
        assert limits.reached() == reached
    assert limits.reached(pausing=2) is None, "a pause that is not over yet"
    limits = clock.limits(watt_hours=300)
    energy = "train.max_energy_wh = 300 is reached"
    for clock.watt_hours, reached, is_blind in ((299.0, None, False), (300.0, energy, False), (None, None, True)):
        assert (limits.reached(), limits.is_blind) == (reached, is_blind)


def test_hours_and_energy_before_a_stop_count_after_it() -> None:
    clock = Clock()
    first = clock.limits(hours=1, watt_hours=100)
    clock.now += 3000
    clock.watt_hours = 60.0
    facts = json.loads(json.dumps(first.facts()))
    clock.now += 86400
    clock.watt_hours = 0.0
    second = clock.limits(hours=1, watt_hours=100)
    second.resume(facts)
    assert (second.seconds, second.watt_hours) == (3000, 60)
    clock.watt_hours = 40
    assert second.reached() == "train.max_energy_wh = 100 is reached"
    clock.now += 600
    assert second.reached() == "train.max_hours = 1 is reached"
    earlier = clock.limits(hours=1)
    earlier.resume(None)
    assert earlier.seconds == 0, "earlier versions recorded nothing"


@cases(
    ("evaluation", "saving", "evaluated", "saved"),
    [
        ({"every_steps": 4}, {"every_steps": 3}, [4, 8, 12], [3, 6, 9, 12]),
        ({"every_epochs": 0.25}, {"every_steps": 6}, [4, 8, 12], [6, 12]),
        ({"every_epochs": 1 / 3}, {"every_steps": 5}, [5, 10], [5, 10]),
        ({}, {}, [], [2, 4, 6, 8, 10, 12]),
    ],
)
def test_evaluations_and_checkpoints_are_due_by_steps_or_epochs(
    evaluation: dict[str, Any], saving: dict[str, Any], evaluated: list[int], saved: list[int]
) -> None:
    sections = {"data": {"train": "a", "eval_share": 0.1}, "eval": evaluation, "checkpoint": saving}
    config = Config.model_validate(sections)
    state = make_state()
    state.total_steps = 12
    intervals, found = Intervals(config, state, steps_per_epoch=15), (list[int](), list[int]())
    for state.step in range(1, 13):
        found[0].extend([state.step] * intervals.is_evaluation_due)
        found[1].extend([state.step] * intervals.is_checkpoint_due)
    assert found == (evaluated, saved)
