"""Expert modules of mixtures in transformers, and their matrices.

transformers marks the classes of experts with ``use_experts_implementation``; their computation is in
:mod:`core.worker.model.experts_implementation`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from core.worker.model.expert_weights import ExpertsParams4bit


def is_experts(module: Any) -> bool:
    """True if a module has the fused experts of a layer, whatever the family calls its class: transformers' decorator
    ``use_experts_implementation`` has marked it.
    """
    return isinstance(module, torch.nn.Module) and all(
        name in module.__dict__ for name in ("has_gate", "has_bias", "is_transposed", "is_concatenated")
    )


def experts_of(model: Any) -> Iterator[tuple[str, Any]]:
    """Modules of experts with their names in the model.

    Args:
        model: A model of transformers, without adapters or beneath them.
    """
    for name, module in model.named_modules():
        if is_experts(module):
            yield name, module


def bare_experts(model: Any) -> int:
    """Number of elements of experts whose class transformers does not mark, as in Llama 4, DBRX and JetMoE.

    They are computed by their family's own code: they stay in 16 bits, and get no adapters.

    Args:
        model: A model of transformers, or a part of one, without adapters or beneath them.
    """
    return sum(
        parameter.numel()
        for module in model.modules()
        if "Expert" in type(module).__name__ and not is_experts(module) and not isinstance(module, torch.nn.Linear)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1
    )


def matrix_names(module: Any) -> tuple[str, str]:
    """Names of the matrices of experts, in the order of computation.

    Args:
        module: A module of experts.
    """
    return ("gate_up_proj" if module.has_gate else "up_proj", "down_proj")


def stored_shape(parameter: torch.Tensor) -> torch.Size:
    """Shape of the weights of the experts of a layer as transformers stores them: ``(experts, rows, columns)``."""
    return parameter.quant_state.shape if isinstance(parameter, ExpertsParams4bit) else parameter.shape


def matrix_shapes(module: Any) -> tuple[tuple[int, int], ...]:
    """Outputs and inputs of the matrices of an expert.

    Args:
        module: A module of experts.
    """
    shapes = [stored_shape(getattr(module, name))[1:] for name in matrix_names(module)]
    return tuple((int(b), int(a)) if module.is_transposed else (int(a), int(b)) for a, b in shapes)


def expert_count(module: Any) -> int:
    """Number of experts.

    Args:
        module: A module of experts.
    """
    return int(stored_shape(module.down_proj)[0])
