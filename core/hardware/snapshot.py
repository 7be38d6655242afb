"""A snapshot of one device, and of the machine around it, whatever their sources; and the meaning of Xid errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import tomli

#: Limits of plausible values: no machine has more devices, nor a device a greater reading in any of its units.
_MOST_DEVICES, _MOST = 1 << 16, 1e9
_MOST_BYTES = 1 << 60
#: Most entries of a list in an event; a record from elsewhere may hold any number.
_MOST_ENTRIES = 256
#: The most that a counter of joules (thirty years at 1 kW), a rate of bytes or a time in seconds may be.
_MOST_COUNTED = 1e12
_COUNTED = ("energy_j", "pcie_tx", "pcie_rx")


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses memory of a GPU; ``memory`` in bytes, None when the driver does not report it.

    ``name`` and ``owner`` are empty if the process is gone or in another container.
    """

    pid: int
    memory: int | None
    name: str = ""
    owner: str = ""

    @classmethod
    def from_dict(cls, data: object) -> GpuProcess:
        """A process from an event.

        Raises:
            TypeError: If it is not an object with a process id.
        """
        if not isinstance(data, Mapping) or type(pid := data.get("pid")) is not int:
            raise TypeError("a process needs an id")
        return cls(pid, _bytes(data.get("memory")), _text(data.get("name")), _text(data.get("owner")))


@dataclass(frozen=True)
class Xid:
    """An error of a GPU by its driver's number (:func:`explain_xid` has the words), and when it was read, in Unix
    seconds."""

    code: int
    t: float

    @classmethod
    def from_dict(cls, data: object) -> Xid:
        """An error from an event.

        Raises:
            TypeError: If it is not an object with a code and a time.
        """
        if not isinstance(data, Mapping) or type(code := data.get("code")) is not int or not 0 <= code < _MOST:
            raise TypeError("an Xid needs a code")
        if (moment := _number(data.get("t"), _MOST_COUNTED)) is None:
            raise TypeError("an Xid needs a time")
        return cls(code, moment)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A GPU or the CPU. A value that the device does not report is None, never 0.

    Temperatures in °C, memory in bytes, utilization and fans in percent, power in W, clocks in MHz, PCIe traffic in
    bytes per second, energy in J.
    """

    index: int
    kind: str
    """``cuda``, ``rocm`` or ``cpu``."""
    name: str
    temperature_c: float | None = None
    temperature_limit_c: float | None = None
    """The temperature at which the device begins to hold itself back."""
    memory_used: int | None = None
    memory_total: int | None = None
    utilization: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    fan: float | None = None
    """The fastest of the fans."""
    clock: float | None = None
    """The clock of the multiprocessors."""
    throttle_reasons: list[str] = field(default_factory=list)
    """Reasons for throttling, in words: ``power cap``, ``thermal slowdown``."""
    problem: str = ""
    """The reason why the device cannot be read, as one sentence; empty while it can."""
    memory_free: int | None = None
    """Memory that can be allocated: neither used nor reserved by the driver."""
    uuid: str = ""
    """The UUID of the GPU, or of the MIG instance in use; empty if there is none."""
    memory_temperature_c: float | None = None
    memory_temperature_limit_c: float | None = None
    temperature_slowdown_c: float | None = None
    """The temperature at which the hardware forces the clocks down."""
    temperature_shutdown_c: float | None = None
    temperature_margin_c: float | None = None
    """Degrees left until the device holds itself back; negative beyond."""
    power_limit_min_w: float | None = None
    power_limit_max_w: float | None = None
    memory_clock: float | None = None
    fans: list[float] = field(default_factory=list)
    pcie_generation: int | None = None
    pcie_width: int | None = None
    pcie_generation_max: int | None = None
    pcie_width_max: int | None = None
    pcie_tx: float | None = None
    """Bytes per second from the device to the host."""
    pcie_rx: float | None = None
    energy_j: float | None = None
    """Energy by the device's own counter, which begins when its driver is loaded."""
    processes: list[GpuProcess] = field(default_factory=list)
    """The processes that use the device's memory, most first."""
    xid: list[Xid] = field(default_factory=list)
    """The newest errors that the driver reported while it was read."""
    age_s: float | None = None
    """Seconds since these values were read, where the driver has not answered since; None while it answers."""

    @property
    def available(self) -> int | None:
        """Free memory; None if the device does not report it."""
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
            raise TypeError(f"{data!r} is not a device")
        index, kind, name = data.get("index"), data.get("kind"), data.get("name")
        if type(index) is not int or not isinstance(kind, str) or not isinstance(name, str):
            raise TypeError("a device needs an index, a kind and a name")
        if index not in range(_MOST_DEVICES):
            raise TypeError("no machine has so many devices")
        return cls(index=index, kind=kind, name=name, **_reported(cls, data))

    @classmethod
    def all_from(cls, items: Iterable[object]) -> list[Device]:
        """The devices of an event; invalid ones are left out, as a missing meter is better than no view of the run."""
        return _all_of(cls, items)


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine around the devices, or the container. A value that is not reported is None, never 0.

    Memory and disk in bytes, temperature in °C, power in W, utilization in percent.
    """

    load: float | None = None
    """Processes that run or wait to, over the last minute."""
    cores: list[float] = field(default_factory=list)
    """The utilization of each core since the last reading; empty at the first."""
    ram_used: int | None = None
    ram_total: int | None = None
    swap_used: int | None = None
    swap_total: int | None = None
    disk_free: int | None = None
    """Free space where the home is."""
    cpu_temperature_c: float | None = None
    cpu_power_w: float | None = None
    """Power of the processor packages, by RAPL."""

    def to_dict(self) -> dict[str, Any]:
        """The machine as in a ``hardware`` event."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Host | None:
        """The machine from an event; None if there is none in it."""
        if not isinstance(data, Mapping):
            return None
        return cls(**_reported(cls, data))


def _reported(kind: type[Device | Host], data: Mapping[Any, object]) -> dict[str, Any]:
    """The optional fields of a dataclass from an event, each read by its annotation."""
    found = {}
    for one in fields(kind):
        if one.default is not MISSING or one.default_factory is not MISSING:
            value = data.get(one.name)
            found[one.name] = _number(value, _MOST_COUNTED) if one.name in _COUNTED else _READERS[str(one.type)](value)
    return found


def _number(value: object, most: float = _MOST) -> float | None:
    return float(value) if type(value) in (int, float) and abs(value) <= most else None  # type: ignore[arg-type]


def _bytes(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_BYTES else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _entries(value: object) -> list[Any]:
    return value[:_MOST_ENTRIES] if isinstance(value, list) else []


def _all_of(kind: Any, items: Iterable[object]) -> list[Any]:
    found = []
    for item in items:
        with suppress(TypeError):
            found.append(kind.from_dict(item))
    return found


#: Readers of values by their annotation; a value of another type counts as not reported.
_READERS: dict[str, Callable[[object], Any]] = {
    "str": _text,
    "float | None": _number,
    "int | None": _bytes,
    "list[str]": lambda value: [item for item in _entries(value) if isinstance(item, str)],
    "list[float]": lambda value: [number for item in _entries(value) if (number := _number(item)) is not None],
    "list[GpuProcess]": lambda value: _all_of(GpuProcess, _entries(value)),
    "list[Xid]": lambda value: _all_of(Xid, _entries(value)),
}


@dataclass(frozen=True)
class XidMeaning:
    """Meaning of an Xid, an error code of NVIDIA's driver.

    Args:
        words: The end of a sentence: "GPU 0 reports Xid 79: …".
        hint: The remedy.
        level: ``info``, ``warning`` or ``error``, as of a notice.
    """

    words: str
    hint: str
    level: str = "warning"


@functools.cache
def explain_xid(code: int) -> XidMeaning:
    """The meaning of an Xid, or of an unknown one."""
    meanings = tomli.loads(Path(__file__).with_name("xids.toml").read_text(encoding="utf-8"))
    return XidMeaning(**meanings.get(str(code), meanings["unknown"]))
