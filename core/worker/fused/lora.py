"""Fused LoRA: a frozen linear layer and its adapter as one autograd function.

``y = x W' + b + s (x A') B'``, with gradients for ``x``, ``A`` and ``B`` only. Besides ``x`` only ``x A'`` is kept for
backward, the adapter's part is added within the matrix product, and no copy of ``x`` in fp32 is made.

Source: LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch.autograd.function import once_differentiable

from core.worker.fused.frozen_weight import FrozenWeight


class LoraLinear(torch.autograd.Function):
    """The autograd function; matrix products are in the dtype of the arithmetic, the adapter's gradients in its own."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        weight: FrozenWeight,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The layer's output.

        Args:
            ctx: The autograd context.
            x: ``(..., inputs)``.
            dropped: The adapter's input where it differs: ``x`` after dropout.
            down: ``A``, ``(rank, inputs)``.
            up: ``B``, ``(outputs, rank)``.
            scale: ``s``.
            weight: ``W`` and ``b``.
            dtype: The dtype of the arithmetic, and of the output.
        """
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        seen = flat if dropped is None else dropped.reshape(flat.shape).to(dtype)
        out = torch.nn.functional.linear(flat, weight.matrix(dtype), weight.bias(dtype))
        low = seen @ down.to(dtype).T
        out.addmm_(low, (up * scale).to(dtype).T)
        ctx.save_for_backward(seen, low, down, up)
        ctx.scale, ctx.weight, ctx.dtype, ctx.shape, ctx.separate = scale, weight, dtype, x.shape, dropped is not None
        ctx.input_dtype = x.dtype
        return out.reshape(*x.shape[:-1], out.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``x``, ``dropped``, ``A`` and ``B``."""
        seen, low, down, up = ctx.saved_tensors
        dtype = ctx.dtype
        gradient = outputs[0].reshape(-1, outputs[0].shape[-1]).to(dtype)
        through = gradient @ (up * ctx.scale).to(dtype)
        to_x = to_dropped = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ ctx.weight.matrix(dtype)
            if not ctx.separate:
                to_x.addmm_(through, down.to(dtype))
            to_x = to_x.reshape(ctx.shape).to(ctx.input_dtype)
        if ctx.separate and ctx.needs_input_grad[1]:
            to_dropped = (through @ down.to(dtype)).reshape(ctx.shape).to(ctx.input_dtype)
        to_down = (through.T @ seen).to(down.dtype)
        to_up = (gradient.T @ low).to(up.dtype).mul_(ctx.scale)
        return to_x, to_dropped, to_down, to_up, None, None, None


class FusedLora:
    """The forward of a LoRA layer in training.

    Args:
        layer: A layer that :func:`can_fuse` accepts.
        adapter: The name of its adapter.
    """

    def __init__(self, layer: Any, adapter: str) -> None:
        self._layer = layer
        self._adapter = adapter
        self._usual = layer.forward
        self.weight = FrozenWeight(layer.get_base_layer())

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's output; where adapters are off or merged, or a single token is asked for without a gradient, by
        the layer's own forward, which has kernels of its own for that."""
        layer = self._layer
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        single = x.numel() == x.shape[-1] and not torch.is_grad_enabled() and not self.weight.is_kept
        if args or kwargs or single or layer.merged or layer.active_adapters != [self._adapter]:
            return self._as_usual(x, *args, **kwargs)
        if layer.disable_adapters:
            if not self.weight.is_kept or torch.is_grad_enabled():
                return self._as_usual(x)
            return torch.nn.functional.linear(x.to(dtype), self.weight.matrix(dtype), self.weight.bias(dtype))
        dropout = layer.lora_dropout[self._adapter]
        drops = isinstance(dropout, torch.nn.Dropout) and dropout.p > 0 and layer.training
        dropped = dropout(x) if drops else None
        down, up = layer.lora_A[self._adapter].weight, layer.lora_B[self._adapter].weight
        result: torch.Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
            x, dropped, down, up, float(layer.scaling[self._adapter]), self.weight, dtype
        )
        return result

    def _as_usual(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = self._usual(x, *args, **kwargs)
        return output


def can_fuse(layer: Any, adapter: str) -> bool:
    """Whether :class:`FusedLora` computes the same as a module: one plain adapter on a frozen linear layer.

    Args:
        layer: Any module.
        adapter: The name of the adapter.
    """
    if not isinstance(layer, LoraLayer) or list(getattr(layer, "lora_A", ())) != [adapter]:
        return False
    base = layer.get_base_layer()
    if type(base) not in (torch.nn.Linear, bnb.nn.Linear4bit) or any(p.requires_grad for p in base.parameters()):
        return False
    plain = not layer.lora_variant and not getattr(layer, "fan_in_fan_out", False) and not layer.lora_bias[adapter]
    return plain and not base._forward_hooks and not base._forward_pre_hooks
