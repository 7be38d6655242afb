"""Check of the driver: its meters are of the card that torch computes on. It also collects facts about the device."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.hardware import amd, cpu
from core.hardware.amd import AmdSource
from core.hardware.card import Card, find_card
from core.hardware.cpu import prefers_bf16
from core.hardware.drivers import is_rocm
from core.hardware.nvml import Nvml, NvmlUnavailableError
from core.hardware.power import may_set_power
from core.hardware.snapshot import Device
from core.units import format_bytes
from core.worker.selftest.check import Bench, Outcome

#: Allowed difference of the driver's memory from torch's, as a share of the card: of the total, where torch leaves out
#: a reserve, and of the free memory, which other programs change between two readings.
TOTAL_MARGIN, FREE_MARGIN = 0.06, 0.03


@dataclass(frozen=True)
class TorchCard:
    """The card as torch sees it: its name, its UUID as the driver has it, its memory in bytes, and the architecture of
    an AMD card."""

    name: str
    uuid: str
    total: int
    free: int
    architecture: str = ""


@dataclass(frozen=True)
class Meters:
    """The driver's readings of a card, and its version; ``device`` is None if it does not list the card."""

    device: Device | None
    driver: str

    @classmethod
    def read(cls, index: int) -> Meters:
        """Ask the driver that torch is built for: AMD's for ROCm, else NVML.

        Args:
            index: The card's index at the driver.

        Raises:
            NvmlUnavailableError: If NVML cannot be asked.
        """
        if is_rocm():
            return cls(_by_index(AmdSource().read(), index), amd.driver_version())
        with contextlib.closing(Nvml()) as nvml:
            return cls(_by_index(nvml.devices(), index), nvml.driver_version or "")


def _by_index(devices: Sequence[Device], index: int) -> Device | None:
    return next((device for device in devices if device.index == index), None)


def check(bench: Bench) -> Outcome:
    """Compare the driver's card with torch's; on a CPU, check that there is no card that torch misses."""
    from core.worker.process import environment

    environment.prepare()
    bench.tell("importing torch", None, None)
    import torch

    from core.worker.model.device import name_of, uuid_of
    from core.worker.process.probe import architecture_of, has_bf16

    bench.tell("asking the driver", None, None)
    planned = find_card() if bench.sizes.device != "cpu" else None
    if bench.sizes.device == "cpu" or not torch.cuda.is_available():
        return judge_cpu(planned, cpu_facts(torch.__version__))
    card = torch.device("cuda", torch.cuda.current_device())
    # The first call creates the context, so that both readings include it.
    torch.ones(16, 16, device="cuda").sum().item()
    properties = torch.cuda.get_device_properties(card)
    free, total = torch.cuda.mem_get_info(card)
    seen = TorchCard(name_of(card), uuid_of(card), total, free, architecture_of(card))
    facts: dict[str, Any] = {
        "kind": "cuda",
        "name": seen.name,
        "memory_bytes": properties.total_memory,
        "dtype": "bf16" if has_bf16(card) else "fp16",
        "torch": torch.__version__,
    }
    if seen.architecture:
        facts |= {"architecture": seen.architecture, "rocm": torch.version.hip}
    else:
        facts |= {"capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda or ""}
    if planned is None:
        return Outcome("fail", f"torch computes on {seen.name}, which the driver's list does not have.", facts)
    try:
        meters = Meters.read(planned.index)
    except NvmlUnavailableError as error:
        return Outcome("fail", f"torch computes on {seen.name}, and NVML cannot be asked: {error.reason}", facts)
    facts |= {"driver": meters.driver, "index": planned.index}
    return judge(seen, planned, meters.device, facts)


def judge(seen: TorchCard, planned: Card, device: Device | None, facts: dict[str, Any]) -> Outcome:
    """The outcome on a card.

    Args:
        seen: The card as torch sees it.
        planned: The card of the plan.
        device: The driver's readings of that card.
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
    if seen.architecture != planned.architecture:
        wrong = f"torch computes on {seen.architecture}, and the driver has {planned.architecture or 'no architecture'}"
        return Outcome("fail", f"{wrong} for {seen.name}.", facts)
    apart = _memory_apart(seen, device)
    if apart is not None:
        return Outcome("fail", f"Driver and torch do not agree on the memory: {apart}.", facts)
    same = "the same card by its UUID" if seen.uuid and planned.uuid else "the same card by its name"
    said = [
        f"{same}, {format_bytes(seen.free)} of {format_bytes(seen.total)} free by torch and "
        f"{format_bytes(device.available)} by the driver"
    ]
    if device.temperature_limit_c is None:
        said.append("the temperature at which it slows down is not found")
        return Outcome("fail", _sentence(said), facts)
    degrees = "unknown" if device.temperature_c is None else f"{device.temperature_c:.0f} °C"
    said.append(f"{degrees}, slows down at {device.temperature_limit_c:.0f}")
    said.append(describe_power(device))
    return Outcome("pass", _sentence(said), facts)


def _sentence(clauses: Sequence[str]) -> str:
    text = "; ".join(clauses)
    return f"{text[0].upper()}{text[1:]}."


def _memory_apart(seen: TorchCard, device: Device) -> str | None:
    if device.memory_total is None or device.available is None:
        return "the driver does not tell it"
    readings = (
        ("in all", device.memory_total, seen.total, TOTAL_MARGIN),
        ("free", device.available, seen.free, FREE_MARGIN),
    )
    for what, by_driver, by_torch, margin in readings:
        if abs(by_driver - by_torch) > margin * seen.total:
            return f"{format_bytes(by_driver)} {what} and {format_bytes(by_torch)}, where {margin:.0%} is allowed"
    return None


def describe_power(device: Device) -> str:
    """The power limit of a card and the right to set it, as a clause."""
    limit, low, high = device.power_limit_w, device.power_limit_min_w, device.power_limit_max_w
    if limit is None:
        return "its power limit cannot be read"
    if low is None or high is None:
        return f"power limit {limit:.0f} W, which cannot be set"
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
    """Free memory of a card by its index at the driver; None where unknown."""
    with contextlib.suppress(NvmlUnavailableError):
        device = Meters.read(index).device
        return None if device is None else device.available
    return None
