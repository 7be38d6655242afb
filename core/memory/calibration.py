"""Constants of a device: its calibration, measured and kept in the home, and its rates, measured or assumed.

A calibration is a small private JSON file per device name. A torn, foreign or implausible file counts as missing, and
the plan falls back on its assumptions.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.small_files import read_json

#: Most bytes of a file.
_LIMIT = 64 << 10
#: Greatest plausible values.
_MOST_RUNTIME, _MOST_FRAGMENTATION, _MOST_RATE = 16 << 30, 0.5, 1e17
#: Characters of a file's name that are taken from the device's.
_SLUG_LENGTH = 60
#: Bytes a second from pinned host memory over PCIe 4.0 with 16 lanes, of 31.5 GB/s by its specification; assumed.
HOST_RATE = 20e9


@dataclass(frozen=True)
class Calibration:
    """Constants of the memory plan and of its time estimate, as measured on a device.

    Args:
        device: Name of the device by its driver or the system: ``NVIDIA GeForce RTX 4090``.
        runtime_bytes: Memory of a process without any tensors: on a GPU context, libraries and their workspaces, on a
            CPU interpreter and libraries.
        fragmentation: Memory held by the allocator and not used, as a share of the memory in use. Used for GPUs only.
        torch: Version of torch that it was measured with.
        measured: Date of the measurement: ``2026-01-31``.
        matrix_rate: Floating-point operations a second of large matrix products in the device's 16-bit dtype; None if
            not measured.
        memory_rate: Bytes a second read and written by elementwise kernels; None if not measured.
        host_rate: Bytes a second copied from pinned host memory to a GPU; None if not measured.
    """

    device: str
    runtime_bytes: int
    fragmentation: float
    torch: str
    measured: str
    matrix_rate: float | None = None
    memory_rate: float | None = None
    host_rate: float | None = None

    @property
    def source(self) -> str:
        """Origin of the figures, for the descriptions of the plan's parts."""
        return f"measured on this device on {self.measured}, with torch {self.torch}"


def read_calibration(device: str) -> Calibration | None:
    """The calibration of a device; None if there is no usable one.

    Args:
        device: Name of the device.
    """
    try:
        data = read_json(_path(device), _LIMIT)
    except (OSError, ValueError):
        return None
    found = _from_json(data) if isinstance(data, dict) else None
    # Different names may share a file.
    return found if found is not None and found.device == device else None


def write_calibration(calibration: Calibration) -> Path:
    """Write a calibration, replacing an earlier one of the same device; readable by the user alone.

    Args:
        calibration: The calibration.

    Returns:
        Its file.

    Raises:
        UserError: If the directory cannot be created.
        OSError: If the file cannot be written; an earlier file is untouched.
    """
    path = _path(calibration.device)
    paths.make_private_dir(path.parent)
    write_atomic(path, json.dumps(asdict(calibration), indent=2) + "\n")
    return path


def _path(device: str) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower())[:_SLUG_LENGTH].strip("-")
    return paths.calibration_dir() / f"{slug or 'device'}.json"


def _from_json(data: Mapping[str, object]) -> Calibration | None:
    """The calibration in a file's content; unknown keys are ignored. None if any value is missing or implausible."""
    device, torch, measured = data.get("device"), data.get("torch"), data.get("measured")
    runtime, fragmentation = data.get("runtime_bytes"), _number(data.get("fragmentation"), _MOST_FRAGMENTATION)
    if not isinstance(device, str) or not isinstance(torch, str) or not isinstance(measured, str):
        return None
    if type(runtime) is not int or not 0 < runtime <= _MOST_RUNTIME or fragmentation is None:
        return None
    rates = (_number(data.get(key), _MOST_RATE) or None for key in ("matrix_rate", "memory_rate", "host_rate"))
    return Calibration(device, runtime, fragmentation, torch, measured, *rates)


def _number(value: object, most: float) -> float | None:
    """A finite number that is not negative and at most ``most``; else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= most else None


@dataclass(frozen=True)
class Rates:
    """Rates of a device.

    Args:
        matrix: Floating-point operations a second of large matrix products.
        memory: Bytes a second read and written by elementwise kernels.
        half: Tokens of a micro-batch at which a matrix product reaches half of ``matrix``.
        attention: Rate of attention, as a share of the rate of matrix products.
        launch: Seconds in which the CPU launches the kernels of a layer, forward and backward; they overlap with the
            device's work.
        source: Origin of the numbers, for people: ``estimated``, or where they were measured.
        host: Bytes a second copied from pinned host memory.
        host_source: Origin of ``host``.
    """

    matrix: float
    memory: float
    half: int
    attention: float
    launch: float
    source: str = "estimated"
    host: float = HOST_RATE
    host_source: str = "assumed"


#: Cards by a part of their name: rates reached in 16-bit products and by elementwise kernels; estimates.
_CARDS = {"4090": (150e12, 0.85e12), "3090": (63e12, 0.75e12)}
#: A card of unknown name, and a CPU in bf16: two cores with AVX512-BF16, measured (docs/performance.md).
_ANY_CARD, _CPU = (63e12, 0.75e12), (4.1e11, 2.5e10)
#: Speed of a CPU's products in fp32, as a share of that in bf16.
_CPU_FP32 = 0.47


def rates_of(device: str, calibration: Calibration | None, *, cuda: bool, wide: bool) -> Rates:
    """Rates of a device.

    Args:
        device: Name of the device; empty if unknown.
        calibration: Rates measured on it, if any.
        cuda: Whether it is a GPU.
        wide: Whether it computes in fp32.
    """
    known = next((rates for name, rates in _CARDS.items() if name in device), _ANY_CARD) if cuda else _CPU
    matrix, memory = known
    source = "estimated"
    if calibration is not None and calibration.matrix_rate is not None:
        matrix, source = calibration.matrix_rate, calibration.source
        memory = calibration.memory_rate or memory
    if cuda:
        host, host_source = HOST_RATE, "assumed"
        if calibration is not None and calibration.host_rate is not None:
            host, host_source = calibration.host_rate, calibration.source
        # Products in fp32 do not use the tensor cores.
        return Rates(matrix / (4 if wide else 1), memory, 128, 0.7, 1.9e-3, source, host, host_source)
    return Rates(matrix * (_CPU_FP32 if wide else 1), memory, 400, 0.2, 0.0, source)


def is_known_speed(device: str, calibration: Calibration | None) -> bool:
    """True if the rates of a device are its own, measured or estimated, not assumed from another device.

    Args:
        device: Name of the device; empty if unknown.
        calibration: Rates measured on it, if any.
    """
    measured = calibration is not None and calibration.matrix_rate is not None
    return measured or any(name in device for name in _CARDS)
