"""Roofline of a traced step: each kernel takes the time of its arithmetic or of its traffic, whichever is longer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fake_cuda.tracer import Launch, Trace


@dataclass(frozen=True)
class Rates:
    """Rates that a card reaches.

    Args:
        matrix: Operations per second of products in 16 bits.
        memory: Bytes per second.
        least: Seconds that a kernel takes at least.
    """

    matrix: float
    memory: float
    least: float


#: The data sheet's rates of tensor cores with sums in fp32 and of memory (NVIDIA Ada and Ampere GA102 whitepapers),
#: by the shares that libraries reach: 0.91 and 0.88. Assumed, not measured.
CARDS = {"4090": Rates(150e12, 0.88 * 1.008e12, 2.5e-6), "3090": Rates(63e12, 0.88 * 0.936e12, 3e-6)}
#: Rate of attention's kernels, as a share of that of products; assumed.
FORWARD, BACKWARD = 0.65, 0.5


def seconds(trace: Trace) -> dict[str, float]:
    """Seconds of the kernels of a step by card.

    Args:
        trace: The step.
    """
    return {card: sum(_of(launch, rates) for launch in trace.launches) for card, rates in CARDS.items()}


def _of(launch: Launch, rates: Rates) -> float:
    attends = "flash_attention" in launch.name or "varlen_attn" in launch.name
    share = 1.0 if not attends else BACKWARD if launch.name.endswith("backward") else FORWARD
    return max(launch.flops / (rates.matrix * share), launch.bytes / rates.memory, rates.least)
