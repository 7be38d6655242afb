"""Elements of packed tensors: several in a word or a byte, in two's complement or as numbers of 4 bits."""

from __future__ import annotations

import torch

#: The numbers of E2M1, by their four bits: sign, two of the exponent, one of the fraction (OCP Microscaling Formats
#: (MX) Specification 1.0, 5.3.3).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
#: The exponent of E8M0 that stands for 1, and the one that stands for no number (the same, 5.4.1).
_ONE, _NAN = 127, 255


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """Elements of 32-bit words, the lowest bits first.

    Args:
        words: ``int32`` of ``(…, n)``.
        bits: Of an element: 2, 4 or 8.

    Returns:
        ``uint8`` of ``(…, n * 32 / bits)``.
    """
    found = words.contiguous().view(torch.uint8)  # little endian, as safetensors are
    if bits == 8:
        return found
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return ((found.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)


def unpack_e2m1(codes: torch.Tensor) -> torch.Tensor:
    """Numbers of E2M1 that lie two in a byte, the lower four bits first.

    Args:
        codes: ``uint8`` of ``(…, n)``.

    Returns:
        ``float32`` of ``(…, 2 n)``.
    """
    table = torch.tensor([*_E2M1, *(-number for number in _E2M1)])
    pairs = torch.stack([table[torch.arange(256) & 15], table[torch.arange(256) >> 4]], dim=-1)
    return pairs[codes.to(torch.int32)].flatten(-2)


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
