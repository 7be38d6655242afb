"""Candidates for a chat beside a run: its base, its checkpoints, other runs on the base."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from core.chat.exported import exports_of
from core.chat.request import BASE, TUNED, Source
from core.config.schema import WEIGHT_METHODS
from core.errors import UserError
from core.runs.catalog.trained import (
    REFUSED,
    checkpoint_steps,
    has_result,
    is_adapter,
    reference_to,
    result_step,
    stand_in_step,
    taken_step,
)
from core.runs.record.history import read_history
from core.runs.record.sentences import brief_id
from core.runs.record.store import Run, list_runs
from core.units import format_number

#: Newest other runs that are considered.
_RUNS = 50


@dataclass(frozen=True)
class Candidate:
    """A model that can answer: a source of the base that is loaded."""

    source: Source
    name: str
    """Its name, for a list."""
    about: str
    """Short facts: its held-out loss, its run."""


def find_candidates(run: Run) -> list[Candidate]:
    """Models that can answer from one loaded base, the run itself first. Reads files; belongs in a thread.

    Args:
        run: The run; a run that trains weights themselves shares no base, so only it and its exports are listed.
    """
    live = not run.state().is_over
    losses = held_out_losses(run)
    steps = list(reversed(checkpoint_steps(run)))
    own = "in training, answers between two steps" if live else "result of the run"
    if (taken := taken_step(run)) is not None:
        own = f"step {taken}, taken as the result"
    if not live and steps and not has_result(run):
        step = stand_in_step(run)
        kind = "newest checkpoint" if step == steps[0] else "checkpoint"
        own = "its checkpoint is gone" if step is None else f"{kind}, step {step}"
        own += REFUSED if run.state().refused else ""
    found = [Candidate(TUNED, "tuned", own)]
    exports = [
        Candidate(str(each.path), f"export {each.quant}".rstrip(), f"by llama.cpp: {each.path.name}")
        for each in exports_of(run.id)
    ]
    if not run.trains_adapter:
        return found + exports
    found.append(Candidate(BASE, "base", "the model before training"))
    found += [Candidate(reference_to(run, step), f"step {step}", _loss(losses, step)) for step in steps]
    found += exports
    values = run.values()
    for other in list_runs()[:_RUNS]:
        if other.path != run.path and _shares_base(values, other.values()):
            found += _of_other(other)
    return found


def held_out_losses(run: Run) -> dict[int, float]:
    """The held-out loss of a run by step; empty if it was not measured."""
    with suppress(UserError, OSError):
        return {event.step: event.loss for event in read_history(run).evals}
    return {}


def _of_other(other: Run) -> list[Candidate]:
    steps, losses = list(reversed(checkpoint_steps(other))), held_out_losses(other)
    found = []
    if is_adapter(other.adapter_path):
        step = taken_step(other) or result_step(other)
        step = max(losses, default=-1) if step is None else step
        found.append(Candidate(reference_to(other), brief_id(other.id), f"result{_told(_loss(losses, step))}"))
    return found + [
        Candidate(reference_to(other, step), f"{brief_id(other.id)}@{step}", _loss(losses, step) or "checkpoint")
        for step in steps
    ]


def _shares_base(values: dict[str, Any], others: dict[str, Any]) -> bool:
    """True if two runs name the same base, loaded alike; the engine compares the files themselves."""
    methods = (values.get("method.name", "qlora"), others.get("method.name", "qlora"))
    if any(method in WEIGHT_METHODS for method in methods):
        return False
    same = all(values.get(name) == others.get(name) for name in ("model.base", "model.keep_16bit"))
    return same and (methods[0] == "qlora") == (methods[1] == "qlora")


def _loss(losses: dict[int, float], step: int) -> str:
    return f"held-out loss {format_number(losses[step])}" if step in losses else ""


def _told(text: str) -> str:
    return f", {text}" if text else ""
