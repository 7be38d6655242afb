"""Configurations and plans of the tests of memory."""

from __future__ import annotations

from typing import Any

from core.config.schema import Config
from core.memory.plan import Machine, Plan
from core.memory.planner import make_plan
from core.memory.rows import Rows
from core.models.architecture.architecture import read_architecture

GIB = 1 << 30


def config_of(**sections: Any) -> Config:
    return Config.model_validate({"data": {"train": "x"}, **sections})


def plan_of(
    model: dict[str, Any],
    rows: Rows | None = None,
    machine: Any = None,
    *,
    kind: Any = "cuda",
    limit: Any = None,
    **sections: Any,
) -> Plan:
    """The plan of a published model on a machine, by default one with nothing but a device."""
    return make_plan(read_architecture(model, "m"), config_of(**sections), machine or Machine(kind, limit), rows)
