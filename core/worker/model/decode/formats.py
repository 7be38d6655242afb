"""Decoding of quantized weights to 16 bit, a function per format: :data:`DECODERS`, and the experts of gpt-oss.

MXFP4, NVFP4 and the experts of gpt-oss; FP8, a number per element times a scale; packed integers of compressed-tensors,
GPTQ and AWQ, each ``(q - zero) * scale``; NF4, FP4 and LLM.int8() of bitsandbytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState

from core.models.tensors import Codec, Encoded
from core.worker.model.nf4 import dequantize_rightly

Rescale = Callable[[torch.Tensor], torch.Tensor]
#: The parts of a weight by their roles.
Parts = Mapping[str, torch.Tensor]

#: The numbers of E2M1 by their four bits: sign, two of the exponent, one of the fraction (OCP Microscaling Formats
#: (MX) Specification 1.0, 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: The exponents of E8M0 for 1 and for NaN (the same, 5.4.1).
_ONE, _NAN = 127, 255


def unpack_words(words: torch.Tensor, bits: int, places: Sequence[int] | None = None) -> torch.Tensor:
    """Elements of 32-bit words.

    Args:
        words: ``int32`` of ``(…, n)``.
        bits: Of an element: 2, 4 or 8.
        places: The places of a word's elements, counted from the lowest bits; None if they are in order.

    Returns:
        ``uint8`` of ``(…, n * 32 / bits)``.
    """
    stored = words.contiguous().view(torch.uint8)  # little endian, as safetensors are
    if bits < 8:
        parts = [(stored >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
        stored = torch.stack(parts, dim=-1).flatten(-2)
    if places is None:
        return stored
    by_word = stored.view(*words.shape, len(places))
    return torch.stack([by_word[..., place] for place in places], dim=-1).flatten(-2)


def unpack_e2m1(codes: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of E2M1, packed two per byte, the lower four bits first.

    Args:
        codes: ``uint8`` of ``(…, n)``.
        dtype: Dtype of the result: 16 or 32 bits, all of which have these numbers.

    Returns:
        ``(…, 2 n)``.
    """
    table = torch.tensor([*_E2M1, *(-number for number in _E2M1)], dtype=dtype)
    every = torch.arange(256)
    pairs = torch.stack([table[every & 15], table[every >> 4]], dim=-1)
    # Two numbers are looked up at once, by their bits.
    looked_up = pairs.view(torch.int64 if dtype.itemsize == 4 else torch.int32).flatten().to(codes.device)
    found = torch.index_select(looked_up, 0, codes.flatten().to(torch.int32))
    return found.view(dtype).view(*codes.shape[:-1], -1)


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """Scales as numbers; E8M0 ones as powers of two.

    Args:
        scales: Any floating type; ``uint8`` and ``float8_e8m0fnu`` are exponents.

    Returns:
        ``float32`` of the same shape.
    """
    if scales.dtype not in (torch.uint8, torch.float8_e8m0fnu):
        return scales.to(torch.float32)
    exponents = scales.view(torch.uint8).to(torch.int32)
    values = torch.ldexp(torch.ones_like(exponents, dtype=torch.float32), exponents - _ONE)
    return torch.where(exponents == _NAN, torch.nan, values)


#: Rows that are computed in fp32 at a time.
_ROWS = 1024


def decode_blocks(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, rescale: Rescale | None = None
) -> torch.Tensor:
    """Decode a weight of E2M1 numbers: exactly where the scales are powers of two, else computed in fp32 and rounded
    once.

    Args:
        codes: ``uint8`` of ``(…, columns / 2)``, the lower four bits first.
        scales: ``(…, columns / block)``: exponents (MXFP4, blocks of 32) or E4M3 (NVFP4, blocks of 16).
        dtype: Of the result.
        rescale: Makes the scales of their fp32 values; None where they are as they are.

    Returns:
        ``(…, columns)``.
    """
    *before, packed = codes.shape
    out = torch.empty((*before, 2 * packed), dtype=dtype, device=codes.device)
    flat, result = codes.reshape(-1, packed), out.view(-1, 2 * packed)
    of_rows = scales.reshape(flat.shape[0], -1)
    width = 2 * packed // of_rows.shape[1]
    # bf16 has all powers of two of E8M0, so nothing is rounded.
    is_exact = dtype == torch.bfloat16 and scales.dtype in (torch.uint8, torch.float8_e8m0fnu) and rescale is None
    computed = torch.bfloat16 if is_exact else torch.float32
    for top in range(0, len(flat), _ROWS):
        values = scale_values(of_rows[top : top + _ROWS])
        if rescale is not None:
            values = rescale(values)
        numbers = unpack_e2m1(flat[top : top + _ROWS], computed).view(len(values), -1, width)
        result[top : top + _ROWS] = numbers.mul_(values.unsqueeze(-1).to(computed)).flatten(1)
    return out


def _fp4(_encoded: Encoded, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """MXFP4 and NVFP4; the latter has a factor or a divisor of all scales."""
    factor, divisor = parts.get("scale_2"), parts.get("global_scale")

    def rescale(values: torch.Tensor) -> torch.Tensor:
        if factor is not None:
            values = values * factor.to(torch.float32).reshape(())
        return values if divisor is None else values / divisor.to(torch.float32).reshape(())

    plain = factor is None and divisor is None
    return decode_blocks(parts["weight"], parts["scale"], dtype, None if plain else rescale)


def decode_mxfp4_experts(
    read: Callable[[int], tuple[torch.Tensor, torch.Tensor]], shape: tuple[int, ...], dtype: torch.dtype
) -> torch.Tensor:
    """Decode the experts of gpt-oss, one at a time.

    The files store outputs by inputs, in blocks of 32 inputs; transformers computes with inputs by outputs.

    Args:
        read: Returns an expert's blocks, ``uint8`` of ``(outputs, blocks, 16)``, and their exponents, ``uint8`` of
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
        out[number] = decode_blocks(blocks.flatten(1), scales, dtype).T
    return torch.empty(shape, dtype=dtype) if out is None else out


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
        scales: A scale per block, the last blocks cut off where the shape is no multiple of them; or a single one.
            ``uint8`` and E8M0 are exponents.
        block: Rows and columns of a block.
        dtype: Of the result.
        zero_points: In the shape of the scales; None for none.
        groups: ``(columns,)``: the column of scales for each column of the weight; None where they are in order.

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
    # A row of blocks at a time, so that the fp32 copy stays small.
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


def _spread(
    values: torch.Tensor, block: tuple[int, int], shape: torch.Size, groups: torch.Tensor | None
) -> torch.Tensor:
    """Values per block repeated for each of their elements, cut to the shape."""
    if groups is not None:
        across = values[:, groups.long()]
    elif values.shape[1] == 1:
        across = values
    else:
        across = values.repeat_interleave(block[1], dim=1)[:, : shape[1]]
    return across if block[0] == 1 else across.repeat_interleave(block[0], dim=0)[: shape[0]]


#: The places of eight neighbors in a word, in the order of AWQ's kernels: the first in the lowest four bits, the second
#: in the fifth four.
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def _packed(encoded: Encoded, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """compressed-tensors' format ``pack-quantized``: elements are stored with half their range added, in words that may
    hold more than the columns; zero points are packed along the rows, or ``int8`` as the scales.

    A -1 among the groups says that the columns are in order.
    """
    words, bits, columns = parts["weight"], encoded.bits, encoded.tensor.shape[-1]
    if "shape" in parts:
        told = tuple(parts["shape"].flatten().tolist())
        if told[-2:] != encoded.tensor.shape[-2:]:
            raise ValueError(f"its shape is told as {' x '.join(map(str, told))}")
    half = 1 << (bits - 1)
    numbers = (unpack_words(words, bits)[..., :columns].to(torch.int16) - half).to(torch.int8)
    zero_points, groups = parts.get("zero_point"), parts.get("g_idx")
    if zero_points is not None and zero_points.dtype == torch.int32:
        unpacked = unpack_words(zero_points.transpose(-1, -2), bits)[..., : words.shape[-2]].transpose(-1, -2)
        zero_points = unpacked.to(torch.int16) - half
    if groups is not None and bool((groups < 0).any()):
        groups = None
    return decode_scaled(numbers, parts["scale"], encoded.block, dtype, zero_points=zero_points, groups=groups)


def _gptq(encoded: Encoded, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """GPTQ: words packed along the inputs, zero points along the outputs."""
    words, bits = parts["weight"], encoded.bits
    numbers = unpack_words(words.T, bits)
    zeros = unpack_words(parts["zero_point"], bits)[:, : words.shape[1]].to(torch.int16) + encoded.zero_offset
    return decode_scaled(
        numbers, parts["scale"].T, encoded.block, dtype, zero_points=zeros.T, groups=parts.get("g_idx")
    )


def _awq(encoded: Encoded, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """AWQ, version GEMM, in 4 bits: eight neighbors of a row of outputs, in the order of the kernels."""
    numbers, zeros = (unpack_words(parts[role], 4, _AWQ_PLACES) for role in ("weight", "zero_point"))
    return decode_scaled(numbers.T, parts["scale"].T, encoded.block, dtype, zero_points=zeros.T)


def _scaled(encoded: Encoded, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """A number per element, times a scale."""
    zeros, groups = parts.get("zero_point"), parts.get("g_idx")
    return decode_scaled(parts["weight"], parts["scale"], encoded.block, dtype, zero_points=zeros, groups=groups)


def _bnb4(_encoded: Encoded, parts: Parts, _dtype: torch.dtype) -> torch.Tensor:
    """NF4 or FP4 of bitsandbytes, in the dtype and shape of its state: two elements a byte, and the other parts by the
    suffixes of the weight's name.
    """
    others = {f"weight.{role}": part for role, part in parts.items() if role != "weight"}
    state = QuantState.from_dict(others, device=parts["weight"].device)
    if parts["weight"].device.type == "cpu":
        dequantize_rightly()
    restored: torch.Tensor = bnb.functional.dequantize_4bit(parts["weight"], state)
    return restored


def _bnb8(_encoded: Encoded, parts: Parts, dtype: torch.dtype) -> torch.Tensor:
    """LLM.int8() of bitsandbytes: the largest absolute value of each row is stored as 127."""
    if "format" in parts and int(parts["format"]) != 0:
        raise ValueError("its rows are in the order of a kernel")
    weight = parts["weight"]
    return decode_scaled(weight, parts["scale"].to(torch.float32) / 127, (1, weight.shape[1]), dtype)


#: By the format of a weight: its description, its parts by their roles, and the dtype of the result.
DECODERS: dict[Codec, Callable[[Encoded, Parts, torch.dtype], torch.Tensor]] = {
    "fp4": _fp4,
    "packed": _packed,
    "gptq": _gptq,
    "awq": _awq,
    "scaled": _scaled,
    "bnb4": _bnb4,
    "bnb8": _bnb8,
}
