"""The governor's limits and wishes, from a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.config.clock import DailySpan, parse_span, parse_time

if TYPE_CHECKING:
    from core.config.schema import Config

#: The smallest duty cycle; if that is still too much, only a pause helps.
FLOOR = 0.1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits and wishes; None if not set."""

    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    power_w: float | None = None
    """Average power."""
    host_memory_percent: float | None = None
    disk_free_gb: float | None = None
    quiet: DailySpan | None = None
    quiet_power_w: float | None = None
    """Average power in quiet hours; None for a pause through them."""
    deadline: int | None = None
    """Minutes after midnight."""
    energy_kwh: float | None = None

    @classmethod
    def of(cls, config: Config) -> Limits:
        """Limits of a configuration.

        Raises:
            UserError: If a time is invalid.
        """
        hardware, night = config.hardware, config.night
        return cls(
            temperature_c=hardware.temperature_limit_c,
            memory_temperature_c=hardware.memory_temperature_limit_c,
            power_w=hardware.power_limit_w,
            host_memory_percent=hardware.host_memory_limit_percent,
            disk_free_gb=hardware.disk_free_min_gb,
            quiet=None if night.quiet_hours is None else parse_span(night.quiet_hours),
            quiet_power_w=night.quiet_power_w,
            deadline=None if night.deadline is None else parse_time(night.deadline),
            energy_kwh=night.energy_kwh,
        )

    @property
    def is_any(self) -> bool:
        """True if anything is limited."""
        return self != Limits()

    @property
    def wants_plan(self) -> bool:
        """True if there is a deadline or an energy budget to plan for."""
        return self.deadline is not None or self.energy_kwh is not None

    @property
    def wishes(self) -> tuple[object, ...]:
        """The settings of ``[night]``, to compare with others."""
        return self.deadline, self.energy_kwh, self.quiet, self.quiet_power_w

    def wish(self, option: str) -> float | None:
        """The value of ``night.deadline`` or ``night.energy_kwh``."""
        return self.deadline if option == "night.deadline" else self.energy_kwh

    @property
    def need_power(self) -> tuple[str, ...]:
        """The options that need a power meter."""
        wanted = {
            "hardware.power_limit_w": self.power_w,
            "night.energy_kwh": self.energy_kwh,
            "night.quiet_power_w": self.quiet_power_w,
        }
        return tuple(option for option, value in wanted.items() if value is not None)

    @property
    def needs_meters(self) -> bool:
        """True if a device has to report its temperature or power for them."""
        return bool(self.need_power) or self.temperature_c is not None or self.memory_temperature_c is not None
