"""How fast earlier runs have trained, for a guess at how long the next one takes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from core.config.schema import Config
from core.errors import UserError
from core.runs.history import read_history
from core.runs.store import Run, list_runs

#: Runs looked at, newest first, until one tells.
LOOKED_AT = 50
#: Steps that a run must have done before its pace means something.
FEWEST_STEPS = 3
#: Records of more bytes are not read for a guess.
LONGEST_RECORD = 64 << 20


@dataclass(frozen=True)
class Pace:
    """The pace of an earlier run.

    Args:
        run: Its id.
        tokens_per_second: Tokens without padding over the seconds in steps.
        seconds_per_step: Mean of its steps.
        watt_hours_per_token: Over the whole run; None where no device told its power.
    """

    run: str
    tokens_per_second: float
    seconds_per_step: float
    watt_hours_per_token: float | None


def earlier_pace(config: Config) -> Pace | None:
    """The pace of the newest run with the same base, method, device and recomputing of activations; None for none."""
    for run in list_runs()[:LOOKED_AT]:
        if _is_alike(run, config) and (pace := _pace(run)) is not None:
            return pace
    return None


def _is_alike(run: Run, config: Config) -> bool:
    try:
        other = run.config()
    except UserError:
        return False
    mine, theirs = os.path.realpath(config.model.base), os.path.realpath(other.model.base)
    same_base = config.model.base == other.model.base or mine == theirs
    return (
        same_base
        and config.method.name == other.method.name
        and config.hardware == other.hardware
        and config.memory == other.memory
    )


def _pace(run: Run) -> Pace | None:
    try:
        if run.events_path.stat().st_size > LONGEST_RECORD:
            return None
    except OSError:
        return None
    history = read_history(run)
    rate, steps = history.tokens_per_second, len(history.loss.steps)
    if rate is None or steps < FEWEST_STEPS:
        return None
    energy = history.energy_wh / history.tokens if history.energy_wh and history.tokens else None
    return Pace(run.id, rate, history.step_seconds / steps, energy)
