"""Weights that bitsandbytes saved: NF4 and FP4 with their ``quant_state``, and LLM.int8()."""

from __future__ import annotations

from collections.abc import Mapping

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState

from core.worker.model.decode.scaled import decode_scaled
from core.worker.model.nf4 import dequantize_rightly


def decode_4bit(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Decode a weight of NF4 or FP4, in the dtype and shape that its state says.

    Args:
        parts: ``weight`` with two elements a byte, and the others by the names that bitsandbytes gives them behind the
            weight's: ``absmax``, ``quant_map``, ``quant_state.bitsandbytes__nf4``, …
    """
    others = {f"weight.{role}": part for role, part in parts.items() if role != "weight"}
    state = QuantState.from_dict(others, device=parts["weight"].device)
    if parts["weight"].device.type == "cpu":
        dequantize_rightly()
    restored: torch.Tensor = bnb.functional.dequantize_4bit(parts["weight"], state)
    return restored


def decode_8bit(weight: torch.Tensor, statistics: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Decode a weight of LLM.int8().

    Args:
        weight: ``int8`` of ``(outputs, inputs)``.
        statistics: ``(outputs,)``: the largest absolute value of each row, which is stored as 127.
        dtype: Of the result.
    """
    return decode_scaled(weight, statistics.to(torch.float32) / 127, (1, weight.shape[1]), dtype)
