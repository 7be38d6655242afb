"""Memory fit: what a run with another base model would take, against what is free."""

from __future__ import annotations

from dataclasses import dataclass

from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.models.architecture.architecture import Architecture


@dataclass(frozen=True)
class Fit:
    """Memory that a run needs.

    Args:
        needed_bytes: Bytes at the peak; None if unknown.
        free_bytes: Free bytes of the device; None if unknown.
        fits: Whether they suffice; None if unknown.
        reason: The reason why nothing is known, in a sentence.
    """

    needed_bytes: int | None = None
    free_bytes: int | None = None
    fits: bool | None = None
    reason: str = ""


def fit(architecture: Architecture | None, config: Config, machine: Machine) -> Fit:
    """The memory of a configuration's run with a model.

    Args:
        architecture: The model; None if it is not known.
        config: The configuration; its own model does not matter.
        machine: The machine.
    """
    if architecture is None:
        return Fit(free_bytes=machine.limit_bytes, reason="Its architecture is unknown, so its memory cannot be told.")
    try:
        plan = make_plan(architecture, config, machine)
    except UserError as error:
        return Fit(free_bytes=machine.limit_bytes, reason=error.message)
    return Fit(plan.needed_bytes, plan.limit_bytes, plan.fits)
