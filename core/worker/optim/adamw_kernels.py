"""Triton kernel of AdamW with 8-bit states: states, update, stochastic rounding and guard in one pass over a tensor.

For each element it reads and writes the weight and both states and reads the gradient, 10 bytes in bf16. By
bitsandbytes' kernel, which needs a zero tensor for the update, and :mod:`core.worker.optim.rounding_kernels` it is 18.

States have the format of bitsandbytes: codes of 8 bits into a dynamic map, scaled by the largest value of each block of
256 (Dettmers et al., arXiv 2110.02861).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import triton
import triton.language as tl

from core.worker.fused.triton import OPTIONS
from core.worker.optim.rounding_kernels import rounded_to_bf16

#: Elements of a state with a common scale.
BLOCK = 256
#: Blocks of a tile, each the work of a warp. A program has four tiles: one call of the random generator gives four
#: numbers.
_TILE = 4
_TILES = 4

# Kernel arguments have no annotations except constexpr: Triton resolves every annotation and knows no other.


def step(
    weights: torch.Tensor,
    gradient: torch.Tensor,
    state: Mapping[str, Any],
    group: Mapping[str, Any],
    *,
    keep: float,
    scale: float,
    seed: int,
    wanted: torch.Tensor | None = None,
) -> None:
    """As :class:`core.worker.optim.adamw.Step`, without allocations.

    Args:
        weights: Contiguous, bf16 or fp32.
        gradient: Contiguous, of the same shape, any floating dtype.
        state: As bitsandbytes keeps it; its step is that of this update.
        group: Rate, betas and epsilon.
        keep: Factor on the weights, for weight decay.
        scale: Factor on the gradient.
        seed: Seed of the rounding.
        wanted: int32 flag on the device: at 0 nothing changes. None for 1.
    """
    (first, second), number = group["betas"], state["step"]
    total = weights.numel()
    _step[(triton.cdiv(total, _TILES * _TILE * BLOCK),)](
        weights,
        gradient,
        state["state1"],
        state["state2"],
        state["absmax1"],
        state["absmax2"],
        state["qmap1"],
        state["qmap2"],
        weights if wanted is None else wanted,
        total,
        float(first),
        1.0 - first,
        float(second),
        1.0 - second,
        group["lr"] / (1.0 - first**number),
        1.0 / math.sqrt(1.0 - second**number),
        float(group["eps"]),
        float(keep),
        float(scale),
        seed,
        guarded=wanted is not None,
        rounded=weights.dtype == torch.bfloat16,
        size=BLOCK,
        blocks=_TILE,
        num_warps=_TILE,
        **OPTIONS,
    )


@triton.jit(do_not_specialize=["seed"])
def _step(
    weights,
    gradient,
    means,
    squares,
    mean_scales,
    square_scales,
    mean_map,
    square_map,
    wanted,
    total,
    beta_mean,
    new_mean,
    beta_square,
    new_square,
    rate,
    correction,
    epsilon,
    keep,
    scale,
    seed,
    guarded: tl.constexpr,
    rounded: tl.constexpr,
    size: tl.constexpr,
    blocks: tl.constexpr,
):
    if guarded:
        total = total * tl.load(wanted)
    program = tl.program_id(0)
    lane = tl.arange(0, blocks)[:, None] * size + tl.arange(0, size)[None, :]
    # One generator position per four elements.
    noise = tl.randint4x(seed, program * (blocks * size) + lane)
    for tile in tl.static_range(4):
        block = (program.to(tl.int64) * 4 + tile) * blocks + tl.arange(0, blocks)
        at = block[:, None] * size + tl.arange(0, size)[None, :]
        inside, present = at < total, block * size < total
        new = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32) * scale
        old = tl.load(weights + at, mask=inside, other=0.0).to(tl.float32)
        mean_scale = tl.load(mean_scales + block, mask=present, other=0.0)
        square_scale = tl.load(square_scales + block, mask=present, other=0.0)
        mean = tl.load(mean_map + tl.load(means + at, mask=inside, other=127).to(tl.int32)) * mean_scale[:, None]
        square = tl.load(square_map + tl.load(squares + at, mask=inside, other=0).to(tl.int32)) * square_scale[:, None]
        mean = mean * beta_mean + new * new_mean
        square = square * beta_square + new * new * new_square
        exact = old * keep - rate * mean / (tl.sqrt(square) * correction + epsilon)
        if rounded:
            exact = rounded_to_bf16(exact, noise[tile])
        tl.store(weights + at, exact.to(weights.dtype.element_ty), mask=inside)
        mean_scale, square_scale = tl.max(tl.abs(mean), axis=1), tl.max(square, axis=1)
        tl.store(mean_scales + block, mean_scale, mask=present)
        tl.store(square_scales + block, square_scale, mask=present)
        place = _place(tl.abs(mean) * _reciprocal(mean_scale)[:, None], 1)
        # The map is symmetric about its code 127, which is zero, but has 1 without -1.
        code = tl.where(mean < 0, 127 - tl.minimum(place, 127), 127 + place)
        tl.store(means + at, code.to(tl.uint8), mask=inside)
        code = _place(square * _reciprocal(square_scale)[:, None], 2)
        tl.store(squares + at, code.to(tl.uint8), mask=inside)


@triton.jit
def _reciprocal(scale):
    """The reciprocal of a scale, finite for zero."""
    return 1.0 / tl.maximum(scale, 1.2e-38)


@triton.jit
def _place(share, count: tl.constexpr):
    """The place, from zero up, of the value nearest to ``share`` among the positive ones of a dynamic map.

    Decade ``i``, from ``10 ** (i - 7)`` to ``10 ** (i - 6)``, is cut into ``count * 2 ** i`` equal parts, whose middles
    are the values; zero is below the seven decades, 1 above. ``count`` is 1 for the signed map, 2 for the other.
    """
    parts = tl.zeros_like(share)
    slope = tl.zeros_like(share)
    for decade in tl.static_range(7):
        # The threshold is half way between the values on both sides.
        above = share > (10.0 ** (decade - 7) * (1.0 + 1.8 / (count * 2**decade)) if decade else 5e-8 + 2.25e-7 / count)
        parts = tl.where(above, count * 2.0**decade, parts)
        slope = tl.where(above, count * 2.0**decade / 0.9 * 10.0 ** (6 - decade), slope)
    inner = tl.minimum(tl.maximum(share * slope - parts / 9.0, 0.0), parts - 1.0)
    place = tl.where(parts > 0.0, (parts + 1.0 - count).to(tl.int32) + inner.to(tl.int32), 0)
    return tl.where(share > 1.0 - 0.225 / (count * 64), count * 127 + 1, place)
