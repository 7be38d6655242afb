"""Storage of a 4-bit base: which of its linear layers and experts are in 16 bit all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

from core.worker.model.expert_weights import ExpertsParams4bit
from core.worker.model.experts import experts_of, matrix_names


def layers_16bit(model: Any) -> list[str]:
    """Names of the linear layers in 16 bit, the head included, and of the matrices of experts; sorted.

    Args:
        model: A model of transformers, or a ``PeftModel`` around one.
    """
    return sorted(name for name, in_4bit in _stored(model) if not in_4bit)


def layers_4bit(model: Any) -> list[str]:
    """Names of the linear layers in 4 bits, and of the matrices of experts; sorted.

    Args:
        model: As for :func:`layers_16bit`.
    """
    return sorted(name for name, in_4bit in _stored(model) if in_4bit)


def has_4bit_experts(model: Any) -> bool:
    """Whether experts of a mixture are in 4 bits.

    Args:
        model: As for :func:`layers_16bit`.
    """
    return any(isinstance(parameter, ExpertsParams4bit) for parameter in model.parameters())


def _stored(model: Any) -> Iterator[tuple[str, bool]]:
    """Names of what could be in 4 bits, adapters around it left out, and whether it is."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    for name, module in base.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and ".lora_" not in name:
            yield _bare(name), isinstance(module, bnb.nn.Linear4bit)
    for name, module in experts_of(base):
        for matrix in matrix_names(module):
            yield f"{_bare(name)}.{matrix}", isinstance(getattr(module, matrix), ExpertsParams4bit)


def _bare(name: str) -> str:
    return name.replace(".base_layer", "")
