"""Room on the GPU, from plans that are made up, as no GPU is there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.errors import UserError
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.models.architecture.families import read_architecture
from core.queue.runner import judge, lack_of_room
from tests.cases import cases
from tests.core.models.architecture import published
from tests.core.queue.helpers import config_for
from tests.measured_here import bounded_here

__all__ = ["bounded_here"]

GB = 10**9


def planned(needed: int, machine: Machine) -> Plan:
    """The plan of a model on the card, as if it needed so many bytes."""
    architecture = read_architecture(published.SMOLLM2_135M, "m")
    return replace(make_plan(architecture, config_for(), machine), needed_bytes=needed)


@cases(
    ("free", "needed", "waits"),
    [(20 * GB, 9 * GB, False), (8 * GB, 9 * GB, True), (20 * GB, 30 * GB, False)],
    ids=["it fits", "others use the card", "it never fits"],
)
def test_a_run_waits_only_for_what_others_may_give_back(free: int, needed: int, waits: bool) -> None:
    reason = judge(Machine("cuda", free), 24 * GB, lambda machine: planned(needed, machine))
    assert (reason is not None) is waits
    if reason is not None:
        assert reason == "9.0 GB of GPU memory, of which 8.0 GB are free while other programs use it"


def test_unknown_memory_is_not_waited_for() -> None:
    assert judge(Machine("cuda"), 24 * GB, lambda machine: planned(9 * GB, machine)) is None


def test_a_run_on_the_cpu_and_one_that_cannot_be_planned_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Machine:
        raise UserError("There is no such card.")

    monkeypatch.setattr("core.runs.outlook.forecast.this_machine", refuse)
    assert lack_of_room(config_for()) is None
    assert lack_of_room(config_for(hardware={"device": "cuda"})) is None
