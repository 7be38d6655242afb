"""Numbers that go wrong without an error: an evaluation must leave no trace in what is trained."""

from __future__ import annotations

from core.runs.record.events import EvalEvent
from tests.e2e.workers import Workers, adapter_bytes, finish, only, steps


def test_evaluations_between_steps_change_no_bit_of_a_base_in_4_bits(workers: Workers) -> None:
    """On some CPUs bitsandbytes packs 4-bit weights anew at the first evaluation, and gradients are lost after it."""
    without, measured = (
        workers.start("measured", train={"max_steps": 8}, eval={"every_steps": every}) for every in (None, 2)
    )
    for run in (without, measured):
        finish(run)
    assert [event.step for event in only(EvalEvent, measured)][:3] == [2, 4, 6]
    assert [(event.loss, event.grad_norm) for event in steps(measured)] == [
        (event.loss, event.grad_norm) for event in steps(without)
    ]
    assert adapter_bytes(measured) == adapter_bytes(without)
