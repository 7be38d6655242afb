"""The best step, the last good checkpoint and early stopping."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from core.worker.progress.state import BestStep

LOSSES = st.lists(st.floats(0, 10) | st.just(math.nan) | st.just(math.inf), max_size=12)


def test_the_lowest_finite_loss_is_the_best_and_the_untouched_model_is_no_candidate() -> None:
    best = BestStep()
    assert not best.measured(0, 0.1)
    assert [best.measured(step, loss) for step, loss in ((2, 2.0), (4, math.nan), (6, 1.5), (8, 1.5))] == [
        True,
        False,
        True,
        False,
    ]
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
def test_a_resumed_run_selects_as_an_uninterrupted_one(
    losses: list[float], cut: int, patience: int, saves: set[int]
) -> None:
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


def test_what_is_measured_after_a_new_beginning_is_compared_with_nothing_before() -> None:
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
