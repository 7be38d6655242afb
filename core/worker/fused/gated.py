"""Fused gated feed-forward network: ``down(activation(gate(x)) * up(x))`` (GLU variants, arXiv 2002.05202).

Of its four wide tensors only the two projections are kept for backward. Backward recomputes the activated gate and its
product with the up projection, which is the input of the down projection's adapter, by two elementwise operations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch.autograd.function import once_differentiable

from core.worker.fused.frozen_weight import FrozenWeight
from core.worker.fused.lora import (
    AdaptedLayer,
    Factors,
    FusedLora,
    adapter_gradients,
    arithmetic_of,
    input_gradient,
    shaped_as,
)
from core.worker.fused.mode import apply, is_fused

#: An activation function's backward: the gradient of its output, its input, and the tensor for the result, which may be
#: the first.
Backward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Activation:
    """An activation function with its backward, each one operation of torch."""

    name: str
    forward: Callable[[torch.Tensor], torch.Tensor]
    backward: Backward


def _gelu(approximate: str) -> Activation:
    def backward(gradient: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = torch.ops.aten.gelu_backward.grad_input(
            gradient, x, approximate=approximate, grad_input=out
        )
        return made

    return Activation(
        "gelu" if approximate == "none" else f"gelu_{approximate}",
        lambda x: F.gelu(x, approximate=approximate),
        backward,
    )


def _silu_backward(gradient: torch.Tensor, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.ops.aten.silu_backward.grad_input(gradient, x, grad_input=out)
    return made


#: Activation functions that are recognized.
ACTIVATIONS = (Activation("silu", F.silu, _silu_backward), _gelu("tanh"), _gelu("none"))


class Gating:
    """The gated product ``activation(gate) * up``, by torch's own operations.

    Args:
        activation: The activation function.
    """

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def product(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """The product.

        Args:
            gate: ``(..., width)``.
            up: The same.
        """
        return self.activation.forward(gate) * up

    def gradients(self, outer: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients of ``gate`` and ``up``.

        Args:
            outer: The gradient of the product.
            gate: ``(..., width)``.
            up: The same.
        """
        to_up = self.activation.forward(gate).mul_(outer)
        inner = outer * up
        return self.activation.backward(inner, gate, inner), to_up

    def gradients_and_product(
        self, outer: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The gradients of ``gate`` and ``up``, and the product again.

        Args:
            outer: The gradient of the product; it is overwritten.
            gate: ``(..., width)``.
            up: The same.
        """
        active = self.activation.forward(gate)
        product = active * up
        to_up = active.mul_(outer)
        inner = outer.mul_(up)
        return self.activation.backward(inner, gate, inner), to_up, product


def _split(first: torch.Tensor, second: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and the other projection; ``first`` is both of them where one layer makes both."""
    if second is not None:
        return first, second
    gate, up = first.chunk(2, dim=-1)
    return gate, up


def _joined(
    gate: torch.Tensor, up: torch.Tensor, second: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Gradients of ``first`` and ``second``."""
    return (torch.cat([gate, up], dim=-1), None) if second is None else (gate, up)


class GatedProduct(torch.autograd.Function):
    """The gated product as an autograd function, which keeps its inputs only."""

    @staticmethod
    def forward(ctx: Any, first: torch.Tensor, second: torch.Tensor | None, gating: Gating) -> torch.Tensor:
        """The product, ``(..., width)``.

        Args:
            ctx: The autograd context.
            first: The gate, ``(..., width)``, or gate and other projection, ``(..., 2 * width)``.
            second: The other projection, if it is not a part of ``first``.
            gating: The way to compute it.
        """
        ctx.save_for_backward(first, second)
        ctx.gating = gating
        return gating.product(*_split(first, second))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``first`` and ``second``."""
        first, second = ctx.saved_tensors
        to_gate, to_up = ctx.gating.gradients(outputs[0], *_split(first, second))
        return *_joined(to_gate, to_up, second), None


class GatedLoraLinear(torch.autograd.Function):
    """Gated product, down projection and its adapter as one autograd function; rounded as one by one."""

    @staticmethod
    def forward(
        ctx: Any,
        first: torch.Tensor,
        second: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        dropout: float,
        weight: FrozenWeight,
        dtype: torch.dtype,
        gating: Gating,
    ) -> torch.Tensor:
        """The network's output.

        Args:
            ctx: The autograd context.
            first: As for :class:`GatedProduct`.
            second: The same.
            down: The adapter's ``A``, ``(rank, width)``.
            up: Its ``B``, ``(outputs, rank)``.
            scale: Its factor.
            dropout: Share of its input that is dropped.
            weight: The down projection.
            dtype: The dtype of the arithmetic, and of the output.
            gating: The way to compute the product.
        """
        product = gating.product(*_split(first, second))
        flat = product.reshape(-1, product.shape[-1])
        seen, kept = torch.native_dropout(flat, dropout, True) if dropout else (flat, None)
        flat, seen = flat.to(dtype), seen.to(dtype)
        low = seen @ down.to(dtype).T
        out = AdaptedLayer(weight, down, up, scale).output(flat, low)
        ctx.save_for_backward(first, second, kept, low, down, up)
        ctx.scale, ctx.dropout, ctx.weight, ctx.dtype, ctx.gating = scale, dropout, weight, dtype, gating
        return shaped_as(out, product)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``first``, ``second``, ``A`` and ``B``."""
        first, second, kept, low, down, up = ctx.saved_tensors
        gate, dtype = _split(first, second), ctx.dtype
        gradient = outputs[0].reshape(-1, outputs[0].shape[-1]).to(dtype)
        layer = AdaptedLayer(ctx.weight, down, up, ctx.scale)
        low_gradient = gradient @ layer.scaled_up(dtype)
        in_products = layer.weight.file_type is None and kept is None
        outer = input_gradient([layer], [gradient], low_gradient if in_products else None)
        if layer.weight.file_type is None and kept is not None:
            outer.add_(_dropped((low_gradient @ down.to(dtype)).to(first.dtype), kept, ctx.dropout))
        outer = outer.to(first.dtype).view(gate[0].shape)
        to_gate, to_other, product = ctx.gating.gradients_and_product(outer, *gate)
        seen = product.view(-1, product.shape[-1])
        seen = (seen if kept is None else _dropped(seen, kept, ctx.dropout)).to(dtype)
        to_down, to_up = adapter_gradients(Factors([layer], [gradient], low_gradient, seen, low))
        return *_joined(to_gate, to_other, second), to_down, to_up, None, None, None, None, None


class GatedLinear(torch.autograd.Function):
    """Gated product and a trained down projection as one autograd function; rounded as one by one.

    The input of the down projection, which the gradient of its weight needs, is recomputed in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        first: torch.Tensor,
        second: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        gating: Gating,
    ) -> torch.Tensor:
        """The network's output.

        Args:
            ctx: The autograd context.
            first: As for :class:`GatedProduct`.
            second: The same.
            weight: Of the down projection, ``(outputs, width)``.
            bias: Its bias, ``(outputs,)``, if there is one.
            dtype: The dtype of the arithmetic, and of the output.
            gating: The way to compute the product.
        """
        product = gating.product(*_split(first, second)).to(dtype)
        ctx.save_for_backward(first, second, weight, bias)
        ctx.dtype, ctx.gating = dtype, gating
        return F.linear(product, weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``first``, ``second``, ``weight`` and ``bias``."""
        first, second, weight, bias = ctx.saved_tensors
        gate, dtype = _split(first, second), ctx.dtype
        gradient = outputs[0].reshape(-1, outputs[0].shape[-1]).to(dtype)
        outer = (gradient @ weight.to(dtype)).to(first.dtype).view(gate[0].shape)
        to_gate, to_other, product = ctx.gating.gradients_and_product(outer, *gate)
        to_weight = (gradient.T @ product.view(-1, product.shape[-1]).to(dtype)).to(weight.dtype)
        to_bias = None if bias is None else gradient.sum(dim=0).to(bias.dtype)
        return *_joined(to_gate, to_other, second), to_weight, to_bias, None, None


def _dropped(x: torch.Tensor, kept: torch.Tensor, dropout: float) -> torch.Tensor:
    """A tensor through a dropout that has been drawn, which is its own backward; rounded as torch rounds it there."""
    if x.device.type == "cpu":
        return x * kept.to(x.dtype).div_(1 - dropout)
    made: torch.Tensor = torch.ops.aten.native_dropout_backward(x, kept, 1 / (1 - dropout))
    return made


class GatedFeedForward:
    """The forward of a gated feed-forward network in training.

    Args:
        project: The projections of an input: the gate and the other one, or both in one tensor.
        down: The down projection.
        fused: Its fused form, if it has an adapter.
        usual: The network's own forward.
        gating: The way to compute the product of a gate with the other projection.
    """

    def __init__(
        self,
        project: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
        down: Any,
        fused: FusedLora | None,
        usual: Callable[[torch.Tensor], torch.Tensor],
        gating: Gating,
    ) -> None:
        self._project = project
        self._down = down
        self._fused = fused
        self._usual = usual
        self._gating = gating

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output; by its own forward where nothing is kept for backward."""
        if not is_fused():
            return self._usual(x)
        first, second = self._project(x)
        if second is not None and second.dtype != first.dtype:
            second = second.to(first.dtype)
        if not first.requires_grad and (second is None or not second.requires_grad):
            # Below the first adapter, one wide tensor is kept at most: the down projection's input.
            below: torch.Tensor = self._down(self._gating.product(*_split(first, second)))
            return below
        if self._fused is None and self._down.weight.requires_grad:
            weight, bias, dtype = self._down.weight, self._down.bias, arithmetic_of(first)
            return apply(GatedLinear, first, second, weight, bias, dtype, self._gating)
        layer = None if self._fused is None else self._fused.applied()
        if layer is None:
            out: torch.Tensor = self._down(apply(GatedProduct, first, second, self._gating))
            return out
        own = (layer.down, layer.up, layer.scale, layer.dropout, layer.weight)
        return apply(GatedLoraLinear, first, second, *own, arithmetic_of(first), self._gating)
