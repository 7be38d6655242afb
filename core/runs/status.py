"""The present of a run from the end of its files: quick enough for a status bar that asks every few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.runs.catalog import RunCatalog, RunRow
from core.runs.eta import Eta, estimate
from core.runs.events import Event
from core.runs.history import RunHistory, last_evaluation
from core.runs.ranks import Rank, read_ranks
from core.runs.schedule import Schedule
from core.runs.state import RunState
from core.runs.store import Run, list_runs
from core.runs.tail import last_events

#: Bytes at the end of a record that are read: some hundred steps.
TAIL_BYTES = 256 << 10


@dataclass(frozen=True)
class RunStatus:
    """The present of a run."""

    run: Run
    state: RunState
    row: RunRow
    recent: RunHistory
    """Its newest events only, folded: step, devices, energy since its worker has started, phase."""
    eval_loss: float | None
    """Loss of the last evaluation; None before one."""
    eta: Eta | None
    """The time left, by the pace of the newest steps; None while it is unknown."""
    ranks: tuple[Rank, ...] = ()
    """Its processes with their signs of life; empty for a run of one."""


def read_status(run: Run, now: float) -> RunStatus:
    """The present of a run.

    Args:
        run: The run.
        now: Unix seconds.
    """
    events: list[Event] = list(last_events(run.events_path, limit=TAIL_BYTES))
    recent, state = RunHistory(), run.state()
    for event in reversed(events):
        recent.apply(event)
    evaluated = recent.evals[-1] if recent.evals else last_evaluation(run)
    schedule = Schedule.of(run.values()).changed(recent.settings)
    eta = None if state.is_over else estimate(recent.timings, schedule, state.total_steps, now)
    loss = evaluated.loss if evaluated is not None else None
    return RunStatus(run, state, RunCatalog().row(run), recent, loss, eta, read_ranks(run))


def live_runs() -> list[Run]:
    """The runs that have not ended, newest first."""
    return [run for run in list_runs() if not run.state().is_over]


def newest_live(runs: Sequence[Run]) -> Run | None:
    """The run that is going on: the first of some that has a process, else the first that waits for one.

    Args:
        runs: The runs, newest first.
    """
    waiting = None
    for run in runs:
        state = run.state()
        if state.pid is not None and not state.is_over:
            return run
        if waiting is None and not state.is_over:
            waiting = run
    return waiting
