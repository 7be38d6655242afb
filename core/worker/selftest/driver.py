"""Check of the driver: NVML reads the card that torch computes on; it also collects facts about the device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.hardware import cpu
from core.hardware.card import Card, find_card
from core.hardware.cpu import prefers_bf16
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.power import may_set_power
from core.hardware.snapshot import Device
from core.units import format_bytes
from core.worker.selftest.check import Bench, Outcome

#: Allowed difference of NVML's memory from torch's, as a share of the card: of the total, where torch leaves out the
#: driver's reserve, and of the free memory, which other programs change between two readings.
TOTAL_MARGIN, FREE_MARGIN = 0.06, 0.03


@dataclass(frozen=True)
class TorchCard:
    """The card as torch sees it: its name, its UUID without a prefix, and its memory in bytes."""

    name: str
    uuid: str
    total: int
    free: int


def check(bench: Bench) -> Outcome:
    """Compare the driver's card with torch's; on a CPU, check that there is no card that torch misses."""
    from core.worker.process import environment

    environment.prepare()
    bench.tell("importing torch", None, None)
    import torch

    bench.tell("asking the driver", None, None)
    planned = find_card() if bench.sizes.device != "cpu" else None
    if bench.sizes.device == "cpu" or not torch.cuda.is_available():
        return judge_cpu(planned, cpu_facts(torch.__version__))
    index = torch.cuda.current_device()
    # The first call creates the context, so that both readings include it.
    torch.ones(16, 16, device="cuda").sum().item()
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    seen = TorchCard(properties.name, str(getattr(properties, "uuid", "")), total, free)
    facts: dict[str, Any] = {
        "kind": "cuda",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "dtype": "bf16" if properties.major >= 8 else "fp16",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
    }
    try:
        with contextlib.closing(Nvml()) as nvml:
            facts["driver"] = nvml.driver_version or ""
            if planned is None:
                return Outcome("fail", f"torch computes on {seen.name}, which the driver's list does not have.", facts)
            device = next((item for item in nvml.devices() if item.index == planned.index), None)
            facts["index"] = planned.index
            power_range = nvml.power_range(planned.index)
    except NvmlUnavailableError as error:
        return Outcome("fail", f"torch computes on {seen.name}, and NVML cannot be asked: {error.reason}", facts)
    return judge(seen, planned, device, power_range, facts)


def judge(
    seen: TorchCard,
    planned: Card,
    device: Device | None,
    power_range: tuple[float, float] | None,
    facts: dict[str, Any],
) -> Outcome:
    """The outcome on a card.

    Args:
        seen: The card as torch sees it.
        planned: The card of the plan.
        device: NVML's readings of that card.
        power_range: The least and greatest power limit that it accepts, in watts; None if it has none to set.
        facts: Facts about the device.
    """
    if device is None or device.problem:
        what = device.problem if device is not None else "it is not listed"
        return Outcome("fail", f"The driver cannot read {seen.name}: {what}.", facts)
    if seen.uuid and planned.uuid and not planned.uuid.endswith(seen.uuid.removeprefix("GPU-")):
        return Outcome(
            "fail",
            f"torch computes on {seen.name}, and the readings and the plan are of another card, {planned.name}.",
            facts,
        )
    apart = _memory_apart(seen, device)
    if apart is not None:
        return Outcome("fail", f"NVML and torch do not agree on the memory: {apart}.", facts)
    same = "the same card by its UUID" if seen.uuid and planned.uuid else "the same card by its name"
    said = [
        f"{same}, {format_bytes(seen.free)} of {format_bytes(seen.total)} free by torch and "
        f"{format_bytes(device.available)} by NVML"
    ]
    if device.temperature_limit_c is None:
        said.append("the temperature at which it slows down is not found")
        return Outcome("fail", _sentence(said), facts)
    degrees = "unknown" if device.temperature_c is None else f"{device.temperature_c:.0f} °C"
    said.append(f"{degrees}, slows down at {device.temperature_limit_c:.0f}")
    said.append(describe_power(device.power_limit_w, power_range))
    return Outcome("pass", _sentence(said), facts)


def _sentence(clauses: Sequence[str]) -> str:
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _memory_apart(seen: TorchCard, device: Device) -> str | None:
    if device.memory_total is None or device.available is None:
        return "NVML does not tell it"
    readings = (
        ("in all", device.memory_total, seen.total, TOTAL_MARGIN),
        ("free", device.available, seen.free, FREE_MARGIN),
    )
    for what, by_nvml, by_torch, margin in readings:
        if abs(by_nvml - by_torch) > margin * seen.total:
            return f"{format_bytes(by_nvml)} {what} and {format_bytes(by_torch)}, where {margin:.0%} is allowed"
    return None


def describe_power(limit: float | None, power_range: tuple[float, float] | None) -> str:
    """The power limit and the right to set it, as a clause."""
    if limit is None:
        return "its power limit cannot be read"
    if power_range is None:
        return f"power limit {limit:.0f} W, which cannot be set"
    low, high = power_range
    who = "this user may" if may_set_power() else "root alone may"
    return f"power limit {limit:.0f} W, which {who} set from {low:.0f} to {high:.0f} W"


def judge_cpu(planned: Card | None, facts: dict[str, Any]) -> Outcome:
    """The outcome where torch computes on the CPU."""
    if planned is not None:
        return Outcome(
            "fail",
            f"The driver has {planned.name}, and torch does not compute on it: 'localtune-tui doctor' says why.",
            facts,
        )
    return Outcome(
        "not applicable", "Training is on the CPU here; there is no card whose readings could be wrong.", facts
    )


def cpu_facts(torch_version: str) -> dict[str, Any]:
    """Facts about a CPU as the device."""
    return {
        "kind": "cpu",
        "name": cpu.cpu_name(),
        "memory_bytes": cpu.memory()[1],
        "threads": len(os.sched_getaffinity(0)),
        "dtype": "bf16" if prefers_bf16() else "fp32",
        "torch": torch_version,
    }


def free_memory(index: int) -> int | None:
    """Free memory of a card by NVML's index; None where unknown."""
    try:
        with contextlib.closing(Nvml()) as nvml:
            return next((device.available for device in nvml.devices() if device.index == index), None)
    except NvmlUnavailableError:
        return None
