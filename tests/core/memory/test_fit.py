"""The memory of a run with another base model."""

from __future__ import annotations

from core.config.schema import Config, DataSection, MethodSection
from core.memory.fit import fit
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.models.inspection import STARTER_FACTS

GIGABYTE = 1_000_000_000
CONFIG = Config(data=DataSection(train="rows"))


def test_it_is_that_of_the_plan() -> None:
    architecture = STARTER_FACTS.architecture
    assert architecture is not None
    machine = Machine("cpu", 20 * GIGABYTE)
    found = fit(architecture, CONFIG, machine)
    plan = make_plan(architecture, CONFIG, machine)
    assert (found.needed_bytes, found.free_bytes, found.fits) == (plan.needed_bytes, 20 * GIGABYTE, True)
    assert fit(architecture, CONFIG, Machine("cpu", GIGABYTE // 10)).fits is False
    unknown = fit(architecture, CONFIG, Machine("cuda"))
    assert unknown.fits is None
    assert unknown.needed_bytes


def test_what_is_not_known_has_a_reason() -> None:
    assert "architecture is unknown" in fit(None, CONFIG, Machine("cpu", GIGABYTE)).reason
    nowhere = CONFIG.model_copy(update={"method": MethodSection(target_modules=["none_of_these"])})
    found = fit(STARTER_FACTS.architecture, nowhere, Machine("cpu", GIGABYTE))
    assert found.needed_bytes is None
    assert "matches no layer" in found.reason
