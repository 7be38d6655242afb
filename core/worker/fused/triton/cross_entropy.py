"""Kernel of the cross-entropy: a program reads a row of logits twice, and the second time writes its gradient over it.

Softmax in a single pass by a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867), here of each column of
a block, so that threads meet only at the end of a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.fused.cross_entropy import CrossEntropy, Scaling
from core.worker.fused.triton import OPTIONS

#: Logits of a row that a program works on at a time: a load of 16 bytes for each thread.
BLOCK = 8192
#: As many warps as a program can have: the fewer rows are at work, the more of them the L2 cache keeps for the second
#: reading.
WARPS = 32


@triton.jit
def _scaled(x, scale, softcap, CAPPED: tl.constexpr):
    """Scaled logits in fp32, rounded where torch rounds them, and their derivative."""
    y = (x.to(tl.float32) * scale).to(x.dtype).to(tl.float32)
    slope = tl.zeros_like(y) + scale
    if CAPPED:
        inner = (y / softcap).to(x.dtype).to(tl.float32)
        # The hyperbolic tangent by an exponential that cannot overflow.
        power = tl.exp(-2.0 * tl.abs(inner))
        size = (1.0 - power) / (1.0 + power)
        tangent = tl.where(inner < 0, -size, size).to(x.dtype).to(tl.float32)
        y = (tangent * softcap).to(x.dtype).to(tl.float32)
        slope *= 1.0 - tangent * tangent
    return y, slope


@triton.jit
def _cross_entropy(
    logits,
    targets,
    losses,
    factors,
    stride,
    factor_stride,
    vocabulary,
    scale,
    softcap,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    target = tl.load(targets + row)
    wanted, _ = _scaled(tl.load(logits + target), scale, softcap, CAPPED)
    column = tl.arange(0, COLUMNS)
    # Finite, so that a column of logits of minus infinity has a sum of zero.
    most = tl.full((COLUMNS,), -3.4e38, tl.float32)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, vocabulary, COLUMNS):
        inside = start + column < vocabulary
        y, _slope = _scaled(tl.load(logits + start + column, mask=inside, other=0.0), scale, softcap, CAPPED)
        y = tl.where(inside, y, -float("inf"))
        higher = tl.maximum(most, y)
        total = total * tl.exp(most - higher) + tl.exp(y - higher)
        most = higher
    top = tl.max(most, axis=0)
    size = tl.log(tl.sum(total * tl.exp(most - top), axis=0))
    tl.store(losses + row, size - (wanted - top))
    if GRADIENT:
        factor = tl.load(factors + row * factor_stride)
        for start in range(0, vocabulary, COLUMNS):
            inside = start + column < vocabulary
            x = tl.load(logits + start + column, mask=inside, other=0.0)
            y, slope = _scaled(x, scale, softcap, CAPPED)
            share = tl.exp(y - top - size)
            share = tl.where(start + column == target, share - 1.0, share)
            tl.store(logits + start + column, (share * slope * factor).to(x.dtype), mask=inside)


class KernelCrossEntropy(CrossEntropy):
    """Cross-entropy by the kernel."""

    def losses(self, logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling) -> torch.Tensor:
        """As for :class:`CrossEntropy`."""
        return _run(logits, targets, scaling, None)

    def differentiate(
        self, logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling, factors: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As for :class:`CrossEntropy`."""
        if factors is None:
            factors = torch.ones((), device=logits.device).expand(len(targets))
        return _run(logits, targets, scaling, factors)


def _run(logits: torch.Tensor, targets: torch.Tensor, scaling: Scaling, factors: torch.Tensor | None) -> torch.Tensor:
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        _cross_entropy[(rows,)](
            logits,
            targets,
            losses,
            losses if factors is None else factors,
            logits.stride(0),
            0 if factors is None else factors.stride(0),
            vocabulary,
            scaling.scale,
            float(scaling.softcap or 0),
            bool(scaling.softcap),
            factors is not None,
            COLUMNS=BLOCK,
            num_warps=WARPS,
            **OPTIONS,
        )
    return losses
