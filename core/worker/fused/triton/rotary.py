"""Kernel of the rotary position embedding: all heads of a token by one program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.fused.triton import OPTIONS


@triton.jit
def _rotary(
    x,
    cos,
    sin,
    out,
    row_stride,
    head_stride,
    token_stride,
    out_row_stride,
    out_head_stride,
    out_token_stride,
    cos_row_stride,
    cos_token_stride,
    sin_row_stride,
    sin_token_stride,
    length,
    heads,
    half,
    sign,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    row, token = place // length, place % length
    head, column = tl.arange(0, HEADS), tl.arange(0, HALF)
    head += tl.program_id(1) * HEADS
    angles = column < half
    inside = (head < heads)[:, None] & angles[None, :]
    # Both halves of the angles are read: families may differ in how they fill them.
    at = cos + row * cos_row_stride + token * cos_token_stride
    cos_first = tl.load(at + column, mask=angles, other=0.0).to(tl.float32)
    cos_second = tl.load(at + half + column, mask=angles, other=0.0).to(tl.float32)
    at = sin + row * sin_row_stride + token * sin_token_stride
    sin_first = tl.load(at + column, mask=angles, other=0.0).to(tl.float32) * sign
    sin_second = tl.load(at + half + column, mask=angles, other=0.0).to(tl.float32) * sign
    read = x + row * row_stride + token * token_stride + head[:, None] * head_stride + column[None, :]
    first = tl.load(read, mask=inside, other=0.0)
    second = tl.load(read + half, mask=inside, other=0.0)
    wide_first, wide_second = first.to(tl.float32), second.to(tl.float32)
    turned_first = wide_first * cos_first[None, :] - wide_second * sin_first[None, :]
    turned_second = wide_second * cos_second[None, :] + wide_first * sin_second[None, :]
    write = out + row * out_row_stride + token * out_token_stride + head[:, None] * out_head_stride + column[None, :]
    tl.store(write, turned_first.to(first.dtype), mask=inside)
    tl.store(write + half, turned_second.to(first.dtype), mask=inside)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    """The rotation by the kernel; see :func:`core.worker.fused.rotary.rotate`.

    Raises:
        ValueError: If heads have angles of their own, or angles are not next to each other.
    """
    rows, heads, length, features = x.shape
    if x.stride(-1) != 1:
        x = x.contiguous()
    turned = cos.shape[-1]
    # In the input's layout, as torch's operations leave it.
    out = torch.empty_like(x) if turned == features else x.clone()
    cos, sin = (tensor.expand(rows, -1, length, -1) for tensor in (cos, sin))
    if cos.shape[1] != 1 or cos.stride(-1) != 1 or sin.stride(-1) != 1:
        raise ValueError("angles of single heads, or not next to each other")
    half = turned // 2
    together, columns = min(triton.next_power_of_2(heads), 32), triton.next_power_of_2(half)
    # Eight features of a half for each thread: 128 bits at a time, and few enough to stay in registers.
    warps = min(max(together * columns // 256, 1), 8)
    _rotary[(rows * length, triton.cdiv(heads, together))](
        x,
        cos,
        sin,
        out,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        out.stride(0),
        out.stride(1),
        out.stride(2),
        cos.stride(0),
        cos.stride(2),
        sin.stride(0),
        sin.stride(2),
        length,
        heads,
        half,
        sign,
        HEADS=together,
        HALF=columns,
        num_warps=warps,
        **OPTIONS,
    )
    return out
