"""Elements of packed tensors: several in a word or a byte, in two's complement or as numbers of 4 bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

#: The numbers of E2M1, by their four bits: sign, two of the exponent, one of the fraction (OCP Microscaling Formats
#: (MX) Specification 1.0, 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: The exponent of E8M0 that stands for 1, and the one that stands for no number (the same, 5.4.1).
_ONE, _NAN = 127, 255


def unpack_words(words: torch.Tensor, bits: int, places: Sequence[int] | None = None) -> torch.Tensor:
    """Elements of 32-bit words.

    Args:
        words: ``int32`` of ``(…, n)``.
        bits: Of an element: 2, 4 or 8.
        places: The places of a word's elements in it, counted from the lowest bits; None: they are in order.

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
    """Numbers of E2M1 that lie two in a byte, the lower four bits first.

    Args:
        codes: ``uint8`` of ``(…, n)``.
        dtype: Of the result: 16 or 32 bit, all of which have these numbers.

    Returns:
        ``(…, 2 n)``.
    """
    table = torch.tensor([*_E2M1, *(-number for number in _E2M1)], dtype=dtype)
    every = torch.arange(256)
    pairs = torch.stack([table[every & 15], table[every >> 4]], dim=-1)
    # Two numbers are looked up as one, by their bits.
    looked_up = pairs.view(torch.int64 if dtype.itemsize == 4 else torch.int32).flatten().to(codes.device)
    found = torch.index_select(looked_up, 0, codes.flatten().to(torch.int32))
    return found.view(dtype).view(*codes.shape[:-1], -1)


def scale_values(scales: torch.Tensor) -> torch.Tensor:
    """Scales as numbers: powers of two where they are E8M0.

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
