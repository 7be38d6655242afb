"""Two E2M1 numbers a byte with scales of blocks: MXFP4 and NVFP4, and the experts of gpt-oss."""

from __future__ import annotations

from collections.abc import Callable

import torch

from core.worker.model.decode.elements import scale_values, unpack_e2m1

#: Rows that are computed in fp32 at once.
_ROWS = 1024


def decode_fp4(
    codes: torch.Tensor,
    scales: torch.Tensor,
    dtype: torch.dtype,
    *,
    factor: torch.Tensor | None = None,
    divisor: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a weight of E2M1 numbers, exactly where the scales are powers of two, else computed in fp32 and rounded
    once.

    Args:
        codes: ``uint8`` of ``(…, columns / 2)``, the lower four bits first.
        scales: ``(…, columns / block)``: exponents (MXFP4, blocks of 32) or E4M3 (NVFP4, blocks of 16).
        dtype: Of the result.
        factor: What all scales are multiplied with, one number; None for none.
        divisor: What all scales are divided by, one number; None for none.

    Returns:
        ``(…, columns)``.
    """
    *before, packed = codes.shape
    out = torch.empty((*before, 2 * packed), dtype=dtype, device=codes.device)
    flat, result = codes.reshape(-1, packed), out.view(-1, 2 * packed)
    of_rows = scales.reshape(flat.shape[0], -1)
    width = 2 * packed // of_rows.shape[1]
    # bf16 has all powers of two that E8M0 has, so that nothing is rounded.
    is_exact = dtype == torch.bfloat16 and scales.dtype in (torch.uint8, torch.float8_e8m0fnu)
    is_exact = is_exact and factor is None and divisor is None
    computed = torch.bfloat16 if is_exact else torch.float32
    for top in range(0, len(flat), _ROWS):
        values = scale_values(of_rows[top : top + _ROWS])
        if factor is not None:
            values = values * factor.to(torch.float32).reshape(())
        if divisor is not None:
            values = values / divisor.to(torch.float32).reshape(())
        numbers = unpack_e2m1(flat[top : top + _ROWS], computed).view(len(values), -1, width)
        result[top : top + _ROWS] = numbers.mul_(values.unsqueeze(-1).to(computed)).flatten(1)
    return out


def decode_mxfp4_experts(
    read: Callable[[int], tuple[torch.Tensor, torch.Tensor]], shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Decode the experts of gpt-oss, one after the other.

    The files have them as outputs by inputs, in blocks of 32 inputs; transformers computes with inputs by outputs.

    Args:
        read: Gives an expert's blocks, ``uint8`` of ``(outputs, blocks, 16)``, and their exponents, ``uint8`` of
            ``(outputs, blocks)``.
        shape: ``(experts, inputs, outputs)``.
        dtype: Of the result.

    Returns:
        All experts.
    """
    out: torch.Tensor | None = None
    for number in range(shape[0]):
        blocks, scales = read(number)
        if out is None:
            out = torch.empty(shape, dtype=dtype, device=blocks.device)
        out[number] = decode_fp4(blocks.flatten(1), scales, dtype).T
    return torch.empty(shape, dtype=dtype) if out is None else out
