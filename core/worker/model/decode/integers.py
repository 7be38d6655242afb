"""Integers packed into words: compressed-tensors, GPTQ and AWQ. Each weight is ``(q - zero) * scale``."""

from __future__ import annotations

import torch

from core.worker.model.decode.elements import unpack_words
from core.worker.model.decode.scaled import decode_scaled

#: The places at which AWQ's kernels expect eight neighbors in a word: the first one in the lowest four bits, the second
#: in the fifth four.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def decode_packed(
    words: torch.Tensor,
    scales: torch.Tensor,
    group: int,
    bits: int,
    columns: int,
    dtype: torch.dtype,
    *,
    zero_points: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a weight of compressed-tensors' format ``pack-quantized``.

    Args:
        words: ``int32`` of ``(…, rows, columns * bits / 32)``; elements are stored with half their range added.
        scales: ``(…, rows, groups)``.
        group: Columns of a group.
        bits: 2, 4 or 8.
        columns: Number of columns; words may have more.
        dtype: Of the result.
        zero_points: ``int32`` of ``(…, rows * bits / 32, groups)``, packed along the rows, or ``int8`` as the scales;
            None for symmetric weights.
        groups: ``(columns,)``: the group of each column; None, or with a -1 in it, where they are in order.
    """
    half = 1 << (bits - 1)
    numbers = (unpack_words(words, bits)[..., :columns].to(torch.int16) - half).to(torch.int8)
    if zero_points is not None and zero_points.dtype == torch.int32:
        rows = words.shape[-2]
        unpacked = unpack_words(zero_points.transpose(-1, -2), bits)[..., :rows].transpose(-1, -2)
        zero_points = unpacked.to(torch.int16) - half
    if groups is not None and bool((groups < 0).any()):
        groups = None
    return decode_scaled(numbers, scales, (1, group), dtype, zero_points=zero_points, groups=groups)


def decode_gptq(
    words: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    group: int,
    bits: int,
    dtype: torch.dtype,
    *,
    zero_offset: int,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode a weight of GPTQ.

    Args:
        words: ``int32`` of ``(inputs * bits / 32, outputs)``, packed along the inputs.
        scales: ``(groups, outputs)``.
        zeros: ``int32`` of ``(groups, outputs * bits / 32)``, packed along the outputs.
        group: Inputs of a group.
        bits: 2, 4 or 8.
        dtype: Of the result.
        zero_offset: What is added to stored zero points.
        groups: ``(inputs,)``: the group of each input; None where they are in order.

    Returns:
        ``(outputs, inputs)``.
    """
    numbers = unpack_words(words.T, bits)
    zero_points = unpack_words(zeros, bits)[:, : words.shape[1]].to(torch.int16) + zero_offset
    return decode_scaled(numbers, scales.T, (1, group), dtype, zero_points=zero_points.T, groups=groups)


def decode_awq(
    words: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, group: int, dtype: torch.dtype
) -> torch.Tensor:
    """Decode a weight of AWQ, version GEMM, in 4 bits.

    Args:
        words: ``int32`` of ``(inputs, outputs / 8)``, eight neighbors in the order of the kernels.
        scales: ``(groups, outputs)``.
        zeros: ``int32`` of ``(groups, outputs / 8)``, in the same order.
        group: Inputs of a group.
        dtype: Of the result.

    Returns:
        ``(outputs, inputs)``.
    """
    numbers, zero_points = (unpack_words(packed, 4, _AWQ_PLACES) for packed in (words, zeros))
    return decode_scaled(numbers.T, scales.T, (1, group), dtype, zero_points=zero_points.T)
