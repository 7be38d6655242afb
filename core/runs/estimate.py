"""Estimate of a run before it starts: duration and energy, at the pace of an earlier run of its kind, else by its
memory plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.analysis.split import held_out_count
from core.config.derived import holds_out, step_count, usual_steps
from core.config.schema import Config
from core.memory.calibration import is_known_speed
from core.memory.plan import Machine
from core.memory.rows import Rows
from core.memory.strategy import Chosen
from core.runs.early_end import EarlyEnd, cut
from core.runs.eta import RESULT_SHARE
from core.runs.pace import Pace, evaluated_by
from core.runs.schedule import checkpoints_by, evaluations_by

#: Basis of an estimate: the pace of an earlier run, which was measured, or the step time of the memory plan.
Basis = Literal["pace", "plan"]
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Estimate:
    """Estimated duration and energy, as far as the limits of the run allow.

    Args:
        seconds: Duration of the optimizer steps, and of ``between_seconds``.
        steps: Number of optimizer steps, those after an early end among them.
        watt_hours: Energy of the steps, by the plan at most; None if the earlier run had no reading, or the device
            tells no power limit.
        run: The earlier run; empty for an estimate by the plan.
        by: Basis of the estimate.
        assumed: What the plan does not know and assumes, in words: ``rows of 2048 tokens``.
        elsewhere: Whether it is for a card that is not here.
        early_end: Where a limit of the run ends it; None where it does all its steps.
        work_share: Share of the steps' duration that is work at full speed; the rest is what the governor of the
            earlier run has let it rest.
        between_seconds: Duration of the evaluations and checkpoints, as the earlier run has measured them; 0 by the
            plan, which knows nothing of them.
    """

    seconds: float
    steps: int
    watt_hours: float | None
    run: str
    by: Basis = "pace"
    assumed: tuple[str, ...] = ()
    elsewhere: bool = False
    early_end: EarlyEnd | None = None
    work_share: float = 1.0
    between_seconds: float = 0.0

    @property
    def full_speed_seconds(self) -> float:
        """Duration without rests by the governor."""
        return (self.seconds - self.between_seconds) * self.work_share + self.between_seconds


@dataclass(frozen=True)
class Unknown:
    """No estimate.

    Args:
        reason: Why there is none, as a clause: ``the speed of this CPU is not known to the plan``.
    """

    reason: str


@dataclass(frozen=True)
class Planned:
    """Memory plan of a run, to estimate it by.

    Args:
        chosen: The plan of each card, with their number.
        machine: The machine that it was made for.
        rows: Lengths of the rows that it was made for, or of a sample of them; None where they are assumed.
    """

    chosen: Chosen
    machine: Machine
    rows: Rows | None


def expected(
    config: Config,
    pace: Pace | None,
    plan: Callable[[], Planned | Unknown],
    rows: Rows | None = None,
    count: int | None = None,
) -> Estimate | Unknown:
    """The estimate of a run: at the pace of an earlier one of its kind where there is one, else by the memory plan; as
    far as its limits allow.

    Args:
        config: Configuration of the run.
        pace: Pace of the earlier run; None where there is none.
        plan: Makes the plan; called only where it is needed.
        rows: Lengths of all of its rows; None if unknown.
        count: Number of rows trained on, if their lengths are unknown.
    """
    found = estimate(config, rows, pace, count) if pace is not None else None
    if found is not None:
        return limited(config, found)
    if _steps(config, _kept(config, rows), count) is None:
        return Unknown("the number of its rows is not known")
    planned = plan()
    guess = planned if isinstance(planned, Unknown) else by_plan(config, planned, rows, count)
    return guess if isinstance(guess, Unknown) else limited(config, guess)


def limited(config: Config, found: Estimate) -> Estimate:
    """An estimate of all steps of a run, as far as its limits allow."""
    seconds, energy, end = cut(config, found.steps, found.seconds, found.watt_hours, is_most=found.by == "plan")
    between = found.between_seconds * (seconds / found.seconds if found.seconds > 0 else 1.0)
    return replace(found, seconds=seconds, watt_hours=energy, early_end=end, between_seconds=between)


def estimate(config: Config, rows: Rows | None, pace: Pace, count: int | None = None) -> Estimate | None:
    """Estimated duration at an earlier run's pace; None if the number of steps is unknown.

    If the rows' tokens are unknown, a row is assumed to take as long as one of the earlier run.

    Args:
        config: Configuration of the run.
        rows: Lengths of its rows; None if unknown.
        pace: Pace of the earlier run.
        count: Number of rows, if their lengths are unknown.
    """
    train, kept = config.train, _kept(config, rows)
    if (steps := _steps(config, kept, count)) is None:
        return None
    longer = usual_steps(config, steps) / max(steps, 1)
    if kept is None or kept.tokens is None:
        seconds = longer * steps * pace.seconds_per_step * train.batch_size / pace.rows_per_step
        watts = pace.watt_hours_per_second
        energy = None if watts is None else watts * seconds
    else:
        tokens = longer * steps * min(train.batch_size, kept.count) * kept.tokens / kept.count
        each = pace.watt_hours_per_token
        energy = None if each is None else each * tokens
        seconds = tokens / pace.tokens_per_second
    between = _between(config, pace, steps, _trained_rows(config, kept, count))
    return Estimate(seconds + between, steps, energy, pace.run, work_share=pace.work_share, between_seconds=between)


def _between(config: Config, pace: Pace, steps: int, rows: int | None) -> float:
    """Seconds of the evaluations and checkpoints of a run, as the earlier one has measured them: evaluations only where
    they measure the same."""
    checkpoint, evaluation = pace.checkpoint_seconds or 0.0, 0.0
    checkpoints = checkpoints_by(steps - 1, config.checkpoint.every_steps, steps) + 1
    if pace.evaluation_seconds is not None and pace.evaluated == evaluated_by(config):
        evaluation = pace.evaluation_seconds
    asks = config.eval
    per_epoch = math.ceil(rows / config.train.batch_size) if rows else None
    evaluations = evaluations_by(steps - 1, asks.every_steps, asks.every_epochs, per_epoch) + 1 + asks.baseline
    if not holds_out(config) and asks.prompts is None:
        evaluations = 0
    return evaluations * evaluation + (checkpoints + RESULT_SHARE) * checkpoint


def by_plan(config: Config, planned: Planned, rows: Rows | None, count: int | None) -> Estimate | Unknown:
    """Estimated duration by the plan's step time; energy at the power limit of all cards, so that it is at most that.

    Args:
        config: Configuration of the run.
        planned: Its memory plan.
        rows: Lengths of all of its rows; None if unknown.
        count: Number of rows, if their lengths are unknown.
    """
    steps, machine, chosen = _steps(config, _kept(config, rows), count), planned.machine, planned.chosen
    if steps is None:
        return Unknown("the number of its rows is not known")
    if (lack := lack_of_speed(machine)) is not None:
        return lack
    seconds = usual_steps(config, steps) * chosen.plan.step.seconds
    watts = machine.power_limit_w
    energy = None if watts is None else watts * chosen.sharing.cards.number * seconds / _SECONDS_PER_HOUR
    assumed = []
    if planned.rows is None:
        assumed.append(f"rows of {chosen.plan.micro_batch.length} tokens")
    if not is_known_speed(machine.device, machine.calibration):
        assumed.append("the speed of a common card")
    return Estimate(seconds, steps, energy, "", "plan", tuple(assumed), machine.elsewhere)


def lack_of_speed(machine: Machine) -> Unknown | None:
    """Why no duration can be told for a machine; None where it can.

    CPUs differ too much by their cores and instructions to take the rates of another one.
    """
    if machine.kind == "cpu" and not is_known_speed(machine.device, machine.calibration):
        return Unknown("the speed of this CPU is not known to the plan")
    return None


def tell_basis(found: Estimate) -> str:
    """The basis of an estimate, in words that follow its figures: ``by the plan (no run of this kind yet)``."""
    if found.by == "pace":
        return f"at the pace of {found.run}"
    why = "for a card that is not here" if found.elsewhere else "no run of this kind yet"
    return f"by the plan ({why}{tell_assumed(found.assumed)})"


def tell_assumed(assumed: Sequence[str]) -> str:
    """What a plan assumes, as a clause after its basis; empty where it assumes nothing."""
    return f"; {' and '.join(assumed)} assumed" if assumed else ""


def _kept(config: Config, rows: Rows | None) -> Rows | None:
    """The rows that are not dropped, those held out among them."""
    return rows.limited(config.train.max_length, config.data.overlong) if rows is not None else None


def _trained_rows(config: Config, kept: Rows | None, count: int | None) -> int | None:
    """Number of rows trained on; None if unknown."""
    # Lengths are of all rows, those held out among them.
    return count if kept is None else kept.count - held_out_count(kept.count, config.data.eval_share)


def _steps(config: Config, kept: Rows | None, count: int | None) -> int | None:
    """Number of optimizer steps; None if it depends on the rows and their number is unknown."""
    return step_count(config, _trained_rows(config, kept, count))
