"""Triton kernels of the update of weights: the update added and rounded in one pass, and gradients that are not finite
left out without the host waiting to hear of it.

Triton comes with torch where that is built for CUDA. The kernels are taken where a trial on the device gives what
:mod:`core.worker.optim.rounding` gives, which does the same in ten passes and stays the way of the CPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

#: Elements of a program's quarter: a call of the random generator gives four numbers.
_QUARTER = 512
_BLOCK = 4 * _QUARTER

# The kernels' arguments have no annotations but constexpr: Triton looks every name up in them, and knows no others.


def add_update(
    weights: torch.Tensor, update: torch.Tensor, *, keep: float, seed: int, wanted: torch.Tensor | None = None
) -> None:
    """As :func:`core.worker.optim.rounding.add_update`; takes no memory.

    Args:
        weights: Contiguous, bf16 or fp32.
        update: Contiguous, of as many elements, any floating dtype.
        keep: What weight decay leaves of the weights.
        seed: Of the rounding.
        wanted: 0 or 1 on the device, int32: at 0 the weights stay as they are. None: it is wanted.
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
    )


def clear_unless(wanted: torch.Tensor, values: torch.Tensor) -> None:
    """Set values to zero if they are not wanted, which the device knows; otherwise they are not even read.

    Args:
        wanted: The same.
        values: Contiguous.
    """
    _clear_unless[(triton.cdiv(values.numel(), _BLOCK),)](values, wanted, values.numel(), block=_BLOCK)


@triton.jit(do_not_specialize=["seed", "keep"])
def _add_update(
    weights,
    update,
    wanted,
    total,
    keep,
    seed,
    guarded: tl.constexpr,
    rounded: tl.constexpr,
    quarter: tl.constexpr,
):
    program = tl.program_id(0)
    lane = tl.arange(0, quarter)
    # A position of the generator for four elements.
    first, second, third, fourth = tl.randint4x(seed, program * quarter + lane)
    at = program.to(tl.int64) * (4 * quarter) + lane
    _add_quarter(weights, update, wanted, at, total, keep, first, guarded, rounded)
    _add_quarter(weights, update, wanted, at + quarter, total, keep, second, guarded, rounded)
    _add_quarter(weights, update, wanted, at + 2 * quarter, total, keep, third, guarded, rounded)
    _add_quarter(weights, update, wanted, at + 3 * quarter, total, keep, fourth, guarded, rounded)


@triton.jit
def _add_quarter(
    weights,
    update,
    wanted,
    at,
    total,
    keep,
    random,
    guarded: tl.constexpr,
    rounded: tl.constexpr,
):
    if guarded:
        total = total * tl.load(wanted)
    inside = at < total
    old = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
    exact = old * keep + tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
    if rounded:
        bits = exact.to(tl.uint32, bitcast=True)
        # The noise must not carry from a value that is not finite into its sign.
        noise = tl.where((bits & 0x7F800000) == 0x7F800000, 0, random.to(tl.uint32) & 0xFFFF)
        exact = ((bits + noise.to(tl.uint32)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    tl.store(weights + at, exact.to(weights.dtype.element_ty), mask=inside)


@triton.jit
def _clear_unless(values, wanted, total, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    total = total * (1 - tl.load(wanted))
    tl.store(values + at, tl.zeros([block], values.dtype.element_ty), mask=at < total)
