"""Limits of the night: for the whole queue and the run that is on, in place of the runs' own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.config.clock import next_time, parse_time
from core.config.document import ConfigDocument, valid_part
from core.config.live import changed, read_changes
from core.config.schema import Config, full_name
from core.errors import UserError
from core.governor.limits import Limits
from core.units import exact_number, format_moment

#: The options that it sets, in the order of a form.
NIGHT_OPTIONS = ("hardware.temperature_limit_c", "hardware.power_limit_w", "night.quiet_hours", "night.deadline")
_DEADLINE = "night.deadline"
#: Words for a value, and for none.
_WORDS = {
    "hardware.temperature_limit_c": ("at most {} °C", "no temperature limit"),
    "hardware.power_limit_w": ("at most {} W", "no power limit"),
    "night.quiet_hours": ("quiet {}", "no quiet hours"),
    _DEADLINE: ("done by {}", "no deadline"),
}


@dataclass(frozen=True)
class Night:
    """The limits of a night.

    Args:
        values: ``section.key`` to value, None for no limit; runs keep their own value of a missing option.
        since: Unix seconds at which they were set; the deadline is the next such time of day.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    since: float = 0.0

    @classmethod
    def read(cls, asked: Mapping[str, Any], since: float) -> Night:
        """Limits as typed, checked; ``none`` is no limit, and an empty text leaves the runs' own.

        Raises:
            UserError: If an option is none of the night, or a value is invalid.
        """
        named = {full_name(name): value for name, value in asked.items() if value != ""}
        if wrong := next((name for name in named if name not in NIGHT_OPTIONS), None):
            raise UserError(f"{wrong} cannot be set for the night.", f"These can be: {', '.join(NIGHT_OPTIONS)}.")
        if not named:
            return cls()
        blank = valid_part(ConfigDocument())
        values = read_changes(blank, {name: None if value == "none" else value for name, value in named.items()})
        Limits.of(changed(blank, values))  # refuses times that are none
        return cls({name: values[name] for name in NIGHT_OPTIONS if name in values}, since)

    @property
    def deadline(self) -> float | None:
        """The deadline of all runs in Unix seconds; None for none."""
        text = self.values.get(_DEADLINE)
        return None if text is None else next_time(parse_time(text), self.since)

    def in_force(self, now: float) -> dict[str, Any]:
        """The values at a Unix time: a deadline that has passed holds no more."""
        is_over = self.deadline is not None and self.deadline <= now
        return {name: value for name, value in self.values.items() if name != _DEADLINE or not is_over}

    def for_run(self, now: float, share: float | None) -> dict[str, Any]:
        """The values for one run. Its deadline is a share of the time until that of all, since a run takes all the time
        that it is given if that saves energy.

        Args:
            now: Unix seconds.
            share: From 0 to 1; None for no deadline.
        """
        values = self.in_force(now)
        if (deadline := self.deadline) is None or _DEADLINE not in values:
            return values
        moment = None if share is None else format_moment(max(now + (deadline - now) * share, now + 60), "%H:%M")
        return values | {_DEADLINE: moment}

    def applied(self, config: Config) -> Config:
        """A configuration with the values in place of its own, without the deadline of all."""
        values = {name: value for name, value in self.values.items() if name != _DEADLINE}
        return changed(config, values) if values else config

    def words(self, now: float) -> str:
        """The values in words, ``at most 75 °C · quiet 22:00-07:00``; empty without any."""
        return " · ".join(
            _WORDS[name][1]
            if value is None
            else _WORDS[name][0].format(exact_number(value) if isinstance(value, float) else value)
            for name, value in self.in_force(now).items()
        )
