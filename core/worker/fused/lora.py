"""Fused LoRA: a frozen linear layer and its adapter as one autograd function.

``y = x W' + b + s (x A') B'``, with gradients for ``x``, ``A`` and ``B`` only. Besides ``x`` only ``x A'`` is kept for
backward, the adapter's part is added inside the matrix product, and no copy of ``x`` in fp32 is made.

Source: LoRA, arXiv 2106.09685; QLoRA, arXiv 2305.14314.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft.tuners.lora import LoraLayer
from torch.autograd.function import once_differentiable

from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.fused.mode import apply, is_fused

#: Rows up to which bitsandbytes multiplies by a 4-bit matrix without dequantizing all of it, on CUDA. Its own limit is
#: 64 to 128 for most matrices of 7B models; above it bitsandbytes dequantizes like the fused layer.
SMALL_PRODUCT = 64


def product_with_adapter(
    flat: torch.Tensor,
    seen: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
    weight: FrozenWeight,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layer's output, and the adapter's intermediate ``x A'``, which backward needs.

    Args:
        flat: ``x``, ``(rows, inputs)``, in ``dtype`` like the next.
        seen: The adapter's input.
        down: ``A``, ``(rank, inputs)``.
        up: ``B``, ``(outputs, rank)``.
        scale: ``s``.
        weight: ``W`` and ``b``.
        dtype: The dtype of the arithmetic.
    """
    out = torch.nn.functional.linear(flat, weight.merged(down, up, scale, dtype), weight.bias(dtype))
    low = seen @ down.to(dtype).T
    if weight.file_type is None:
        out.addmm_(low, (up * scale).to(dtype).T)
    return out, low


def adapter_gradients(
    gradient: torch.Tensor,
    through: torch.Tensor,
    seen: torch.Tensor,
    low: torch.Tensor,
    down: torch.Tensor,
    up: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``A`` and ``B``, in their dtypes.

    Args:
        gradient: Gradient of the output, ``(rows, outputs)``.
        through: Gradient of the adapter's intermediate, ``(rows, rank)``.
        seen: As for :func:`product_with_adapter`.
        low: The adapter's intermediate.
        down: ``A``.
        up: ``B``.
        scale: ``s``.
    """
    return (through.T @ seen).to(down.dtype), (gradient.T @ low).to(up.dtype).mul_(scale)


def shaped_as(flat: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Rows in the shape of an input but for the last dimension. To autograd the result is not a view, so a model may
    change it in place as it may the output of torch's own linear layers (Llama 4 adds its experts' output to it).
    """
    shaped: torch.Tensor = torch.ops.aten._unsafe_view(flat, (*like.shape[:-1], flat.shape[-1]))
    return shaped


class LoraLinear(torch.autograd.Function):
    """LoRA as an autograd function; products are in the dtype of the arithmetic, the adapter's gradients in its own."""

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
        out, low = product_with_adapter(flat, seen, down, up, scale, weight, dtype)
        ctx.save_for_backward(seen, low, down, up)
        ctx.scale, ctx.weight, ctx.dtype, ctx.shape, ctx.separate = scale, weight, dtype, x.shape, dropped is not None
        ctx.input_dtype = x.dtype
        return shaped_as(out, x)

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
            to_x = gradient @ ctx.weight.merged(down, up, ctx.scale, dtype)
            if ctx.weight.file_type is None and not ctx.separate:
                to_x.addmm_(through, down.to(dtype))
            to_x = to_x.reshape(ctx.shape).to(ctx.input_dtype)
        if ctx.separate and ctx.needs_input_grad[1]:
            to_dropped = (through @ down.to(dtype)).reshape(ctx.shape).to(ctx.input_dtype)
        to_down, to_up = adapter_gradients(gradient, through, seen, low, down, up, ctx.scale)
        return to_x, to_dropped, to_down, to_up, None, None, None


class FrozenLinear(torch.autograd.Function):
    """A frozen linear layer alone, rounded as :class:`LoraLinear` rounds it; backward dequantizes its matrix again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: FrozenWeight, dtype: torch.dtype) -> torch.Tensor:
        """The layer's output.

        Args:
            ctx: The autograd context.
            x: ``(..., inputs)``.
            weight: The layer's matrix and bias.
            dtype: The dtype of the arithmetic, and of the output.
        """
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        ctx.weight, ctx.dtype, ctx.input_dtype = weight, dtype, x.dtype
        out = torch.nn.functional.linear(flat, weight.matrix(dtype), weight.bias(dtype))
        return shaped_as(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of ``x``."""
        return (outputs[0].to(ctx.dtype) @ ctx.weight.matrix(ctx.dtype)).to(ctx.input_dtype), None, None


@dataclass(frozen=True)
class Adapter:
    """The trained matrices of a layer."""

    down: torch.Tensor
    """``A``, ``(rank, inputs)``."""
    up: torch.Tensor
    """``B``, ``(outputs, rank)``."""
    scale: float
    dropout: float
    """Share of the inputs that is dropped in the current pass."""


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
        """The layer's output; by the layer's own forward where adapters are merged or it is faster
        (:func:`has_faster_kernel`)."""
        layer, weight = self._layer, self.weight
        rows = x.numel() // max(x.shape[-1], 1)
        faster = has_faster_kernel(rows, x.device.type, quantized=weight.is_quantized, kept=weight.is_kept)
        if args or kwargs or layer.merged or (faster and not is_fused() and weight.file_type is None):
            return self._as_usual(x, *args, **kwargs)
        if layer.disable_adapters:
            if not weight.is_kept and not is_fused():
                return self._as_usual(x)
            return apply(FrozenLinear, x, weight, arithmetic_of(x))
        adapter = self.applied()
        if adapter is None:
            return self._as_usual(x)
        dropped = torch.nn.functional.dropout(x, adapter.dropout) if adapter.dropout else None
        return apply(LoraLinear, x, dropped, adapter.down, adapter.up, adapter.scale, weight, arithmetic_of(x))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters of the layer, its adapter's among them."""
        found: Iterator[torch.nn.Parameter] = self._layer.parameters()
        return found

    def applied(self) -> Adapter | None:
        """The adapter of the current pass; None if it is off, merged, or not the only active one."""
        layer, name = self._layer, self._adapter
        if layer.disable_adapters or layer.merged or layer.active_adapters != [name]:
            return None
        dropout = layer.lora_dropout[name]
        drops = isinstance(dropout, torch.nn.Dropout) and layer.training and self.weight.file_type is None
        return Adapter(
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            float(layer.scaling[name]),
            dropout.p if drops else 0.0,
        )

    def _as_usual(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output: torch.Tensor = self._usual(x, *args, **kwargs)
        return output


def arithmetic_of(x: torch.Tensor) -> torch.dtype:
    """The dtype of products with a tensor: autocast's where it is on.

    Args:
        x: The tensor.
    """
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def has_faster_kernel(rows: int, device: str, *, quantized: bool, kept: bool) -> bool:
    """True if a layer's own forward is faster for so few rows: a single one, and, on CUDA, as many as bitsandbytes'
    kernel for 4-bit matrices takes.

    Args:
        rows: Rows of the input.
        device: Type of the device.
        quantized: Whether the matrix is stored in 4 bits.
        kept: Whether a dequantized copy of it is kept.
    """
    if kept:
        return False
    return rows <= (SMALL_PRODUCT if device == "cuda" and quantized else 1)


def can_fuse(layer: Any, adapter: str) -> bool:
    """True if :class:`FusedLora` computes the same as a module: a single plain adapter on a frozen linear layer.

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
