"""Kernels of grouped products: a tile of an expert's rows times its matrix, and the gradient of an expert's matrix.

Rows are sorted by expert, and no tile has rows of two, so nothing is padded, copied or gathered. Sums are in fp32 and
rounded once, in an order that does not depend on the other experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.fused.experts import TILE, Block, GroupedProducts, Offsets
from core.worker.fused.triton import OPTIONS

#: Most columns of a tile, and numbers of a row at once: three stages of them take 24 KB of shared memory on an RTX 3090
#: or 4090, of 100 KB of a multiprocessor.
COLUMNS, DEPTH = 128, 32
#: Least size of a side of a product that tensor cores take.
_LEAST = 16
_LAUNCH = {"num_warps": 4, "num_stages": 3, **OPTIONS}


@triton.jit(do_not_specialize=["first", "which", "base", "origin"])
def _rows_times(
    rows,
    matrices,
    out,
    table,
    first,
    which,
    base,
    origin,
    inputs,
    outputs,
    row_stride,
    matrix_stride,
    input_stride,
    output_stride,
    out_stride,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # Neighbors share their rows, and soon after their matrix, in the cache.
    across = tl.cdiv(outputs, COLUMNS)
    tile = table + 4 * (first + tl.program_id(0) // across)
    matrix = tl.load(tile + which) - base
    row = tl.load(tile + 2) - origin + tl.arange(0, ROWS)
    column = (tl.program_id(0) % across) * COLUMNS + tl.arange(0, COLUMNS)
    depth = tl.arange(0, DEPTH)
    is_row, is_column = (row < tl.load(tile + 3) - origin)[:, None], (column < outputs)[None, :]
    left = rows + row[:, None] * row_stride + depth[None, :]
    right = matrices + matrix * matrix_stride + depth[:, None] * input_stride + column[None, :] * output_stride
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for done in range(0, inputs, DEPTH):
        if WHOLE:
            values = tl.load(left, mask=is_row, other=0.0)
            weights = tl.load(right, mask=is_column, other=0.0)
        else:
            known = depth < inputs - done
            values = tl.load(left, mask=is_row & known[None, :], other=0.0)
            weights = tl.load(right, mask=is_column & known[:, None], other=0.0)
        total = tl.dot(values, weights, total, input_precision="ieee")
        left += DEPTH
        right += DEPTH * input_stride
    to = out + row[:, None] * out_stride + column[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=is_row & is_column)


@triton.jit
def _sums_between(
    left,
    right,
    out,
    ends,
    lefts,
    rights,
    left_stride,
    right_stride,
    LEFTS: tl.constexpr,
    RIGHTS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    across = tl.cdiv(rights, RIGHTS)
    blocks = tl.cdiv(lefts, LEFTS) * across
    group, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    begin = tl.load(ends + group - 1, mask=group > 0, other=0)
    end = tl.load(ends + group)
    one = (block // across) * LEFTS + tl.arange(0, LEFTS)
    other = (block % across) * RIGHTS + tl.arange(0, RIGHTS)
    is_one, is_other = one < lefts, other < rights
    total = tl.zeros((LEFTS, RIGHTS), dtype=tl.float32)
    for done in range(begin, end, DEPTH):
        row = done + tl.arange(0, DEPTH).to(tl.int64)
        known = (row < end)[:, None]
        values = tl.load(left + row[:, None] * left_stride + one[None, :], mask=known & is_one[None, :], other=0.0)
        factors = tl.load(
            right + row[:, None] * right_stride + other[None, :], mask=known & is_other[None, :], other=0.0
        )
        total = tl.dot(tl.trans(values), factors, total, input_precision="ieee")
    to = out + group.to(tl.int64) * lefts * rights + one[:, None] * rights + other[None, :]
    tl.store(to, total.to(out.dtype.element_ty), mask=is_one[:, None] & is_other[None, :])


class KernelProducts(GroupedProducts):
    """Grouped products by the kernels."""

    def multiply(
        self, rows: torch.Tensor, matrices: torch.Tensor, offsets: Offsets, block: Block | None, into: torch.Tensor
    ) -> None:
        """As for :class:`GroupedProducts`."""
        rows, tiles = _dense(rows), offsets.tiles
        inputs, outputs = matrices.shape[1:]
        first, last, origin = 0, len(offsets.touched), 0
        if block is not None:
            first, last, origin = block.first, block.first + len(block.numbers), block.rows.start
            rows, into = rows[block.rows], into[block.rows]
        tile = {"COLUMNS": _side(outputs, COLUMNS), "DEPTH": _side(inputs, DEPTH)}
        begin, end = tiles.before[first], tiles.before[last]
        _rows_times[((end - begin) * triton.cdiv(outputs, tile["COLUMNS"]),)](
            rows,
            matrices,
            into,
            tiles.table,
            begin,
            0 if block is None else 1,
            first,
            origin,
            inputs,
            outputs,
            rows.stride(0),
            *matrices.stride(),
            into.stride(0),
            WHOLE=inputs % tile["DEPTH"] == 0,
            ROWS=TILE,
            **tile,
            **_LAUNCH,
        )

    def multiply_between(self, left: torch.Tensor, right: torch.Tensor, offsets: Offsets) -> torch.Tensor:
        """As for :class:`GroupedProducts`."""
        left, right = _dense(left), _dense(right)
        lefts, rights = left.shape[1], right.shape[1]
        found = left.new_empty((len(offsets.host), lefts, rights))
        tile = {"LEFTS": _side(lefts, TILE), "RIGHTS": _side(rights, COLUMNS)}
        _sums_between[(len(found) * triton.cdiv(lefts, tile["LEFTS"]) * triton.cdiv(rights, tile["RIGHTS"]),)](
            left,
            right,
            found,
            offsets.ends,
            lefts,
            rights,
            left.stride(0),
            right.stride(0),
            **tile,
            DEPTH=DEPTH,
            **_LAUNCH,
        )
        return found


def _side(size: int, most: int) -> int:
    """A side of a tile: a power of two that covers a small size."""
    return min(max(1 << (size - 1).bit_length(), _LEAST), most)


def _dense(rows: torch.Tensor) -> torch.Tensor:
    """Rows with adjacent numbers; a copy where they are not."""
    return rows if rows.stride(1) == 1 else rows.contiguous()
