"""Early end of a run by a limit of its configuration: ``train.max_hours``, ``train.max_energy_wh``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from core.config.schema import Config
from core.units import exact_number

_SECONDS_PER_HOUR = 3600
#: The unit of each option that ends a run.
_UNITS = {"train.max_hours": "h", "train.max_energy_wh": "Wh"}
#: Beyond any limit that an option takes.
_MOST = 1e12
#: Digits of a step that is estimated.
_DIGITS = 2


@dataclass(frozen=True)
class EarlyEnd:
    """The expected end of a run before its last step.

    Args:
        option: The option that ends it.
        limit: Its value, in hours or watt-hours.
        step: The step at which that is expected, rounded; None where it need not come to that.
        steps: Optimizer steps of the whole run.
    """

    option: str
    limit: float
    step: int | None
    steps: int

    def to_dict(self) -> dict[str, Any]:
        """The end as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Spent:
    """What a run has taken so far.

    Args:
        seconds: Seconds of work over all its starts.
        watt_hours: Energy over all its starts; None where no device reports its power.
    """

    seconds: float
    watt_hours: float | None


def cut(
    config: Config, steps: int, seconds: float, watt_hours: float | None, *, is_most: bool = False
) -> tuple[float, float | None, EarlyEnd | None]:
    """An estimate as far as the limits of a run allow.

    Args:
        config: Configuration of the run.
        steps: Optimizer steps of the whole run.
        seconds: Their estimated duration.
        watt_hours: Their estimated energy; None if unknown.
        is_most: Whether that is the most they can take, so that a limit of energy may not be reached.

    Returns:
        Seconds and watt-hours until the run ends, and by what it ends early; None where it does all its steps.
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
    values: Mapping[str, Any], spent: Spent, step: int, steps: int, seconds: float
) -> tuple[float, EarlyEnd | None]:
    """The time left of a run that is on, as far as its limits allow.

    Args:
        values: ``section.key`` to value, unchecked, as in ``run.toml``.
        spent: What it has taken so far.
        step: Steps done.
        steps: Optimizer steps of the whole run.
        seconds: The estimated time left.

    Returns:
        Seconds until it ends, and by what it ends early; None where it does all its steps.
    """
    found: tuple[float, EarlyEnd | None] = seconds, None
    hours, energy = (_positive(values.get(name)) for name in _UNITS)
    rates = [("train.max_hours", hours, spent.seconds / _SECONDS_PER_HOUR, 1 / _SECONDS_PER_HOUR)]
    if spent.watt_hours and spent.seconds:
        rates.append(("train.max_energy_wh", energy, spent.watt_hours, spent.watt_hours / spent.seconds))
    for option, limit, taken, rate in rates:
        left = None if limit is None else max(limit - taken, 0.0) / rate
        if limit is not None and left is not None and left < found[0]:
            at = step + (steps - step) * left / seconds
            found = left, EarlyEnd(option, limit, min(max(_about(at), step), steps), steps)
    return found


def tell_early_end(end: EarlyEnd) -> str:
    """The early end of a run in words: ``ends after 6 h by train.max_hours, at about step 1,200 of 3,000``."""
    limit = f"{exact_number(end.limit)} {_UNITS[end.option]}"
    if end.step is None:
        return f"may end before its last step, after {limit} by {end.option}"
    return f"ends after {limit} by {end.option}, at about step {end.step:,} of {end.steps:,}"


def _positive(value: object) -> float | None:
    """A limit of an unchecked configuration; None for none, and for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 < value < _MOST else None


def _about(step: float) -> int:
    """A step with two digits, as more would promise too much."""
    whole = max(round(step), 1)
    return round(whole, _DIGITS - len(str(whole)))
