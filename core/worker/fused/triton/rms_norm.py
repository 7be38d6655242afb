"""Kernels of the RMS norm: one pass over the input forward, one backward, with the gradient of a trained weight."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch.autograd.function import once_differentiable

from core.worker.fused.rms_norm import gradient_of_weight
from core.worker.fused.triton import OPTIONS

#: Values per program: rows of few features, as of a head, share a program.
TILE = 4096
#: Most features of a row that fit in the registers of a program.
MOST = 32768
#: Most features of which a program also holds the gradient of the weight in registers; longer rows would spill.
MOST_LEARNED = 8192
#: Programs that share the rows where the weight is trained: each sums its rows, so that few partial sums are written.
PROGRAMS = 256


@triton.jit
def _norm_forward(
    x, weight, out, inverses, rows, stride, epsilon, width: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    values = tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0)
    wide = values.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(wide * wide, axis=1) / width + epsilon)
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    normal = (wide * inverse[:, None]).to(values.dtype).to(tl.float32)
    result = (normal * scale[None, :]).to(values.dtype)
    tl.store(out + row[:, None] * width + column[None, :], result, mask=inside)
    tl.store(inverses + row, inverse, mask=row < rows)


@triton.jit
def _norm_backward(
    gradient,
    x,
    weight,
    inverses,
    out,
    sums,
    rows,
    outer_stride,
    stride,
    tiles,
    width: tl.constexpr,
    LEARNED: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    learned = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        outer = tl.load(gradient + row[:, None] * outer_stride + column[None, :], mask=inside, other=0.0)
        values = tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0)
        inverse = tl.load(inverses + row, mask=row < rows, other=0.0)
        scaled = (outer.to(tl.float32) * scale[None, :]).to(values.dtype).to(tl.float32)
        normal = values.to(tl.float32) * inverse[:, None]
        share = tl.sum(scaled * normal, axis=1) / width
        result = (scaled - normal * share[:, None]) * inverse[:, None]
        tl.store(out + row[:, None] * width + column[None, :], result.to(values.dtype), mask=inside)
        if LEARNED:
            learned += outer.to(tl.float32) * normal.to(values.dtype).to(tl.float32)
    if LEARNED:
        tl.store(sums + program * width + column, tl.sum(learned, axis=0), mask=column < width)


class RmsNormKernel(torch.autograd.Function):
    """The RMS norm as an autograd function; see :class:`core.worker.fused.rms_norm.RmsNormFunction`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalize the last dimension of ``x``.

        Args:
            ctx: The autograd context.
            x: ``(..., hidden)``.
            weight: ``(hidden,)``, contiguous.
            epsilon: Added to the mean of squares.
        """
        flat = as_rows(x)
        rows, width = flat.shape
        out = torch.empty(flat.shape, dtype=x.dtype, device=x.device)
        inverses = torch.empty(rows, dtype=torch.float32, device=x.device)
        shape = _tile(width)
        _norm_forward[(triton.cdiv(rows, shape["ROWS"]),)](
            flat, weight, out, inverses, rows, flat.stride(0), epsilon, width=width, **shape
        )
        ctx.save_for_backward(x, weight, inverses)
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``x``, and of ``weight`` if it is trained."""
        x, weight, inverses = ctx.saved_tensors
        flat, gradient = as_rows(x), as_rows(outputs[0])
        rows, width = flat.shape
        out = torch.empty(flat.shape, dtype=x.dtype, device=x.device)
        shape = _tile(width)
        programs = triton.cdiv(rows, shape["ROWS"])
        learned = ctx.needs_input_grad[1] and shape["COLUMNS"] <= MOST_LEARNED
        tiles = max(1, triton.cdiv(programs, PROGRAMS)) if learned else 1
        programs = triton.cdiv(programs, tiles)
        sums = torch.empty((programs, width), dtype=torch.float32, device=x.device) if learned else inverses
        _norm_backward[(programs,)](
            gradient,
            flat,
            weight,
            inverses,
            out,
            sums,
            rows,
            gradient.stride(0),
            flat.stride(0),
            tiles,
            width=width,
            LEARNED=learned,
            **shape,
        )
        to_weight = None
        if learned:
            to_weight = sums.sum(dim=0).to(weight.dtype)
        elif ctx.needs_input_grad[1]:
            to_weight = gradient_of_weight(gradient, flat, inverses[:, None]).to(weight.dtype)
        return out.view(x.shape), to_weight, None


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """A tensor as rows with adjacent features, such as halves of a joined projection; a copy where a view cannot do."""
    flat = x.reshape(-1, x.shape[-1])
    return flat if flat.stride(1) == 1 else flat.contiguous()


def _tile(width: int) -> dict[str, Any]:
    columns = triton.next_power_of_2(width)
    if columns > MOST:
        raise ValueError(f"rows of {width} features are too long for a program")
    rows = max(1, TILE // columns)
    warps = min(max(rows * columns // 512, 1), 16)
    return {"COLUMNS": columns, "ROWS": rows, "num_warps": warps, **OPTIONS}
