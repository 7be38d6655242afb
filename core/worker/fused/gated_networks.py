"""Gated feed-forward networks of a model: recognized by a trial of their forward, and replaced by the fused one."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import bitsandbytes as bnb
import torch

from core.worker.fused.gated import ACTIVATIONS, Activation, GatedFeedForward, Gating
from core.worker.fused.kernels import gating_of
from core.worker.fused.lora import FusedLora

#: Names of the projections and of the activation function in the modeling files of transformers.
SEPARATE, JOINED, DOWN = ("gate_proj", "up_proj"), ("gate_up_proj",), "down_proj"
ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")
#: Features of the trial, and the size of its values: large enough for a clamp to show.
INPUTS, WIDTH, SPREAD = 6, 8, 20.0


def fuse_gated(causal: Any, layers: Mapping[Any, FusedLora], dtype: torch.dtype) -> int:
    """Replace the forward of the gated networks of a model; returns their number.

    Args:
        causal: The model, its adapters fused.
        layers: The fused form of its linear layers, by layer.
        dtype: The dtype of the arithmetic.
    """
    known: dict[tuple[type, ...], Activation | None] = {}
    count = 0
    for module in causal.modules():
        names = _projections(module)
        if not names or not all(_is_plain(getattr(module, name), layers) for name in (*names, DOWN)):
            continue
        # Nobody but us may have replaced its forward.
        is_own = isinstance(vars(module).get("forward"), GatedFeedForward | None)
        if module._forward_hooks or module._forward_pre_hooks or not is_own:
            continue
        kinds = (type(module), type(_activation(module)[1]))
        if kinds not in known:
            known[kinds] = recognize(module)
        activation = known[kinds]
        if activation is not None:
            down = getattr(module, DOWN)
            usual = types.MethodType(type(module).forward, module)
            gating = gating_of(activation, next(down.parameters()).device, dtype)
            project = _projecting(module, names)
            module.forward = GatedFeedForward(project, down, layers.get(down), usual, gating)
            count += 1
    return count


def recognize(module: Any) -> Activation | None:
    """The activation function of a gated network, or None for an unknown network.

    Its forward is called on a stand-in with small layers of ours, so that a missing attribute or a clamp of large
    values shows.

    Args:
        module: The network.
    """
    names, (name, function) = _projections(module), _activation(module)
    activation = _recognize_activation(function)
    if activation is None:
        return None
    generator = torch.Generator().manual_seed(0)
    made = [_small_layer(INPUTS, WIDTH * 2 // len(names), generator) for _ in names]
    down = _small_layer(WIDTH, INPUTS, generator)
    parts = dict(zip(names, made, strict=True)) | {DOWN: down, name: function}
    stand_in = types.SimpleNamespace(**parts, config=getattr(module, "config", None))
    x = torch.randn(4, INPUTS, generator=generator) * SPREAD
    with torch.no_grad():
        projected = torch.cat([layer(x) for layer in made], dim=-1)
        wanted = down(Gating(activation).product(*projected.chunk(2, dim=-1)))
        try:
            found = type(module).forward(stand_in, x)
        except Exception:  # any error of a forward whose stand-in lacks an attribute
            return None
    same = isinstance(found, torch.Tensor) and found.shape == wanted.shape
    return activation if same and torch.allclose(found, wanted, rtol=1e-4, atol=1e-2) else None


def _projections(module: Any) -> tuple[str, ...]:
    """Names of a module's gate and up projections, a single one where one layer makes both; empty if its parts are not
    those of a gated network."""
    for names in (SEPARATE, JOINED):
        if all(isinstance(getattr(module, name, None), torch.nn.Module) for name in (*names, DOWN)):
            return names if _activation(module)[0] else ()
    return ()


def _activation(module: Any) -> tuple[str, Any]:
    for name in ACTIVATION_NAMES:
        function = getattr(module, name, None)
        if callable(function):
            return name, function
    return "", None


def _recognize_activation(function: Any) -> Activation | None:
    x = torch.linspace(-12, 12, 97)
    try:
        with torch.no_grad():
            wanted = function(x.clone())
    except Exception:  # an activation with weights on another device, or with several inputs
        return None
    if not isinstance(wanted, torch.Tensor):
        return None
    close = (one for one in ACTIVATIONS if torch.allclose(one.forward(x), wanted, rtol=1e-5, atol=1e-6))
    return next(close, None)


def _small_layer(inputs: int, outputs: int, generator: torch.Generator) -> Callable[[torch.Tensor], torch.Tensor]:
    weight = torch.randn(outputs, inputs, generator=generator)
    return lambda x: torch.nn.functional.linear(x, weight)


def _is_plain(layer: Any, layers: Mapping[Any, FusedLora]) -> bool:
    """True if a linear layer has a fused adapter, or none, frozen or trained."""
    if layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return layer in layers or type(layer) in (torch.nn.Linear, bnb.nn.Linear4bit)


def _projecting(
    module: Any, names: tuple[str, ...]
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]:
    if len(names) == 1:
        return lambda x: (getattr(module, names[0])(x), None)
    return lambda x: (getattr(module, names[0])(x), getattr(module, names[1])(x))
