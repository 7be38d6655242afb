"""Plans against training steps that are traced on the stand-in card; ``traced.toml`` has the recorded figures.

``python -m tests.core.memory.test_traced`` writes them anew. A change of the figures is a change of what a step does on
a card: the commit says why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomlkit

from core.config.schema import Config
from core.memory.phases import CUDA_FRAGMENTATION, CUDA_FRAGMENTATION_FIXED
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.models.architecture.architecture import read_architecture
from tests.fake_cuda import guard
from tests.fake_cuda.card import CARDS
from tests.fake_cuda.cases import PUBLISHED, Case
from tests.fake_cuda.test_step import Steps, on_card, steps
from tests.measured_here import measured_here
from tests.short_list import long_but

__all__ = ["measured_here", "steps"]

pytestmark = pytest.mark.slow

RECORD = Path(__file__).with_name("traced.toml")
#: Steps whose micro-batches are all alike, which is what a plan is for.
PLANNED = [name for name, case in PUBLISHED.items() if not case.mixed]
#: Steps of Llama models that fit on a card; the base of four layers is too small for a share to mean anything.
WHOLE = [name for name in PUBLISHED if not name.startswith(("mixture", "8B, full"))]
SHORT = ["8B, 2 x 2048, kept", "1B, 4 x 2048, kept"]
#: Largest relative differences: of the plan's tensors, of its speed, and of the recorded bytes.
TENSORS, SPEED, BYTES = 0.03, 0.1, 0.01


def plan_of(case: Case, card: str) -> Plan:
    """The plan of a step with the decisions of a case."""
    return make_plan(
        read_architecture(dict(case.model), "m"),
        Config.model_validate(case.sections),
        Machine("cuda", CARDS[card].total, capability=CARDS[card].capability, device=CARDS[card].name),
        token_budget=case.rows * case.length,
        checkpointing=case.kept is not None,
        kept_layers=case.kept or 0,
        dequantized=False,
    )


def tensors_of(plan: Plan) -> int:
    """Bytes of a plan's tensors."""
    parts = plan.by_name()
    return plan.total_bytes - parts["runtime"] - parts["fragmentation"]


def figures(step: dict[str, Any]) -> dict[str, int]:
    """The recorded figures of a step."""
    assert "error" not in step, step["traceback"]
    return {
        "launches": step["launches"],
        "waits": sum(count for *_, count in step["waits"]),
        "bytes": step["bytes"],
    }


@pytest.mark.parametrize("name", long_but(SHORT, PUBLISHED))
def test_a_step_does_what_is_recorded(name: str, steps: Steps) -> None:
    recorded = tomli.loads(RECORD.read_text(encoding="utf-8"))[name]
    found = figures(steps(name))
    assert found == {**recorded, "bytes": pytest.approx(recorded["bytes"], rel=BYTES)}


@pytest.mark.parametrize("name", long_but(SHORT, PLANNED))
def test_the_plan_has_the_tensors_and_the_speed_of_a_step(name: str, steps: Steps) -> None:
    """Its speed is that of the roofline of all kernels, at the rates that the plan assumes as well; below it for a
    mixture, whose products of few rows are slower."""
    case, step = PUBLISHED[name], steps(name)
    for card, seconds in step["seconds"].items():
        plan = plan_of(case, card)
        assert tensors_of(plan) == pytest.approx(step["held"] + step["peak"], rel=TENSORS)
        share = plan.step.tokens_per_second * seconds / (case.rows * case.length)
        assert share <= 1 + SPEED, card
        assert share >= 1 - SPEED or "num_experts" in case.model, card


@pytest.mark.parametrize("name", long_but(SHORT, WHOLE))
def test_the_plan_covers_what_the_allocator_holds(name: str, steps: Steps) -> None:
    """The share of the allocator is assumed; here torch's is replayed over the allocations of two steps."""
    step, tensors = steps(name), tensors_of(plan_of(PUBLISHED[name], "4090"))
    for segments, share in (("expandable", CUDA_FRAGMENTATION), ("fixed", CUDA_FRAGMENTATION_FIXED)):
        assert step["held"] + step["reserved"][segments] <= (1 + share) * tensors, segments


def write(reply: Callable[[str], object] = print) -> None:
    """Write the recorded figures anew."""
    if reason := guard.missing():
        sys.exit(f"The figures cannot be traced here: {reason}.")
    document = tomlkit.document()
    document.add(tomlkit.comment("Written by python -m tests.core.memory.test_traced."))
    for name, step in on_card("4090", *PUBLISHED).items():
        document.add(name, tomlkit.item(figures(step)))
        reply(f"{name}: {figures(step)}")
    RECORD.write_text(tomlkit.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    write()
