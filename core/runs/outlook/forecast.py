"""Forecast of a run on this machine: memory plan, duration, energy, and wishes for the night that cannot be met."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core import paths
from core.analysis.result import Lengths
from core.config.clock import next_time
from core.config.derived import ALL_GPUS, sequences_per_row, step_count, usual_steps
from core.config.facts import Unkept
from core.config.schema import WEIGHT_METHODS, Config
from core.directories import free_bytes
from core.errors import UserError
from core.governor.limits import Limits
from core.governor.night import late, spans, too_much
from core.governor.plan import Curve, Point, Wishes, soonest
from core.memory.advice import Advice, advise
from core.memory.calibration import read_calibration
from core.memory.cards import Cards, cards_of
from core.memory.plan import Machine, Plan
from core.memory.planner import Source
from core.memory.rows import Rows, rows_of_lengths
from core.memory.strategy import Chosen, chosen_strategy, part_of_card, part_of_machine
from core.models.architecture.architecture import Architecture
from core.models.published import Published, locate_shape
from core.models.sandboxed import load_architecture
from core.runs.outlook.estimate import (
    Estimate,
    NoEstimate,
    PaceBook,
    PlannedRun,
    expected,
    limited,
    pace_of_steps,
    tell_assumed,
    with_evaluations,
)

if TYPE_CHECKING:
    from core.hardware.snapshot import Device


#: Floating-point operations a second that training reaches on a core, for a guess without a measurement.
_CORE_RATE = 5e10


@dataclass(frozen=True)
class Forecast:
    """Memory plan and estimates before a run; with several cards, ``plan`` and ``advice`` are for a single card."""

    base: Path | Published
    architecture: Architecture
    plan: Plan
    advice: tuple[Advice, ...]
    estimate: Estimate | None
    rows: Rows | None = None
    """Lengths of the rows; None for rows of ``train.max_length``."""
    chosen: Chosen | None = None
    """How several cards share the run; None for one card."""
    elsewhere: bool = False
    """True for a card that is not in this machine."""

    @property
    def fits(self) -> bool | None:
        """True if the run fits, on each of several cards and in their machine's memory; None if unknown."""
        return self.plan.fits if self.chosen is None else self.chosen.fits

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the plan, a sentence each."""
        return (*((self.base.note,) if isinstance(self.base, Published) else ()), *self.plan.notes)

    @property
    def is_rough(self) -> bool:
        """True if a figure is a rough bound, because the model has not been measured yet."""
        return self.plan.is_rough or any(advice.is_rough for advice in self.advice)

    @property
    def each(self) -> str:
        """Location of the planned memory, ``on each of 2 cards``; empty for a single card or process."""
        number = 1 if self.chosen is None else self.chosen.sharing.cards.number
        return f"on each of {number} {'cards' if self.plan.device == 'cuda' else 'processes'}" if number > 1 else ""


def forecast(
    config: Config,
    machine: Machine,
    rows: Rows | None = None,
    paces: PaceBook | None = None,
    count: int | None = None,
    cards: Cards | None = None,
    source: Source = "measured",
) -> Forecast:
    """Forecast a configuration's run; blocks for seconds if the model has to be measured first.

    Args:
        config: Configuration of the run.
        machine: Machine of the run.
        rows: Lengths of the rows; None if unknown.
        paces: Earlier runs, if already read; None to read them now.
        count: Number of rows, if their lengths are unknown.
        cards: Cards of the run; None for the section ``distributed``.
        source: As for :func:`core.memory.planner.make_plan`.

    Raises:
        UserError: If the model is not on this machine and its shape is unknown, its memory cannot be planned, or the
            rows do not suit it.
    """
    base = locate_shape(config.model.base)
    architecture = load_architecture(base)
    found = cards_here(config) if cards is None else cards
    chosen = chosen_strategy(architecture, config, machine, rows, cards=found, source=source)
    # Runs on this machine say nothing about another card.
    pace = None if machine.elsewhere else (PaceBook() if paces is None else paces).pace(config)
    part, card = part_of_card(config, chosen.sharing), part_of_machine(machine, found)
    guess = expected(config, pace, lambda: PlannedRun(chosen, machine, rows), rows, count)
    return Forecast(
        base,
        architecture,
        chosen.plan,
        advise(architecture, part, card, rows, chosen.plan, chosen.sharing.or_none, source),
        guess if isinstance(guess, Estimate) else None,
        rows,
        chosen if found.number > 1 or chosen.sharing.shares else None,
        machine.elsewhere,
    )


def forecast_here(
    config: Config, lengths: Lengths | None, count: int | None, paces: PaceBook, source: Source = "measured"
) -> Forecast:
    """Forecast a configuration's run on this machine; blocks, as it asks the driver and reads headers.

    Args:
        config: Configuration of the run.
        lengths: Lengths of its rows, from an analysis; None if unknown.
        count: Number of rows trained on; None if unknown.
        paces: Earlier runs.
        source: As for :func:`core.memory.planner.make_plan`.

    Raises:
        UserError: As :func:`forecast`, and if torch cannot use the card, with the run's own message.
    """
    from core.hardware.obstacle import CardUnusableError

    rows = rows_of_lengths(lengths) if lengths is not None else None
    try:
        machine = this_machine(config)
    except CardUnusableError:
        raise
    except UserError:
        machine = Machine("cuda")
    return forecast(config, machine, rows, paces, count, source=source)


def likely(config: Config, found: Forecast, count: int | None) -> Estimate | None:
    """The estimate that the app shows for a run on this machine; where nothing is measured, a guess by the size of the
    model. None until the rows are known, as an estimate by the plan would be many times too long.

    Args:
        config: Configuration of the run.
        found: Its forecast.
        count: Number of rows trained on; None if unknown.
    """
    rows, steps = found.rows, step_count(config, count)
    if found.estimate is not None and (found.estimate.by != "plan" or rows is not None):
        return found.estimate
    if steps is None or rows is None or not rows.tokens:
        return None
    tokens = rows.tokens / max(rows.count, 1)
    rough = Estimate(rough_seconds(config, found.plan, steps, tokens), steps, None, "", "guess")
    return limited(config, with_evaluations(config, rough, pace_of_steps(config, rough, tokens), rows, count))


def cards_here(config: Config) -> Cards:
    """The cards of a run; asks the driver for their number if the run takes all of them."""
    section = config.distributed
    everything = ALL_GPUS in section.named_gpus and section.processes is None
    return cards_of(section, len(_gpus()) if everything else 0)


def _gpus() -> list[Device]:
    """The GPUs of the vendor that the installed torch is built for."""
    from core.hardware.drivers import is_rocm
    from core.hardware.sampler import snapshot

    kind = "rocm" if is_rocm() else "cuda"
    return [device for device in snapshot(timeout=5.0) if device.kind == kind]


def machine_for(config: Config) -> Machine:
    """This machine, or one with a GPU of unknown memory for a configuration that needs a GPU and finds none."""
    try:
        return this_machine(config)
    except UserError:
        return Machine("cuda")


def rough_seconds(config: Config, plan: Plan, steps: int, row_tokens: float) -> float:
    """Order of magnitude of the steps' duration in seconds, on a CPU whose speed the plan does not know.

    Args:
        config: Configuration of the run.
        plan: Its memory plan.
        steps: Number of optimizer steps.
        row_tokens: Mean tokens of a row.
    """
    passes = 2 + (1 if plan.checkpointing else 0) + (1 if config.method.name in WEIGHT_METHODS else 0)
    operations = 2.0 * passes * plan.parameters * usual_steps(config, steps) * config.train.batch_size * row_tokens
    return operations * sequences_per_row(config.train.objective) / (_CORE_RATE * len(os.sched_getaffinity(0)))


def this_machine(config: Config, gpu_memory: int | None = None, *, empty: bool = False) -> Machine:
    """This machine's present resources for a run; with several cards, the card with the least free memory counts.

    Args:
        config: Configuration, for its device.
        gpu_memory: Free bytes of a hypothetical GPU to plan for instead.
        empty: Whether to plan for a card that nothing else uses, for a run that waits for the others to end.

    Raises:
        UserError: If the requested GPU does not exist, or torch cannot use it.
    """
    from core.hardware.cpu import cpu_name, prefers_bf16
    from core.hardware.cpu import memory as cpu_memory
    from core.hardware.drivers import MEMORY_SHARE, fixed_segments_reason, installed_build, is_wsl
    from core.hardware.torch_check import obstacle_here

    wsl = is_wsl()
    build = installed_build()
    rocm = build is not None and build.hip is not None
    machine = Machine(
        "cpu",
        disk_free_bytes=free_bytes(paths.runs_dir()),
        bf16=prefers_bf16(),
        expandable=not fixed_segments_reason(build, wsl=wsl),
        pages=not (wsl or rocm),
        cuda_build=build is not None and build.cuda is not None,
    )
    if gpu_memory is not None:
        return replace(machine, kind="cuda", limit_bytes=gpu_memory, elsewhere=True)
    wanted, gpu = config.hardware.device, config.hardware.gpu
    if wanted != "cpu" and (obstacle := obstacle_here(gpu)) is not None:
        raise obstacle
    gpus = [] if wanted == "cpu" else _gpus()
    if gpus:
        host_used, host_total = cpu_memory()
        card = _smallest(config, gpus)
        free = card.memory_total if empty else card.available
        return replace(
            machine,
            kind="cuda",
            limit_bytes=int(MEMORY_SHARE * free) if wsl and free is not None else free,
            host_bytes=host_total - host_used,
            device=card.name,
            calibration=read_calibration(card.name),
            pins=not wsl,
            power_limit_w=card.power_limit_w,
        )
    if wanted == "cuda":
        raise UserError(
            "hardware.device is cuda, and no GPU is found here.", "Say how much memory it has with --gpu-memory 24GB."
        )
    used_bytes, total_bytes = cpu_memory()
    name = cpu_name()
    return replace(machine, limit_bytes=total_bytes - used_bytes, device=name, calibration=read_calibration(name))


def _smallest(config: Config, gpus: Sequence[Device]) -> Device:
    """The card of a run; of several, the one with the least free memory."""
    names = config.distributed.named_gpus or ((config.hardware.gpu,) if config.hardware.gpu is not None else ())
    if ALL_GPUS in names:
        found = list(gpus)
    else:
        found = [device for device in gpus if any(_is_called(device, name) for name in names)] or list(gpus[:1])
    return min(found, key=lambda device: math.inf if device.available is None else device.available)


def _is_called(device: Device, gpu: str) -> bool:
    """True if ``hardware.gpu`` means a device."""
    return device.index == int(gpu) if gpu.isdecimal() else device.uuid.lower().startswith(gpu.lower())


#: Least share of the energy of an earlier run that another duty cycle may need: a card that works less leaks less, but
#: idles longer.
LEAST_SHARE = 0.9
#: The same if a limit of average power may lower the card's own limit, and with it clock and voltage.
LEAST_SHARE_BY_POWER = 0.7
_FEWER = "or train fewer steps"


def wants_plan(config: Config) -> bool:
    """True if a configuration has a wish that an estimate may show to be too much."""
    return config.night.deadline is not None or config.night.energy_kwh is not None


def unmet(config: Config, found: Estimate | NoEstimate | None, begins: float | None) -> Iterator[Unkept]:
    """The wishes that a run cannot meet even at full speed and with the least energy.

    Loading is not counted, so the run takes even longer. A guess proves nothing, nor does the energy of the memory
    plan, which is an upper bound.

    Args:
        config: Configuration of the run.
        found: Its estimate.
        begins: Start in Unix seconds; None if unknown, and the deadline is then not checked.
    """
    try:
        limits = Limits.of(config)
    except UserError:  # the rules between options report an invalid time
        return
    if not isinstance(found, Estimate) or found.by == "guess" or not limits.wants_plan:
        return
    is_measured = found.by == "pace"
    if limits.deadline is not None and begins is not None:
        deadline = next_time(limits.deadline, begins)
        # A second of full work is a token a second: the plan needs no more of a curve.
        wishes = Wishes(tuple(spans(limits, begins)), quiet_power_w=limits.quiet_power_w)
        end = soonest(Curve([Point(1.0, 1.0, None)]), found.full_speed_seconds, wishes).finish
        if end > deadline:
            how = f"at full speed, by the pace of {found.run}," if is_measured else _by_plan(found)
            yield late(deadline, end, begins, how, _FEWER)._replace(is_measured=is_measured)
    if limits.energy_kwh is not None and is_measured and found.watt_hours is not None:
        expected = found.watt_hours / 1000
        share = LEAST_SHARE if limits.power_w is None and limits.quiet_power_w is None else LEAST_SHARE_BY_POWER
        if share * expected > limits.energy_kwh:
            yield too_much(limits.energy_kwh, expected, f"by the pace of {found.run}", _FEWER)


def _by_plan(found: Estimate) -> str:
    return f"by the memory plan (an estimate, no run of this kind yet{tell_assumed(found.assumed)})"
