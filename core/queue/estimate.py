"""Estimates of runs that wait: how long each takes, and how much energy, at the pace of earlier runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.analysis.row_counts import count_rows
from core.analysis.split import held_out_count
from core.config.schema import Config
from core.errors import UserError
from core.runs.forecast import Estimate, estimate
from core.runs.pace import PaceBook


class Estimator:
    """Estimates runs; rows of a dataset are counted once. Blocks, as files are indexed and records are read."""

    def __init__(self, paces: PaceBook | None = None) -> None:
        self._paces = PaceBook() if paces is None else paces
        self._counts: dict[tuple[str, ...], int | None] = {}

    def estimate(self, config: Config) -> Estimate | None:
        """Duration and energy of a run's steps; None where no earlier run has its base, method and device, or the
        number of steps is unknown."""
        pace = self._paces.pace(config)
        return None if pace is None else estimate(config, None, pace, self._rows(config))

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


@dataclass(frozen=True)
class Total:
    """The sum over several runs.

    Args:
        seconds: Of those whose duration is known; None where none is.
        watt_hours: Of those whose energy is known; None where none is.
        unknown: Number of runs without a known duration.
        without_energy: Number of runs without a known energy.
    """

    seconds: float | None
    watt_hours: float | None
    unknown: int
    without_energy: int


def total_of(estimates: Iterable[Estimate | None]) -> Total:
    """Add estimates up."""
    every = list(estimates)
    seconds = [found.seconds for found in every if found is not None]
    energy = [found.watt_hours for found in every if found is not None and found.watt_hours is not None]
    return Total(
        sum(seconds) if seconds else None,
        sum(energy) if energy else None,
        len(every) - len(seconds),
        len(every) - len(energy),
    )
