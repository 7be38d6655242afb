"""Triton kernels of weight updates: add and round in one pass, and skip non-finite gradients without a device sync.

Triton comes with CUDA builds of torch. The kernels are used if a trial on the device agrees with
:mod:`core.worker.optim.rounding`, which does the same in ten passes and serves the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.fused.triton import OPTIONS

#: Elements per quarter of a program: one call of the random generator gives four numbers.
_QUARTER = 512
_BLOCK = 4 * _QUARTER

# Kernel arguments have no annotations except constexpr: Triton resolves every annotation and knows no other.


def add_update(
    weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: torch.Tensor | None = None
) -> None:
    """As :func:`core.worker.optim.rounding.add_update`, without allocations.

    Args:
        weights: Contiguous, bf16 or fp32.
        update: Contiguous, of as many elements, any floating dtype.
        keep: Factor on the weights, for weight decay.
        seed: Seed of the rounding.
        wanted: int32 flag on the device: at 0 the weights stay unchanged. None for 1.
    """
    total = weights.numel()
    programs = triton.cdiv(total, _BLOCK)
    guard = weights if wanted is None else wanted
    _add_update[(programs,)](
        weights,
        update,
        guard,
        total,
        float(keep),
        seed,
        guarded=wanted is not None,
        rounded=weights.dtype == torch.bfloat16,
        quarter=_QUARTER,
        **OPTIONS,
    )


def clear_unless(wanted: torch.Tensor, values: torch.Tensor) -> None:
    """Set values to zero if the flag on the device is 0; otherwise they are not even read.

    Args:
        wanted: The flag.
        values: Contiguous values.
    """
    programs = triton.cdiv(values.numel(), _BLOCK)
    _clear_unless[(programs,)](values, wanted, values.numel(), block=_BLOCK, **OPTIONS)


@triton.jit(do_not_specialize=["seed", "keep"])
def _add_update(
    weights, update, wanted, total, keep, seed, guarded: tl.constexpr, rounded: tl.constexpr, quarter: tl.constexpr
):
    program = tl.program_id(0)
    lane = tl.arange(0, quarter)
    # One generator position per four elements.
    first, second, third, fourth = tl.randint4x(seed, program * quarter + lane)
    at = program.to(tl.int64) * (4 * quarter) + lane
    _add_quarter(weights, update, wanted, at, total, keep, first, guarded, rounded)
    _add_quarter(weights, update, wanted, at + quarter, total, keep, second, guarded, rounded)
    _add_quarter(weights, update, wanted, at + 2 * quarter, total, keep, third, guarded, rounded)
    _add_quarter(weights, update, wanted, at + 3 * quarter, total, keep, fourth, guarded, rounded)


@triton.jit
def _add_quarter(weights, update, wanted, at, total, keep, random, guarded: tl.constexpr, rounded: tl.constexpr):
    if guarded:
        total = total * tl.load(wanted)
    inside = at < total
    old = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
    exact = old * keep + tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
    if rounded:
        exact = rounded_to_bf16(exact, random)
    tl.store(weights + at, exact.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def rounded_to_bf16(exact, random):
    """fp32 values rounded stochastically to values of bf16, by the low 16 bits of random numbers."""
    bits = exact.to(tl.uint32, bitcast=True)
    # The noise must not carry from a non-finite value into its sign.
    noise = tl.where((bits & 0x7F800000) == 0x7F800000, 0, random.to(tl.uint32) & 0xFFFF)
    return ((bits + noise.to(tl.uint32)) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _clear_unless(values, wanted, total, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    total = total * (1 - tl.load(wanted))
    tl.store(values + at, tl.zeros([block], values.dtype.element_ty), mask=at < total)
