"""Estimates of waiting runs: duration and energy, at the pace of earlier runs or by the memory plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from core.analysis.division import held_out_count
from core.analysis.row_samples import count_rows, sample_lengths
from core.config.schema import Config
from core.errors import UserError
from core.memory.plan import Machine
from core.memory.rows import Rows, rows_of_tokens
from core.memory.strategy import chosen_strategy
from core.models.find import locate_model
from core.models.sandboxed import load_architecture
from core.runs.outlook.estimate import (
    Basis,
    EarlyEnd,
    Estimate,
    NoEstimate,
    PaceBook,
    PlannedRun,
    expected,
    lack_of_speed,
)
from core.runs.outlook.forecast import cards_here, this_machine


class Estimator:
    """Estimates runs. Blocks: it indexes files, reads records, asks the driver, and tokenizes a few rows.

    The rows of a dataset are counted and sampled once, and the driver is asked once.

    Args:
        read_paces: Reads the earlier runs.
    """

    def __init__(self, read_paces: Callable[[], PaceBook] = PaceBook) -> None:
        self._read_paces = read_paces
        self._paces = read_paces()
        self._counts: dict[tuple[str, ...], int | None] = {}
        self._machines: dict[str, Machine] = {}
        self._samples: dict[str, Rows | None] = {}

    def look_again(self) -> None:
        """Read the earlier runs again, after another run has ended."""
        self._paces = self._read_paces()

    def estimate(self, config: Config) -> Estimate | NoEstimate:
        """Duration and energy of a run: at the pace of an earlier run with its base, method and device if there is one,
        else by its memory plan.
        """
        try:
            return expected(config, self._paces.pace(config), lambda: self._plan(config), count=self._rows(config))
        except UserError as error:
            return NoEstimate(f"it cannot be planned: {error.message.rstrip('.')}")

    def _rows(self, config: Config) -> int | None:
        """Number of rows trained on."""
        if config.train.max_steps is not None:
            return None
        train = config.data.train
        entries = (train,) if isinstance(train, str) else tuple(train)
        if entries not in self._counts:
            try:
                self._counts[entries] = count_rows(entries).rows
            except UserError:
                self._counts[entries] = None
        count = self._counts[entries]
        return count if count is None else count - held_out_count(count, config.data.eval_share)

    def _plan(self, config: Config) -> PlannedRun | NoEstimate:
        """The memory plan of a run on cards that nothing else uses.

        Raises:
            UserError: If it cannot be planned.
        """
        machine = self._machine(config)
        if (lack := lack_of_speed(machine)) is not None:
            return lack
        architecture = load_architecture(locate_model(config.model.base))
        rows = self._sample(config)
        return PlannedRun(chosen_strategy(architecture, config, machine, rows, cards=cards_here(config)), machine, rows)

    def _machine(self, config: Config) -> Machine:
        key = config.model_dump_json(include={"hardware", "distributed"})
        if key not in self._machines:
            self._machines[key] = this_machine(config, empty=True)
        return self._machines[key]

    def _sample(self, config: Config) -> Rows | None:
        """Lengths of the first rows; None if unknown, and the plan then assumes them."""
        key = config.model_dump_json(
            include={"model": {"base"}, "data": True, "template": True, "train": {"objective"}}
        )
        if key not in self._samples:
            try:
                lengths = sample_lengths(config)
            except UserError:
                lengths = []
            self._samples[key] = rows_of_tokens(lengths, sum(lengths)) if any(lengths) else None
        return self._samples[key]


@dataclass(frozen=True)
class Total:
    """The sum over several runs.

    Args:
        seconds: Sum of the known durations; None if none is known.
        watt_hours: Sum of the known energies; None if none is known.
        unknown: Number of runs without a known duration.
        without_energy: Number of runs without a known energy.
        by_pace: Number of runs whose duration is at the pace of an earlier one.
        by_plan: Number of runs whose duration is by their memory plan.
        assumed: Assumptions of the plans, in words.
        reason: Why a run has no known duration, as a clause; empty if all have one.
        early_ends: Early ends of runs by their limits.
    """

    seconds: float | None
    watt_hours: float | None
    unknown: int
    without_energy: int
    by_pace: int = 0
    by_plan: int = 0
    assumed: tuple[str, ...] = ()
    reason: str = ""
    early_ends: tuple[EarlyEnd, ...] = ()

    @property
    def by(self) -> Basis | Literal["mixed"] | None:
        """Basis of the known durations; None if none is known."""
        if self.seconds is None:
            return None
        return "plan" if not self.by_pace else "mixed" if self.by_plan else "pace"


def total_of(estimates: Iterable[Estimate | NoEstimate]) -> Total:
    """The sum of estimates."""
    every = list(estimates)
    known = [found for found in every if isinstance(found, Estimate)]
    energy = [found.watt_hours for found in known if found.watt_hours is not None]
    planned = [found for found in known if found.by == "plan"]
    return Total(
        sum(found.seconds for found in known) if known else None,
        sum(energy) if energy else None,
        len(every) - len(known),
        len(every) - len(energy),
        len(known) - len(planned),
        len(planned),
        tuple(dict.fromkeys(text for found in planned for text in found.assumed)),
        next((found.reason for found in every if isinstance(found, NoEstimate)), ""),
        tuple(found.early_end for found in known if found.early_end is not None),
    )
