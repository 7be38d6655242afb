"""NF4 on a CPU: quantization without a search per weight, and dequantization of rows of any length.

bitsandbytes quantizes on CPUs with torch's own operations, and finds each weight's code by a binary search, which
dominates the time to load a model. Here a table has the code for every small range, and one comparison decides the
rest. The results are bit-equal.

Blocks run through the whole tensor, so a block may start inside a row. bitsandbytes' kernel for CPUs instead starts a
block with each row, where the row length is a multiple of 16 but not of the block (bitsandbytes 0.50), and applies the
wrong scales. Here it gets the same numbers in rows of whole blocks.

Source: NF4, QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import bitsandbytes as bnb
import torch

OPERATOR = "bitsandbytes::quantize_4bit"
NAMESPACE, RESTORE = "bitsandbytes", "dequantize_4bit"
#: Ranges between -1 and 1; enough that no range contains two bounds between codes.
RANGES = 1024
#: Generous limit of how far rounding moves a weight out of its range.
MARGIN = 1e-6
#: Weights at a time, so that temporaries stay in the CPU's cache.
AT_ONCE = 1 << 18


@functools.cache
def quantize_quickly() -> bool:
    """Make bitsandbytes quantize tensors on a CPU to 4 bits by this module from now on.

    Returns:
        True if it does; False if bitsandbytes has its own code for CPUs.
    """
    if torch._C._dispatch_has_kernel_for_dispatch_key(OPERATOR, "CPU"):
        return False
    torch.library.register_kernel(OPERATOR, "cpu", quantize_4bit)
    return True


def whole_blocks(elements: int, block: int) -> torch.Size:
    """A shape for quantized weights, with rows of whole blocks where possible.

    Args:
        elements: Their number.
        block: Weights per scale.
    """
    return torch.Size((elements // block, block) if elements % block == 0 else (1, elements))


@functools.cache
def dequantize_rightly() -> torch.library.Library | None:
    """Make bitsandbytes dequantize 4-bit weights of any width correctly on a CPU from now on.

    Returns:
        The registration, which must be kept alive; None if bitsandbytes has no code for CPUs, and none is needed.
    """
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{RESTORE}", "CPU"):
        return None
    kernel = torch.library.get_kernel(f"{NAMESPACE}::{RESTORE}", "CPU")

    def dequantize(
        packed: torch.Tensor,
        absmax: torch.Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> torch.Tensor:
        rows = shape if shape[-1] % blocksize == 0 else whole_blocks(math.prod(shape), blocksize)
        keys = torch._C._dispatch_keys(packed)
        found: torch.Tensor = kernel.call_boxed(keys, packed, absmax, blocksize, quant_type, rows, dtype)
        return found.view(shape)

    library = torch.library.Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a kernel is replaced, which is intended
        library.impl(RESTORE, dequantize, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
    return library


def quantize_4bit(
    weights: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize block by block.

    Args:
        weights: Any shape, floating point.
        blocksize: Weights per scale.
        quant_type: ``nf4`` or ``fp4``.
        quant_storage: Dtype of the packed result.

    Returns:
        Two codes per byte, ``(bytes, 1)`` in ``quant_storage``; and each block's largest magnitude, fp32.
    """
    flat = weights.reshape(-1)
    packed, largest = [], []
    for part in torch.split(flat, blocksize * max(1, AT_ONCE // blocksize)):
        scaled, magnitudes = _scale(part.float(), blocksize)
        if len(scaled) % 2:
            scaled = torch.nn.functional.pad(scaled, (0, 1))
        find = _values if bool(magnitudes.isfinite().all()) else _values_searched
        values = find(scaled, quant_type)
        packed.append(values[::2] << 4 | values[1::2])
        largest.append(magnitudes)
    found = torch.cat(packed)
    if quant_storage != torch.uint8:
        found = found.view(quant_storage)
    return found[:, None], torch.cat(largest)


def _scale(flat: torch.Tensor, blocksize: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights scaled to -1 to 1, and their divisors; fp32."""
    whole = len(flat) - len(flat) % blocksize
    blocks, rest = flat[:whole].view(-1, blocksize), flat[whole:]
    magnitudes = blocks.abs().amax(dim=1)
    # Rounded as in bitsandbytes: a product with the reciprocal, but a quotient for an incomplete block.
    scaled = (blocks * (1.0 / magnitudes.clamp(min=_SMALLEST))[:, None]).view(-1)
    if len(rest):
        magnitude = rest.abs().amax().clamp(min=_SMALLEST)
        scaled = torch.cat([scaled, rest / magnitude])
        magnitudes = torch.cat([magnitudes, magnitude[None]])
    return scaled, magnitudes


#: bitsandbytes' divisor for a block of zeros.
_SMALLEST = 1e-38


def _values(scaled: torch.Tensor, quant_type: str) -> torch.Tensor:
    """The code of the nearest value for each weight, uint8."""
    tables = _tables(quant_type)
    ranges = torch.add(RANGES / 2, scaled, alpha=RANGES / 2).to(torch.int32)
    places = tables.lowest.index_select(0, ranges)
    places += scaled > tables.bounds.index_select(0, ranges)
    return places if tables.order is None else tables.order.index_select(0, places.int())


def _values_searched(scaled: torch.Tensor, quant_type: str) -> torch.Tensor:
    """The same, where some weights are not finite, and so in no range."""
    tables = _tables(quant_type)
    places = torch.bucketize(scaled.clamp(-1, 1), tables.between, out_int32=True)
    return places.to(torch.uint8) if tables.order is None else tables.order.index_select(0, places)


@dataclass(frozen=True)
class _Tables:
    """The values of a 4-bit type between -1 and 1."""

    between: torch.Tensor
    """Bounds between two values, ``(15,)``, fp32."""
    lowest: torch.Tensor
    """For each range the rank of the value nearest to its start; uint8."""
    bounds: torch.Tensor
    """For each range the bound to the next value; fp32."""
    order: torch.Tensor | None
    """The codes of the values in order, uint8; None where they equal the ranks."""


@functools.cache
def _tables(quant_type: str) -> _Tables:
    values, order = bnb.functional.get_4bit_type(quant_type, device="cpu").sort()
    between = (values[:-1] + values[1:]) / 2
    starts = torch.arange(RANGES + 1, dtype=torch.float64) * (2 / RANGES) - 1 - MARGIN
    lowest = torch.bucketize(starts.float(), between)
    bounds = torch.cat([between, torch.tensor([torch.inf])])[lowest]
    in_order = torch.equal(order, torch.arange(len(order)))
    return _Tables(between, lowest.to(torch.uint8), bounds, None if in_order else order.to(torch.uint8))
