"""Pace of earlier runs, to estimate the duration of the next one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from core.config.schema import Config
from core.errors import UserError
from core.runs.history import read_history
from core.runs.store import Run, list_runs

#: Most runs examined, newest first, for a comparable one.
LOOKED_AT = 50
#: Steps that a run must have done for its pace to be meaningful.
FEWEST_STEPS = 3
#: Largest record read for an estimate, in bytes.
LONGEST_RECORD = 64 << 20
#: Largest plausible figure.
_GREATEST = 1e12


@dataclass(frozen=True)
class Pace:
    """The pace of an earlier run.

    Args:
        run: Id of the run.
        tokens_per_second: Tokens without padding over the seconds in steps.
        seconds_per_step: Mean of its steps.
        watt_hours_per_token: Energy over the whole run; None if no device reports power.
        rows_per_step: Its batch size.
        watt_hours_per_second: Energy over the seconds in steps; None if no device reports power.
        work_share: Share of the seconds in steps that was work, and not a rest by the governor.
        evaluation_seconds: Duration of its newest evaluation; None if it had none.
        checkpoint_seconds: Duration of a checkpoint; None if it wrote none.
        evaluated: What its evaluations measure, to be compared (:func:`evaluated_by`).
    """

    run: str
    tokens_per_second: float
    seconds_per_step: float
    watt_hours_per_token: float | None
    rows_per_step: int = 1
    watt_hours_per_second: float | None = None
    work_share: float = 1.0
    evaluation_seconds: float | None = None
    checkpoint_seconds: float | None = None
    evaluated: str = ""


def evaluated_by(config: Config) -> str:
    """What each evaluation of a run measures, as a text: two runs with the same one measure as much each time."""
    rows = {"eval", "eval_share"} | ({"train"} if config.data.eval is None else set())
    measured = {"max_rows", "exact_match", "samples", "prompts", "probe"}
    return config.model_dump_json(include={"data": rows, "eval": measured, "chat": {"max_new_tokens"}})


class PaceBook:
    """Cached list of runs with their paces, so that repeated estimates do not read directories again.

    The record of a run is read when its pace is first needed, and then cached.

    Args:
        runs: The runs, newest first; None for all there are.
    """

    def __init__(self, runs: Iterable[Run] | None = None) -> None:
        found = list_runs() if runs is None else runs
        self._runs = [(run, config, os.path.realpath(config.model.base)) for run, config in _readable(found)]
        self._paces: dict[str, Pace | None] = {}

    def pace(self, config: Config) -> Pace | None:
        """Pace of the newest run with the same base, method, device and gradient checkpointing; None if there
        is none.
        """
        mine = os.path.realpath(config.model.base)
        for run, other, theirs in self._runs:
            if not _is_alike(config, mine, other, theirs):
                continue
            if run.id not in self._paces:
                self._paces[run.id] = _pace(run, other)
            if (pace := self._paces[run.id]) is not None:
                return pace
        return None


def _readable(runs: Iterable[Run]) -> Iterator[tuple[Run, Config]]:
    for run in itertools.islice(runs, LOOKED_AT):
        with suppress(UserError):
            yield run, run.config()


def _is_alike(config: Config, mine: str, other: Config, theirs: str) -> bool:
    return (
        (config.model.base == other.model.base or mine == theirs)
        and config.method.name == other.method.name
        and (config.hardware.device, config.hardware.gpu) == (other.hardware.device, other.hardware.gpu)
        and config.memory == other.memory
    )


def _pace(run: Run, config: Config) -> Pace | None:
    try:
        if run.events_path.stat().st_size > LONGEST_RECORD:
            return None
    except OSError:
        return None
    history = read_history(run)
    rate, steps = history.tokens_per_second, history.step_count
    if rate is None or steps < FEWEST_STEPS:
        return None
    energy = history.energy_wh if history.energy_wh and history.energy_wh > 0 else None
    pace = Pace(
        run.id,
        rate,
        history.step_seconds / steps,
        energy / history.tokens if energy and history.tokens else None,
        config.train.batch_size,
        energy / history.step_seconds if energy else None,
        history.work_share,
        history.timings.evaluation_seconds,
        history.timings.checkpoint_seconds,
        evaluated_by(config),
    )
    # Implausible figures predict nothing.
    figures = (pace.tokens_per_second, pace.seconds_per_step, pace.watt_hours_per_token, pace.watt_hours_per_second)
    return pace if all(figure is None or 0 < figure < _GREATEST for figure in figures) else None
