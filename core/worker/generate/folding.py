"""An adapter folded (merged) into its base's weights: with their sum, decoding takes no longer than with the base.

Weights in 4 bits stay as they are: the sum would have to be rounded to 4 bits. So do DoRA, which scales the sum, and
layers that are no plain linear ones. The base's own weights are kept beside it and put back bit for bit, where PEFT's
``unmerge_adapter`` subtracts what was added and leaves the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from core.hardware.cpu import memory

#: Share of the free host memory that the kept weights may take.
_SHARE = 0.5


@dataclass(frozen=True)
class _Folded:
    parent: Any
    name: str
    wrapper: Any
    """The layer with its adapter, which is out of the model meanwhile."""
    weight: torch.Tensor
    """The base's own weight, on the host."""


class FoldedAdapter:
    """An adapter that is part of its base's weights until :meth:`unfold`."""

    def __init__(self, layers: list[_Folded]) -> None:
        self._layers = layers

    @torch.no_grad()
    def unfold(self) -> None:
        """Put the base's weights and the layers with adapters back, bit for bit."""
        for layer in self._layers:
            layer.wrapper.get_base_layer().weight.data.copy_(layer.weight)
            setattr(layer.parent, layer.name, layer.wrapper)
        self._layers = []


@torch.no_grad()
def fold(model: Any, name: str) -> FoldedAdapter | None:
    """Fold an adapter into the weights of its base, in fp32, rounded once.

    Args:
        model: A ``PeftModel`` in evaluation mode.
        name: PEFT's name of the adapter.

    Returns:
        What undoes it; None where it cannot be folded exactly, or the host has no room for the base's own weights.
    """
    base = model.get_base_model()
    found = [
        (parent, child, module)
        for parent in base.modules()
        for child, module in parent.named_children()
        if isinstance(module, LoraLayer)
    ]
    layers = [module for _, _, module in found]
    if not layers or not all(_is_plain(layer, name) for layer in layers):
        return None
    weights = [layer.get_base_layer().weight for layer in layers if name in layer.lora_A]
    shared = {base.get_input_embeddings().weight.data_ptr()}
    if any(weight.data_ptr() in shared for weight in weights) or len({w.data_ptr() for w in weights}) < len(weights):
        return None
    used, total = memory()
    if sum(weight.numel() * weight.element_size() for weight in weights) > _SHARE * (total - used):
        return None
    folded = []
    for parent, child, layer in found:
        inner = layer.get_base_layer()
        own = inner.weight.detach().to("cpu", copy=True)
        if name in layer.lora_A:
            total_weight = inner.weight.float() + layer.get_delta_weight(name).float()
            inner.weight.data.copy_(total_weight)
        setattr(parent, child, inner)
        folded.append(_Folded(parent, child, layer, own))
    return FoldedAdapter(folded)


def _is_plain(layer: Any, name: str) -> bool:
    inner = layer.get_base_layer()
    # Not their subclasses, which compute with their weights in ways of their own.
    if type(inner) not in (torch.nn.Linear, Conv1D) or not inner.weight.is_floating_point():
        return False
    variants, biases = getattr(layer, "lora_variant", {}), getattr(layer, "lora_bias", {})
    return name not in variants and not biases.get(name, False)
