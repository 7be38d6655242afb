"""Weights with a number an element, times a scale: FP8 with scales of blocks, rows or the whole, MXFP8, integers."""

from __future__ import annotations

import torch

from core.worker.model.decode.elements import scale_values


def decode_scaled(
    weight: torch.Tensor,
    scales: torch.Tensor,
    block: tuple[int, int],
    dtype: torch.dtype,
    *,
    zero_points: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a weight: ``(weight - zero point) * scale``, computed in fp32 and rounded once.

    Args:
        weight: FP8 (E4M3, E5M2) or integers of 8 bits, ``(…, rows, columns)``.
        scales: One for each block, those at the end cut off where the shape is no multiple of them; or one for all.
            ``uint8`` and E8M0 are exponents.
        block: Rows and columns of a block.
        dtype: Of the result.
        zero_points: As the scales; None for none.
        groups: ``(columns,)``: the column of scales that each column of the weight takes; None where they are in order.

    Returns:
        The weight in its shape.
    """
    *before, rows, columns = weight.shape
    height, width = block
    grid = (*before, -(-rows // height), -(-columns // width))
    values = scale_values(scales).reshape(grid if scales.numel() != 1 else (1,) * len(grid))
    zeros = None
    if zero_points is not None:
        zeros = zero_points.to(torch.float32).reshape(grid if zero_points.numel() != 1 else (1,) * len(grid))
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    # A row of blocks at a time, so that fp32 is never there for all of it.
    flat, result = weight.reshape(-1, rows, columns), out.view(-1, rows, columns)
    shape = (flat.shape[0], *grid[-2:])
    values = values.expand(grid).reshape(shape)
    zeros = None if zeros is None else zeros.expand(grid).reshape(shape)
    step = max(height, _ROWS // height * height)
    for number in range(flat.shape[0]):
        for top in range(0, rows, step):
            part = flat[number, top : top + step].to(torch.float32)
            bands = slice(top // height, -(-(top + len(part)) // height))
            if zeros is not None:
                part -= _spread(zeros[number, bands], block, part.shape, groups)
            part *= _spread(values[number, bands], block, part.shape, groups)
            result[number, top : top + step] = part
    return out


#: Rows that are computed in fp32 at once.
_ROWS = 1024


def _spread(
    values: torch.Tensor, block: tuple[int, int], shape: torch.Size, groups: torch.Tensor | None
) -> torch.Tensor:
    """Values of blocks for each of their elements, without what the last ones have too many."""
    if groups is not None:
        across = values[:, groups.long()]
    elif values.shape[1] == 1:
        across = values
    else:
        across = values.repeat_interleave(block[1], dim=1)[:, : shape[1]]
    return across if block[0] == 1 else across.repeat_interleave(block[0], dim=0)[: shape[0]]
