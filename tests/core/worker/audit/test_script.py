"""The script of a replay: events are compared with the record, and commands are repeated at their place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from core.audit.result import Difference
from core.audit.spans import Span
from core.runs.record.events import Event, NoticeEvent, PhaseEvent, SampleEvent
from core.worker.audit.script import ReplayEnded, Script, ShortOfMemory
from core.worker.loss.objectives import SupervisedObjective
from core.worker.process.control import Controls
from tests.core.audit.test_spans import checkpoint, control, evaluation, notice, step

SHORT = notice("memory_cut", "Memory ran out at step 2: micro-batches are cut.")


def script(*events: Event, begin: int = 0) -> tuple[Script, Controls, list[int]]:
    controls, compared = Controls(), list[int]()

    def compare(number: int) -> list[Difference]:
        compared.append(number)
        return []

    return Script(Span(begin, 9, events), controls, compare), controls, compared


def given(controls: Controls) -> list[tuple[str, dict[str, object]]]:
    return [(command.request.command, command.request.args) for command in controls.waiting()]


def test_commands_are_given_where_they_were_carried_out() -> None:
    change = control("set", "train.learning_rate = 0.001, eval.every_steps = None")
    made, controls, compared = script(step(1), change, step(2), checkpoint(2), step(3))
    made.give()
    assert given(controls) == []
    made.heard(PhaseEvent(name="training"))
    made.heard(step(1))
    assert given(controls) == [("set", {"train.learning_rate": 0.001, "eval.every_steps": None})]
    made.heard(step(2))
    assert given(controls) == [("checkpoint", {})]
    made.heard(checkpoint(2))
    assert compared == [2]
    with pytest.raises(ReplayEnded):
        made.heard(step(3))
    assert made.differences == []


def test_a_figure_that_differs_in_its_last_bit_is_named_and_times_do_not_count() -> None:
    made, _, _ = script(step(1), evaluation(1))
    other = dataclasses.replace(step(1), grad_norm=1.0000000000000002, seconds=9.0, tokens_per_second=1.0)
    made.heard(other)
    (difference,) = made.differences
    assert difference.what == "grad_norm of step 1 came out otherwise."
    assert (difference.tensor, difference.recorded, difference.found) == ("grad_norm", "1.0", "1.0000000000000002")
    nan = dataclasses.replace(evaluation(1), loss=float("nan"))
    with pytest.raises(ReplayEnded):
        made.heard(nan)
    assert made.differences[1].found == "'NaN'"


def test_another_event_than_the_recorded_one_ends_it() -> None:
    made, _, _ = script(step(1), evaluation(1), step(2))
    made.heard(step(1))
    with pytest.raises(ReplayEnded):
        made.heard(step(2))
    assert [difference.what for difference in made.differences] == [
        "The record has the evaluation after step 1 where step 2 came out."
    ]


def test_a_checkpoint_that_cannot_be_written_ends_it_where_a_run_would_wait() -> None:
    made, _, _ = script(step(1), checkpoint(1), step(2))
    made.heard(step(1))
    with pytest.raises(ReplayEnded):
        made.heard(notice("checkpoint_failed", "The checkpoint was not written: the disk is full."))
    assert (made.is_astray, made.differences) == ("The checkpoint was not written: the disk is full.", [])


def test_answers_after_the_checkpoint_of_their_step_may_be_told_or_not() -> None:
    sample = SampleEvent(step=2, prompt="p", text="t", source="step-2")
    made, _, _ = script(step(3), checkpoint(3), step(4), begin=2)
    for event in (sample, step(3), checkpoint(3), dataclasses.replace(sample, step=3)):
        made.heard(event)
    assert made.differences == []
    late = dataclasses.replace(sample, step=4)
    with pytest.raises(ReplayEnded):
        made.heard(late)


def test_a_shortage_of_a_step_is_not_one_of_the_rehearsal_before_it() -> None:
    for message, rehearses in (
        ("Memory ran out at step 1: cut.", False),
        ("Memory ran out at the rehearsal: cut.", True),
    ):
        made, _, _ = script(notice("memory_cut", message), step(1))
        made.heard(PhaseEvent(name="rehearsing"))
        assert made.expects_shortage is rehearses
        made.heard(PhaseEvent(name="training"))
        assert made.expects_shortage is not rehearses


class Windows(SupervisedObjective):
    """An objective that counts its windows."""

    def __init__(self) -> None:
        self.begun = 0

    def begin(self, window: Sequence[int], token_budget: int) -> float:
        self.begun += 1
        return 1.0


def test_memory_runs_out_again_where_it_did_and_nowhere_else() -> None:
    made, _, _ = script(step(1), SHORT, SHORT, step(2), checkpoint(2))
    inner = Windows()
    objective = ShortOfMemory(inner, made)
    objective.begin([], 64)
    made.heard(step(1))
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            objective.begin([], 64)
        made.heard(SHORT)
    objective.begin([], 64)
    made.heard(step(2))
    assert inner.begun == 2


def test_memory_that_runs_out_in_the_replay_alone_is_not_the_fault_of_the_run() -> None:
    made, _, _ = script(step(1), step(2))
    with pytest.raises(ReplayEnded):
        made.heard(NoticeEvent(level="warning", code="memory_cut", message="Memory ran out at step 1."))
    assert made.is_astray.startswith("Memory ran out as it was executed again")
    assert made.differences == []
