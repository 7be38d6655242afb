"""A snapshot of one device, whatever its source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

#: Limits of plausible values: no machine has more devices, nor a device a greater reading in any of its units.
_MOST_DEVICES, _MOST = 1 << 16, 1e9
_MOST_BYTES = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU or the CPU. A value that the device does not report is None, never 0.

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
    """Reasons for throttling, in words: ``power cap``, ``thermal slowdown``."""
    problem: str = ""
    """The reason why the device cannot be read, as one sentence; empty while it can."""
    memory_free: int | None = None
    """Memory that can be allocated: what is neither used nor kept by the driver for itself."""
    uuid: str = ""
    """The UUID of the GPU, or of the MIG instance that is computed on; empty where there is none."""
    memory_temperature_c: float | None = None
    power_limit_min_w: float | None = None
    """The least and the greatest power limit that the card can be set to."""
    power_limit_max_w: float | None = None

    @property
    def available(self) -> int | None:
        """Free memory; None where the device does not report it."""
        if self.memory_free is not None or self.memory_used is None or self.memory_total is None:
            return self.memory_free
        return self.memory_total - self.memory_used

    def to_dict(self) -> dict[str, Any]:
        """The device as in a ``hardware`` event."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Device:
        """A device from an event; unknown keys are ignored, and a value of the wrong type counts as not reported.

        Raises:
            TypeError: If it is not an object, or has no index, kind or name.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"{data!r} is no device")
        index, kind, name = data.get("index"), data.get("kind"), data.get("name")
        if type(index) is not int or not isinstance(kind, str) or not isinstance(name, str):
            raise TypeError("a device needs an index, a kind and a name")
        if index not in range(_MOST_DEVICES):
            raise TypeError("no machine has so many devices")
        reasons, problem, uuid = data.get("throttle_reasons"), data.get("problem"), data.get("uuid")
        return cls(
            index=index,
            kind=kind,
            name=name,
            throttle_reasons=[item for item in reasons if isinstance(item, str)] if isinstance(reasons, list) else [],
            problem=problem if isinstance(problem, str) else "",
            uuid=uuid if isinstance(uuid, str) else "",
            memory_free=_bytes(data.get("memory_free")),
            memory_used=_bytes(data.get("memory_used")),
            memory_total=_bytes(data.get("memory_total")),
            temperature_c=_number(data.get("temperature_c")),
            temperature_limit_c=_number(data.get("temperature_limit_c")),
            utilization=_number(data.get("utilization")),
            power_w=_number(data.get("power_w")),
            power_limit_w=_number(data.get("power_limit_w")),
            fan=_number(data.get("fan")),
            clock=_number(data.get("clock")),
            memory_temperature_c=_number(data.get("memory_temperature_c")),
            power_limit_min_w=_number(data.get("power_limit_min_w")),
            power_limit_max_w=_number(data.get("power_limit_max_w")),
        )

    @classmethod
    def all_from(cls, items: Iterable[object]) -> list[Device]:
        """The devices of an event; invalid ones are left out, as a missing meter is better than no view of the run."""
        found: list[Device] = []
        for item in items:
            with suppress(TypeError):
                found.append(cls.from_dict(item))
        return found


def _number(value: object) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) <= _MOST else None  # type: ignore[arg-type]


def _bytes(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_BYTES else None
