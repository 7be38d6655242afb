"""An adapter folded (merged) into its base's weights: with their sum, decoding takes no longer than with the base.

The base's own weights are kept beside it and put back bit for bit, where PEFT's ``unmerge_adapter`` subtracts what was
added and leaves the rounding. Where the base is in 4 bits, a CPU gets the sum in 16 or 32 bits, as it would have to be
rounded to 4; on a card the two stay apart, as it has no room for such copies. So do DoRA, which scales the sum, and
layers that are no plain linear ones. Adapters on experts stay beside them while the others are folded: a token passes
few experts, and all of them would have to be copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
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
    weight: torch.Tensor | None
    """The base's own weight, on the host; None where the sum is in a layer of its own."""


class FoldedAdapter:
    """An adapter that is part of its base's weights until :meth:`unfold`."""

    def __init__(self, layers: list[_Folded]) -> None:
        self._layers = layers

    @torch.no_grad()
    def unfold(self) -> None:
        """Put the base's weights and the layers with adapters back, bit for bit."""
        for layer in self._layers:
            if layer.weight is not None:
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
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper)
    ]
    layers = [module for _, _, module in found]
    if not layers or not all(_is_plain(layer, name) for layer in layers):
        return None
    weights = [layer.get_base_layer().weight for layer in layers if name in layer.lora_A]
    shared = {base.get_input_embeddings().weight.data_ptr()}
    if any(weight.data_ptr() in shared for weight in weights) or len({w.data_ptr() for w in weights}) < len(weights):
        return None
    used, total = memory()
    if sum(_copy_bytes(layer.get_base_layer()) for layer in layers if name in layer.lora_A) > _SHARE * (total - used):
        return None
    folded = []
    for parent, child, layer in found:
        inner, own = layer.get_base_layer(), None
        if name in layer.lora_A:
            if isinstance(inner, bnb.nn.Linear4bit):
                inner = _dequantized(inner)
            else:
                own = inner.weight.detach().to("cpu", copy=True)
            inner.weight.data.copy_(inner.weight.float() + layer.get_delta_weight(name).float())
        setattr(parent, child, inner)
        folded.append(_Folded(parent, child, layer, own))
    return FoldedAdapter(folded)


def _dequantized(layer: bnb.nn.Linear4bit) -> torch.nn.Linear:
    """A plain linear layer with a 4-bit one's weights, and its bias, in the dtype that it computes in."""
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    plain.weight = torch.nn.Parameter(weight.to(layer.compute_dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain.eval()


def _copy_bytes(layer: Any) -> int:
    """Bytes that folding takes for a layer: a copy of its weights."""
    if isinstance(layer, bnb.nn.Linear4bit):
        return int(layer.in_features * layer.out_features * layer.compute_dtype.itemsize)
    return int(layer.weight.numel() * layer.weight.element_size())


def _is_plain(layer: Any, name: str) -> bool:
    inner = layer.get_base_layer()
    if isinstance(inner, bnb.nn.Linear4bit):
        return inner.weight.device.type == "cpu" and inner.compute_dtype is not None and _has_no_variant(layer, name)
    # Not their subclasses, which compute with their weights in ways of their own.
    if type(inner) not in (torch.nn.Linear, Conv1D) or not inner.weight.is_floating_point():
        return False
    return _has_no_variant(layer, name)


def _has_no_variant(layer: Any, name: str) -> bool:
    variants, biases = getattr(layer, "lora_variant", {}), getattr(layer, "lora_bias", {})
    return name not in variants and not biases.get(name, False)
