"""Experts in host memory: what they take there, what of them is on the GPU, and what goes over the bus."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.config.schema import Config
from core.config.targets import experts_stay_16bit, kept_patterns
from core.memory.plan import Machine, Plan
from core.memory.sizes import EXPERT_LAYERS, HOST_SLAB, quantized_experts_bytes
from core.memory.step_time import Rates, StepTime
from core.models.architecture.architecture import Architecture
from core.units import format_bytes

#: Why they are not moved under WSL 2.
_NOT_PINNED = "pinned memory is short under WSL 2, and memory.offload_experts = on takes it all the same"


@dataclass(frozen=True)
class HostExperts:
    """Experts in host memory.

    Args:
        layers: Bytes of the 4-bit experts of each layer that has any, in order.
    """

    layers: tuple[int, ...]

    @property
    def device_bytes(self) -> int:
        """Bytes of the buffers on the GPU: the layer at work, and the next."""
        return max(self.layers, default=0) * min(EXPERT_LAYERS, len(self.layers))

    @property
    def host_bytes(self) -> int:
        """Bytes of pinned host memory, which is taken in slabs."""
        return math.ceil(sum(self.layers) / HOST_SLAB) * HOST_SLAB

    @property
    def moved_bytes(self) -> int:
        """Bytes that go over the bus for a micro-batch: every layer forward and every layer backward, but for those in
        the buffers when the direction turns.
        """
        return 2 * sum(sorted(self.layers)[: max(len(self.layers) - EXPERT_LAYERS, 0)])


def experts_on_host(model: Architecture, keep: Sequence[str] = ()) -> HostExperts:
    """The experts of a model that can live in host memory: those in 4 bits.

    Args:
        model: The model.
        keep: Names and patterns of layers that stay in 16 bit, as ``model.keep_16bit``.
    """
    number, found = 0, []
    for layer in model.layers:
        for place in range(number, number + layer.count):
            if layer.experts is None:
                continue
            size = sum(
                quantized_experts_bytes(layer.experts.count, weights)
                for name, weights in zip(layer.experts.names, layer.experts.stacked, strict=True)
                if not experts_stay_16bit(f"{model.prefix}.{place}.{layer.experts.name}", name, keep)
            )
            found += [size] if size else []
        number += layer.count
    return HostExperts(tuple(found))


def movable_experts(model: Architecture, config: Config) -> bool:
    """Whether a run has 4-bit experts, which can live in host memory.

    Args:
        model: The base model.
        config: Configuration of the run.
    """
    return config.method.name == "qlora" and bool(experts_on_host(model, kept_patterns(config.model.keep_16bit)).layers)


def place_experts(model: Architecture, config: Config, machine: Machine, plan: Callable[[bool], Plan]) -> Plan:
    """The plan with experts where ``memory.offload_experts`` has them; with ``auto`` in host memory where the run would
    not fit otherwise, and does so.

    Args:
        model: The base model.
        config: Configuration of the run.
        machine: Machine of the run.
        plan: Makes the plan with 4-bit experts in host memory, or on the device.
    """
    movable = machine.kind == "cuda" and movable_experts(model, config)
    wanted = config.memory.offload_experts if movable else "off"
    here = plan(wanted == "on")
    if wanted != "auto" or here.fits is not False:
        return here
    there = plan(True)
    if not there.fits:
        return here
    needed = f"With its experts in the machine's memory the run would take {format_bytes(there.needed_bytes)}"
    if not machine.pins:
        return replace(here, notes=(*here.notes, f"{needed}: {_NOT_PINNED}."))
    if there.host_fits is False:
        short = (
            f"that takes {format_bytes(there.experts_host_bytes)}, and {format_bytes(there.host_free_bytes)} are free"
        )
        return replace(here, notes=(*here.notes, f"{needed}; {short}."))
    return there


def tell_host_experts(experts: HostExperts, step: StepTime, rates: Rates, free: int | None) -> str:
    """What it takes that experts live in host memory, in two sentences.

    Args:
        experts: The experts.
        step: Estimated time of a step with them there.
        rates: Rates of the device.
        free: Free host memory; None if unknown.
    """
    size = experts.host_bytes
    short = f", where {format_bytes(free)} are free" if free is not None and size > free else ""
    copies = f"{format_bytes(experts.moved_bytes)} for each micro-batch, {step.moved_seconds:.1f} s a step"
    return (
        f"The experts take {format_bytes(size)} of the machine's memory{short}, and come to the card layer by layer "
        f"while it computes. That is {copies} at {rates.host / 1e9:.0f} GB/s ({rates.host_source}); a step takes about "
        f"{step.seconds:.1f} s."
    )
