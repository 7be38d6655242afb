"""Disk space of a run: its checkpoints and its adapter."""

from __future__ import annotations

from core.config.facts import DiskNeed
from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine
from core.memory.planner import make_plan
from core.models.architecture.architecture import Architecture


def disk_need(model: Architecture | None, config: Config) -> DiskNeed | None:
    """Bytes that a run writes; None if unknown.

    Args:
        model: Architecture of the base model, if known.
        config: Configuration of the run.
    """
    if model is None:
        return None
    try:
        # Files are the same on every device.
        plan = make_plan(model, config, Machine("cpu"))
    except UserError:
        return None
    return DiskNeed(plan.checkpoint_bytes, plan.disk_bytes)
