"""Adapters in a mixture of experts: the layers that get adapters, and the reason why others do not.

The memory plan and the worker share these functions, so that the plan matches the training.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.config.schema import MethodSection
from core.config.targets import is_target, stays_16bit
from core.units import short_count

#: ``auto`` puts adapters on experts if these have at most this share of the experts' own parameters.
LARGEST_SHARE = 0.01
#: Names that the matrices of experts have: fused, as transformers keeps them, and one by one, as checkpoints do.
_MATRICES = ("gate_up_proj", "up_proj", "down_proj", "0.gate_proj", "0.up_proj", "0.down_proj", "0.w1", "0.w2", "0.w3")

#: Outputs and inputs of the matrices of one expert, as ``(2 * width, hidden), (hidden, width)``.
Matrices = Sequence[tuple[int, int]]


def adapts_experts(method: MethodSection, module: str, matrices: Matrices) -> bool:
    """True if the experts of a layer get adapters.

    ``auto`` decides for adapters if ``method.target_modules`` names the experts (``all-linear`` does), the adapters
    have at most :data:`LARGEST_SHARE` of the experts' own parameters, and neither DoRA nor an initialization computed
    from the weights is set, as experts support neither.

    Args:
        method: The method.
        module: Name of the module of the experts: ``model.layers.0.mlp.experts``.
        matrices: Shapes of the matrices of one expert.
    """
    if method.target_experts != "auto":
        return method.target_experts == "on"
    return (
        names_experts(method.target_modules, module)
        and not method.dora
        and method.init == "default"
        and adapter_share(matrices, method.rank) <= LARGEST_SHARE
    )


def adapts_linear(name: str, targets: str | Sequence[str]) -> bool:
    """True if a linear layer of the decoder gets an adapter; not for the output head.

    ``all-linear`` excludes routers and small gates, the layers that always stay in 16 bit.

    Args:
        name: The module's name in the model: ``model.layers.0.self_attn.q_proj``.
        targets: As ``method.target_modules``.
    """
    if isinstance(targets, str):
        return not stays_16bit(name)
    return any(is_target(name, entry) for entry in targets)


def names_experts(targets: str | Sequence[str], module: str) -> bool:
    """True if ``method.target_modules`` names the experts of a layer, or one of their matrices.

    Args:
        targets: As ``method.target_modules``.
        module: Name of the module of the experts.
    """
    if isinstance(targets, str):
        return True
    names = [module, *(f"{module}.{matrix}" for matrix in _MATRICES)]
    return any(is_target(name, entry) for name in names for entry in targets)


def adapter_share(matrices: Matrices, rank: int) -> float:
    """Ratio of adapter parameters to the experts' own parameters; the number of experts does not matter."""
    own = sum(outputs * inputs for outputs, inputs in matrices)
    return rank * sum(outputs + inputs for outputs, inputs in matrices) / own


def without_adapters(method: MethodSection, matrices: Matrices, experts: int) -> str | None:
    """The reason why ``auto`` leaves experts without adapters; None if the user decided, or they get adapters.

    Args:
        method: The method.
        matrices: Shapes of the matrices of one expert.
        experts: Experts of all layers together.
    """
    if method.target_experts != "auto" or not isinstance(method.target_modules, str):
        return None
    if method.dora or method.init != "default":
        what = "DoRA" if method.dora else f"method.init = {method.init}"
        return f"The experts get no adapters: {what} does not work on them."
    share = adapter_share(matrices, method.rank)
    if share <= LARGEST_SHARE:
        return None
    elements = experts * sum(method.rank * (outputs + inputs) for outputs, inputs in matrices)
    return (
        f"The experts get no adapters: at rank {method.rank} they would have {short_count(elements)} parameters, "
        f"{share:.1%} of the experts' own, and auto takes up to {LARGEST_SHARE:.0%}. "
        "method.target_experts = on adds them."
    )
