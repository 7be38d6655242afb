"""One device at one moment, whatever reported it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU or the CPU. What a device does not report is None, never 0.

    Temperatures in °C, memory in bytes, utilization and fan in percent, power in W, clock in MHz.
    """

    index: int
    kind: str
    """``cuda``, ``rocm`` or ``cpu``."""
    name: str
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None
    utilization: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    fan: float | None = None
    clock: float | None = None
    throttle_reasons: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a ``hardware`` event."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Device:
        """Back from an event; unknown keys are ignored.

        Raises:
            TypeError: If a required key is missing.
        """
        return cls(**{key: value for key, value in data.items() if key in cls.__dataclass_fields__})
