"""The speed of bf16 on a CPU, measured by a matrix product of a small layer."""

from __future__ import annotations

import time

import torch

from core.hardware import cpu

#: Rows, inputs and outputs of the product: a micro-batch in a layer of the smallest models.
SHAPE = (256, 576, 1536)
#: Products of each dtype; the fastest counts, so other processes do not matter.
TRIALS = 7


def prefers_bf16() -> bool:
    """True if this CPU computes faster in bf16 than in fp32; measured in a tenth of a second where it is unknown."""
    if cpu.is_bf16_measured():
        return cpu.prefers_bf16()
    return cpu.keep_bf16_measurement(speed_ratio())


def speed_ratio() -> float:
    """Speed of a matrix product in bf16 as a multiple of the same in fp32."""
    return _seconds(torch.float32) / _seconds(torch.bfloat16)


@torch.no_grad()
def _seconds(dtype: torch.dtype) -> float:
    rows, inputs, outputs = SHAPE
    # Zeros take as long as other values, and do not touch the random state.
    x, weight = torch.zeros(rows, inputs, dtype=dtype), torch.zeros(outputs, inputs, dtype=dtype)
    taken = []
    for _ in range(TRIALS):
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        taken.append(time.perf_counter() - began)
    return max(min(taken), 1e-9)
