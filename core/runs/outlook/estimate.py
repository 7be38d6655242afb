"""Estimate of a run before it starts: duration and energy, by the pace of an earlier run or by its memory plan.

``train.max_hours`` and ``train.max_energy_wh`` may end it early.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from core.analysis.division import held_out_count
from core.analysis.row_samples import count_rows
from core.config.derived import step_count, usual_steps
from core.config.schema import Config
from core.errors import UserError
from core.memory.calibration import is_known_speed
from core.memory.plan import Machine
from core.memory.rows import Rows
from core.memory.strategy import Chosen
from core.runs.outlook.energy import expected_energy
from core.runs.outlook.time_left import FORWARD_SHARE, RESULT_SHARE, Schedule, part_tokens, positive_number
from core.runs.record.history import RunHistory, read_history
from core.runs.record.store import Run, list_runs
from core.units import counted, exact_number, format_duration

#: Most runs examined, newest first, for a comparable one.
LOOKED_AT = 50
#: Newest comparable runs whose pace counts.
PACED = 5
#: Largest weight of a run in their median, in steps.
_WEIGHT = 1000
#: Steps that a run must have done for its pace to be meaningful.
FEWEST_STEPS = 3
#: Largest record read for an estimate, in bytes.
LONGEST_RECORD = 64 << 20
#: Largest plausible figure.
_GREATEST = 1e12


@dataclass(frozen=True)
class RunPace:
    """The pace of an earlier run, or the median of several.

    Args:
        run: Id of the run, or of the newest of them.
        tokens_per_second: Tokens without padding over the seconds in steps.
        seconds_per_step: Mean of its steps.
        watt_hours_per_token: Energy over the whole run; None if no device reports power.
        rows_per_step: Its batch size.
        watt_hours_per_second: Energy over the seconds in steps; None if no device reports power.
        work_share: Share of the seconds in steps that was work, and not a rest by the governor.
        evaluation_factor: Duration of its newest evaluation as a multiple of the expected one, by its tokens and the
            pace; None if it had none.
        checkpoint_seconds: Duration of a checkpoint; None if it wrote none.
        start_seconds: Duration of loading and rehearsing.
        steps: Number of steps, its weight in a median.
        runs: Number of runs.
    """

    run: str
    tokens_per_second: float
    seconds_per_step: float
    watt_hours_per_token: float | None
    rows_per_step: int = 1
    watt_hours_per_second: float | None = None
    work_share: float = 1.0
    evaluation_factor: float | None = None
    checkpoint_seconds: float | None = None
    start_seconds: float = 0.0
    steps: int = 1
    runs: int = 1


def median_pace(paces: Sequence[RunPace]) -> RunPace:
    """The median of some paces, newest first, weighted by their steps: a short run on a busy machine says little."""

    import statistics  # its imports would delay the first screen

    def median(figure: Callable[[RunPace], float | None]) -> float | None:
        known = [[value] * min(pace.steps, _WEIGHT) for pace in paces if (value := figure(pace)) is not None]
        return statistics.median(itertools.chain.from_iterable(known)) if known else None

    newest = paces[0]
    rate, row = (
        median(lambda pace: pace.tokens_per_second),
        median(lambda pace: pace.seconds_per_step / pace.rows_per_step),
    )
    return replace(
        next((pace for pace in paces if pace.watt_hours_per_token is not None), newest),
        run=newest.run,
        tokens_per_second=rate or newest.tokens_per_second,
        seconds_per_step=newest.rows_per_step * row if row is not None else newest.seconds_per_step,
        rows_per_step=newest.rows_per_step,
        work_share=newest.work_share,
        evaluation_factor=median(lambda pace: pace.evaluation_factor),
        checkpoint_seconds=median(lambda pace: pace.checkpoint_seconds),
        start_seconds=median(lambda pace: pace.start_seconds) or 0.0,
        runs=len(paces),
    )


class PaceBook:
    """Cached list of runs with their paces, so that repeated estimates do not read directories again.

    The record of a run is read when its pace is first needed, and then cached.

    Args:
        runs: The runs, newest first; None for all there are.
    """

    def __init__(self, runs: Iterable[Run] | None = None) -> None:
        found = list_runs() if runs is None else runs
        self._runs = [(run, config, os.path.realpath(config.model.base)) for run, config in _readable(found)]
        self._paces: dict[str, RunPace | None] = {}

    def pace(self, config: Config) -> RunPace | None:
        """Median pace of the newest runs with the same base, method, device and gradient checkpointing, and with the
        same batch size where there are any; None if there is none.
        """
        mine = os.path.realpath(config.model.base)
        found: list[RunPace] = []
        for run, other, theirs in self._runs:
            if not _is_alike(config, mine, other, theirs):
                continue
            if run.id not in self._paces:
                self._paces[run.id] = _pace(run, other)
            if (pace := self._paces[run.id]) is not None:
                found.append(pace)
            if len(found) == PACED:
                break
        found = [pace for pace in found if pace.rows_per_step == config.train.batch_size] or found
        return median_pace(found) if found else None


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


def _pace(run: Run, config: Config) -> RunPace | None:
    with suppress(OSError):
        if run.events_path.stat().st_size <= LONGEST_RECORD:
            return pace_of(run.id, config, read_history(run))
    return None


def pace_of(run: str, config: Config, history: RunHistory) -> RunPace | None:
    """The pace of a run by its id, configuration and history; None if it has done too few steps."""
    rate, steps = history.tokens_per_second, history.step_count
    if rate is None or steps < FEWEST_STEPS:
        return None
    energy = history.energy_wh if history.energy_wh and history.energy_wh > 0 else None
    pace = RunPace(
        run,
        rate,
        history.step_seconds / steps,
        energy / history.tokens if energy and history.tokens else None,
        config.train.batch_size,
        energy / history.step_seconds if energy else None,
        history.work_share,
        _evaluation_factor(config, history, rate),
        history.timings.checkpoint_seconds,
        sum(phase.seconds for name, phase in history.phases.items() if name in _STARTING),
        steps,
    )
    # Implausible figures predict nothing.
    figures = (pace.tokens_per_second, pace.seconds_per_step, pace.watt_hours_per_token, pace.watt_hours_per_second)
    return pace if all(figure is None or 0 < figure < _GREATEST for figure in figures) else None


#: Phases of a run before its first evaluation or step.
_STARTING = ("importing", "preparing_data", "loading_model", "rehearsing")


def _evaluation_factor(config: Config, history: RunHistory, rate: float) -> float | None:
    """Duration of the newest evaluation of a run as a multiple of the expected one."""
    measured = history.timings.evaluation_seconds
    tokens = sum(part_tokens(history.timings, Schedule.of_config(config)).values())
    return measured * rate / (tokens * FORWARD_SHARE) if measured and tokens else None


_SECONDS_PER_HOUR = 3600
#: The unit of each option that ends a run.
_UNITS = {"train.max_hours": "h", "train.max_energy_wh": "Wh"}
#: Significant digits of an estimated step.
_DIGITS = 2


@dataclass(frozen=True)
class EarlyEnd:
    """The expected end of a run before its last step.

    Args:
        option: The option that ends it.
        limit: Its value, in hours or watt-hours.
        step: The step at which that is expected, rounded; None if the limit may not be reached.
        steps: Optimizer steps of the whole run.
    """

    option: str
    limit: float
    step: int | None
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """The end as JSON."""
        return asdict(self)


def cut(
    config: Config, steps: int, seconds: float, watt_hours: float | None, *, is_most: bool = False
) -> tuple[float, float | None, EarlyEnd | None]:
    """An estimate cut at the limits of a run.

    Args:
        config: Configuration of the run.
        steps: Optimizer steps of the whole run.
        seconds: Their estimated duration.
        watt_hours: Their estimated energy; None if unknown.
        is_most: Whether these are upper bounds, so that a limit of energy may not be reached.

    Returns:
        Seconds and watt-hours until the run ends, and its early end; None if it does all its steps.
    """
    hours, energy = config.train.max_hours, config.train.max_energy_wh
    shares = [(1.0, "", 0.0)]
    if hours is not None and seconds > 0:
        shares.append((hours * _SECONDS_PER_HOUR / seconds, "train.max_hours", hours))
    is_short = energy is not None and watt_hours is not None and watt_hours > energy
    if energy is not None and watt_hours and not is_most:
        shares.append((energy / watt_hours, "train.max_energy_wh", energy))
    share, option, limit = min(shares)
    taken = None if watt_hours is None else share * watt_hours
    if energy is not None and taken is not None:
        taken = min(taken, energy)
    if option:
        return share * seconds, taken, EarlyEnd(option, limit, _about(share * steps), steps)
    if is_short and energy is not None:
        return seconds, taken, EarlyEnd("train.max_energy_wh", energy, None, steps)
    return seconds, taken, None


def cut_rest(
    values: Mapping[str, Any], history: RunHistory, step: int, steps: int, seconds: float
) -> tuple[float, EarlyEnd | None]:
    """The time left of a live run, cut at its limits.

    Args:
        values: ``section.key`` to value, unchecked, as in ``run.toml``.
        history: Its history, for time and energy so far.
        step: Steps done.
        steps: Optimizer steps of the whole run.
        seconds: The estimated time left.

    Returns:
        Seconds until it ends, and its early end; None if it does all its steps.
    """
    found: tuple[float, EarlyEnd | None] = seconds, None
    hours, energy = (positive_number(values.get(name)) for name in _UNITS)
    worked, used = history.working_seconds, history.energy_wh
    rates = [("train.max_hours", hours, worked / _SECONDS_PER_HOUR, 1 / _SECONDS_PER_HOUR)]
    if used and worked:
        rates.append(("train.max_energy_wh", energy, used, used / worked))
    for option, limit, taken, rate in rates:
        if limit is not None and (left := max(limit - taken, 0.0) / rate) < found[0]:
            at = step + (steps - step) * left / seconds
            found = left, EarlyEnd(option, limit, min(max(_about(at), step), steps), steps)
    return found


def tell_early_end(end: EarlyEnd) -> str:
    """The early end of a run in words: ``ends after 6 h by train.max_hours, at about step 1,200 of 3,000``."""
    limit = f"{exact_number(end.limit)} {_UNITS[end.option]}"
    if end.step is None:
        return f"may end before its last step, after {limit} by {end.option}"
    return f"ends after {limit} by {end.option}, at about step {end.step:,} of {end.steps:,}"


def _about(step: float) -> int:
    """A step rounded to two digits: more would suggest false precision."""
    whole = max(round(step), 1)
    return round(whole, _DIGITS - len(str(whole)))


#: Basis of an estimate: the pace of earlier runs, which was measured; the step time of the memory plan; or, if the plan
#: has none, a guess by the size of the model.
Basis = Literal["pace", "plan", "guess"]


@dataclass(frozen=True)
class Estimate:
    """Estimated duration and energy, cut at the limits of the run.

    Args:
        seconds: Duration of the run: of the optimizer steps, and of ``between_seconds``.
        steps: Number of optimizer steps, including steps after an early end.
        watt_hours: Energy of the steps; by the plan, an upper bound. None if the earlier run had no reading, or the
            device reports no power limit.
        run: The earlier run; empty for an estimate by the plan.
        by: Basis of the estimate.
        assumed: Assumptions of the plan in words: ``rows of 2048 tokens``.
        elsewhere: Whether it is for a card that is not in this machine.
        early_end: The early end by a limit; None if the run does all its steps.
        work_share: Share of the steps' duration that is work at full speed; the governor of the earlier run made it
            rest for the remainder.
        between_seconds: Duration of all that is no step: loading, evaluations, checkpoints, the result.
        evaluations: Number of evaluations, the last one included.
        evaluation_seconds: Their duration, and that of the first look at probe and samples, in ``between_seconds``.
        runs: Number of earlier runs whose median pace it is; 0 by the plan.
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
    evaluations: int = 0
    evaluation_seconds: float = 0.0
    runs: int = 0

    @property
    def parts(self) -> tuple[tuple[str, float], ...]:
        """The parts of its duration with their seconds, ``156 steps``, ``24 evaluations``, ``loading and saving``; none
        is shorter than a second. An early end leaves out the number of steps."""
        seconds = self.seconds - self.between_seconds, self.between_seconds - self.evaluation_seconds
        steps = counted(self.steps, "step") if self.early_end is None else "steps"
        evaluations = counted(self.evaluations, "evaluation") if self.early_end is None else "evaluations"
        parts = (steps, seconds[0]), (evaluations, self.evaluation_seconds), ("loading and saving", seconds[1])
        return tuple(part for part in parts if part[1] >= 1)

    @property
    def full_speed_seconds(self) -> float:
        """Duration without rests by the governor."""
        return (self.seconds - self.between_seconds) * self.work_share + self.between_seconds


@dataclass(frozen=True)
class NoEstimate:
    """No estimate is possible.

    Args:
        reason: The reason as a clause: ``the speed of this CPU is not known to the plan``.
    """

    reason: str


@dataclass(frozen=True)
class PlannedRun:
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
    pace: RunPace | None,
    plan: Callable[[], PlannedRun | NoEstimate],
    rows: Rows | None = None,
    count: int | None = None,
) -> Estimate | NoEstimate:
    """The estimate of a run: at the pace of an earlier run of its kind if there is one, else by the memory plan. The
    limits ``train.max_hours`` and ``train.max_energy_wh`` cut it.

    Args:
        config: Configuration of the run.
        pace: Pace of the earlier run; None without one.
        plan: Makes the plan; called only if it is needed.
        rows: Lengths of all of its rows; None if unknown.
        count: Number of rows trained on, if their lengths are unknown.
    """
    found = estimate(config, rows, pace, count) if pace is not None else None
    if found is not None:
        return limited(config, found)
    if _steps(config, _kept(config, rows), count) is None:
        return NoEstimate("the number of its rows is not known")
    planned = plan()
    guess = planned if isinstance(planned, NoEstimate) else by_plan(config, planned, rows, count)
    return guess if isinstance(guess, NoEstimate) else limited(config, guess)


def limited(config: Config, found: Estimate) -> Estimate:
    """An estimate of all steps of a run, cut at its limits."""
    seconds, energy, end = cut(config, found.steps, found.seconds, found.watt_hours, is_most=found.by == "plan")
    share = seconds / found.seconds if found.seconds > 0 else 1.0
    return replace(
        found,
        seconds=seconds,
        watt_hours=energy,
        early_end=end,
        between_seconds=share * found.between_seconds,
        evaluation_seconds=share * found.evaluation_seconds,
    )


def estimate(config: Config, rows: Rows | None, pace: RunPace, count: int | None = None) -> Estimate | None:
    """Estimated duration at an earlier run's pace; None if the number of steps is unknown.

    If the rows' tokens are unknown, a row is assumed to take as long as a row of the earlier run.

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
    found = Estimate(seconds, steps, energy, pace.run, work_share=pace.work_share, runs=pace.runs)
    return with_evaluations(config, found, pace, kept, count)


def with_evaluations(config: Config, found: Estimate, pace: RunPace, kept: Rows | None, count: int | None) -> Estimate:
    """An estimate of the steps alone with all that comes beside them: loading, evaluations, checkpoints, the result.

    Args:
        config: Configuration of the run.
        found: The estimate of its steps.
        pace: The pace that evaluations are estimated by.
        kept: Lengths of the rows that are not dropped, held-out rows included; None if unknown.
        count: Number of rows trained on, if their lengths are unknown.
    """
    schedule, rows = Schedule.of_config(config), _trained_rows(config, kept, count)
    row, share = pace.tokens_per_second * pace.seconds_per_step / pace.rows_per_step, _ANSWER_SHARE
    if kept is not None and kept.tokens is not None:
        row, share = kept.tokens / kept.count, min(kept.supervised, _ANSWER_SHARE)
    answer = row * share
    held_out = held_out_rows(config, rows) if schedule.measures else 0
    parts = schedule.evaluation_tokens(held_out, held_out * row, min(answer, config.chat.max_new_tokens))
    per_epoch = math.ceil(rows / config.train.batch_size) if rows else None
    between = schedule.evaluations_by(found.steps - 1, per_epoch)
    number = between + 1 + schedule.baseline if schedule.evaluates else 0
    first = 0.0 if schedule.baseline else parts["probe"] + parts["samples"]
    tokens = number * sum(parts.values()) + first
    evaluation = tokens * FORWARD_SHARE / pace.tokens_per_second * (pace.evaluation_factor or 1.0)
    checkpoints = schedule.checkpoints_by(found.steps - 1, found.steps) + 1
    saving = (checkpoints + RESULT_SHARE) * (pace.checkpoint_seconds or 0.0)
    beside = evaluation + saving + pace.start_seconds
    return replace(
        found,
        seconds=found.seconds + beside,
        between_seconds=beside,
        evaluations=number,
        evaluation_seconds=evaluation,
    )


#: Largest share of a row's tokens that its answer is taken to have: what is not counted counts as learned entirely.
_ANSWER_SHARE = 0.5


def held_out_rows(config: Config, rows: int | None) -> int:
    """Number of rows measured on; as many as there may be where they cannot be counted.

    Args:
        config: Configuration of the run.
        rows: Number of rows trained on; None if unknown.
    """
    data, most = config.data, config.eval.max_rows
    if data.eval is not None:
        with suppress(UserError, OSError):
            most = min(count_rows([data.eval] if isinstance(data.eval, str) else data.eval).rows, most)
    elif rows is not None:
        most = min(round(rows * data.eval_share / (1 - data.eval_share)), most)
    return most


def by_plan(config: Config, planned: PlannedRun, rows: Rows | None, count: int | None) -> Estimate | NoEstimate:
    """Estimated duration by the plan's step time; energy at the power limit of all cards, an upper bound.

    Args:
        config: Configuration of the run.
        planned: Its memory plan.
        rows: Lengths of all of its rows; None if unknown.
        count: Number of rows, if their lengths are unknown.
    """
    steps, machine, chosen = _steps(config, _kept(config, rows), count), planned.machine, planned.chosen
    if steps is None:
        return NoEstimate("the number of its rows is not known")
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
    found = Estimate(seconds, steps, energy, "", "plan", tuple(assumed), machine.elsewhere)
    kept, tokens = _kept(config, rows or planned.rows), float(chosen.plan.micro_batch.length)
    if kept is not None and kept.tokens is not None:
        tokens = kept.tokens / kept.count
    return with_evaluations(config, found, pace_of_steps(config, found, tokens), _kept(config, rows), count)


def pace_of_steps(config: Config, found: Estimate, row_tokens: float) -> RunPace:
    """The pace by which an estimate of the steps was made.

    Args:
        config: Configuration of the run.
        found: The estimate of its steps alone.
        row_tokens: Mean tokens of a row.
    """
    each, size = max(found.seconds, 1e-9) / max(found.steps, 1), config.train.batch_size
    return RunPace("", size * row_tokens / each, each, None, size)


def lack_of_speed(machine: Machine) -> NoEstimate | None:
    """Reason why a machine has no known duration; None if it has.

    CPUs differ too much in cores and instructions to use the rates of another CPU.
    """
    if machine.kind == "cpu" and not is_known_speed(machine.device, machine.calibration):
        return NoEstimate("the speed of this CPU is not known to the plan")
    return None


class EstimateWords(NamedTuple):
    """An estimate in words; each part may be empty."""

    duration: str
    """``about 14m 00s``."""
    energy: str
    """``41 Wh``, ``at most 41 Wh``."""
    end: str
    """``ends after 6 h by train.max_hours, at about step 1,200 of 3,000``."""
    basis: str
    """``at the pace of 20261124-143601-tickets``, ``by the plan (no run of this kind yet)``."""


def estimate_words(found: Estimate) -> EstimateWords:
    """An estimate in words."""
    energy = expected_energy(found.watt_hours, is_most=found.by == "plan")
    end = tell_early_end(found.early_end) if found.early_end is not None else ""
    return EstimateWords(f"about {rounded_duration(found.seconds)}", energy, end, _basis(found))


def rounded_duration(seconds: float) -> str:
    """An estimated duration, rounded to its precision: ``14m 00s``, ``36s``."""
    unit = 10 if seconds >= 60 else 1
    rounded = max(round(seconds / unit) * unit, 1)
    return format_duration(rounded) if rounded >= 60 else f"{rounded}s"


def _basis(found: Estimate) -> str:
    if found.by == "pace":
        return f"at the pace of {found.run}" if found.runs < 2 else f"at the median pace of {found.runs} earlier runs"
    if found.by == "guess":
        return "a guess: no run of this kind yet"
    why = "for a card that is not here" if found.elsewhere else "no run of this kind yet"
    return f"by the plan ({why}{tell_assumed(found.assumed)})"


def tell_assumed(assumed: Sequence[str]) -> str:
    """Assumptions of a plan as a clause; empty without any."""
    return f"; {' and '.join(assumed)} assumed" if assumed else ""


def _kept(config: Config, rows: Rows | None) -> Rows | None:
    """The rows that are not dropped, held-out rows included."""
    return rows.limited(config.train.max_length, config.data.overlong) if rows is not None else None


def _trained_rows(config: Config, kept: Rows | None, count: int | None) -> int | None:
    """Number of rows trained on; None if unknown."""
    # Lengths are of all rows, held-out rows included.
    return count if kept is None else kept.count - held_out_count(kept.count, config.data.eval_share)


def _steps(config: Config, kept: Rows | None, count: int | None) -> int | None:
    """Number of optimizer steps; None if it depends on the rows and their number is unknown."""
    return step_count(config, _trained_rows(config, kept, count))
