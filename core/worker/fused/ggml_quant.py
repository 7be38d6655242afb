"""Quantization and dequantization of ggml's types Q8_0 and Q4_0, to the last bit as llama.cpp does it.

Both divide a row into blocks of 32 weights with one scale ``d``, stored in fp16; codes are computed with the scale
before it is rounded. Quantizing twice changes nothing: ``d`` times the largest code is exact in fp32, and gives ``d``
back.

Source: ``quantize_row_q8_0_ref`` and ``quantize_row_q4_0_ref`` of llama.cpp (``ggml/src/ggml-quants.c``).
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch._subclasses.fake_tensor import FakeTensor

GgmlType = Literal["Q8_0", "Q4_0"]
#: Weights with one scale.
BLOCK = 32
#: Blocks at a time, so that temporaries stay in the CPU's cache.
AT_ONCE = 1 << 13


def ggml_type(name: str) -> GgmlType:
    """The type by its name in any case: ``q4_0``.

    Raises:
        ValueError: If it is unknown.
    """
    known: tuple[GgmlType, ...] = get_args(GgmlType)
    return known[known.index(name.upper())]


def can_quantize(shape: torch.Size) -> bool:
    """True if a tensor can be quantized: its rows are whole blocks."""
    return len(shape) >= 2 and shape[-1] % BLOCK == 0


def fake_quantize(weight: torch.Tensor, kind: GgmlType, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The values that a quantized tensor stands for.

    Args:
        weight: ``(..., inputs)``, floating point; inputs are a multiple of :data:`BLOCK`.
        kind: The type.
        dtype: The dtype of the result; fp32 holds the values exactly.

    Returns:
        A tensor of the same shape, without a gradient.
    """
    weight = weight.detach()
    blocks = weight.reshape(-1, BLOCK)
    values = torch.empty(blocks.shape, dtype=dtype, device=weight.device)
    quantize = quantize_q8_0 if kind == "Q8_0" else quantize_q4_0
    at_once = AT_ONCE if weight.device.type == "cpu" else max(len(blocks), 1)
    for part, out in zip(torch.split(blocks, at_once), torch.split(values, at_once), strict=True):
        scales, codes = quantize(part.float())
        out.copy_(codes.mul_(scales.float()))
    return values.view(weight.shape)


def quantize_q8_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and codes of Q8_0.

    Args:
        blocks: ``(blocks, 32)``, fp32.

    Returns:
        Scales ``(blocks, 1)`` in fp16; codes ``(blocks, 32)``, whole numbers from -127 to 127 in fp32.
    """
    scales = blocks.abs().amax(dim=1, keepdim=True).div_(127)
    scaled = blocks * _reciprocal(scales)
    # Halves round away from zero, unlike torch's round. The fraction is exact.
    whole = scaled.trunc()
    codes = whole.add_(scaled.sub_(whole).mul_(2).trunc_())
    return scales.half(), codes.clamp_(-127, 127)


def quantize_q4_0(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and codes of Q4_0.

    Args:
        blocks: ``(blocks, 32)``, fp32.

    Returns:
        Scales ``(blocks, 1)`` in fp16, negative where the largest weight is positive; codes ``(blocks, 32)``, whole
        numbers from -8 to 7 in fp32.
    """
    scales = _first_largest(blocks).div_(-8)
    codes = (blocks * _reciprocal(scales)).add_(8.5).trunc_().clamp_(0, 15).sub_(8)
    return scales.half(), codes


def _first_largest(blocks: torch.Tensor) -> torch.Tensor:
    """Of each block the weight with the largest magnitude, the first of several; ``(blocks, 1)``."""
    low, high = torch.aminmax(blocks, dim=1, keepdim=True)
    largest = torch.where(-low > high, low, high)
    tied = (high == -low)[:, 0]
    # A fake tensor of a measured pass has no values to look at.
    if not isinstance(blocks, FakeTensor) and bool(tied.any()):
        # argmax does not guarantee the first place on every device.
        some, places = blocks[tied], torch.arange(BLOCK, device=blocks.device)
        first = torch.where(some.abs() == high[tied], places, BLOCK).amin(dim=1, keepdim=True)
        largest[tied] = some.gather(1, first)
    return largest


def _reciprocal(scales: torch.Tensor) -> torch.Tensor:
    """``1 / d``; 0 where that overflows, since such blocks are zeros in fp16."""
    return torch.where(scales.abs() < _SMALLEST, 0.0, scales.reciprocal())


#: The smallest magnitude whose reciprocal is finite in fp32.
_SMALLEST = 2.0**-126
