"""The kinds of files that a run can be exported to, and the types of their weights."""

from __future__ import annotations

from typing import Literal, get_args

Kind = Literal["adapter", "merged", "gguf", "ollama", "card"]
KINDS: tuple[Kind, ...] = get_args(Kind)

Quant = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0"]
"""The types of weights in a GGUF file, as llama.cpp names them."""
QUANTS: tuple[Quant, ...] = get_args(Quant)
#: The quantizations that llama.cpp's converter writes without its quantizer.
CONVERTED: tuple[Quant, ...] = ("F32", "F16", "BF16", "Q8_0")
