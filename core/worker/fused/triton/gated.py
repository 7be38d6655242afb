"""Kernels of the gated product ``activation(gate) * up``: a forward pass, and a backward pass that recomputes it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from core.worker.fused.gated import Activation, Gating
from core.worker.fused.triton import OPTIONS
from core.worker.fused.triton.rms_norm import as_rows

#: Features that one program works on.
BLOCK = 1024
#: Number of each activation function in the kernels.
NUMBERS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    """The activation function and its derivative, in fp32."""
    if ACTIVATION == 0:
        share = 1.0 / (1.0 + tl.exp(-x))
        return x * share, share * (1.0 + x * (1.0 - share))
    if ACTIVATION == 1:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        # The hyperbolic tangent by an exponential that cannot overflow.
        power = tl.exp(-2.0 * tl.abs(inner))
        size = (1.0 - power) / (1.0 + power)
        tangent = tl.where(inner < 0, -size, size)
        slope = 0.7978845608028654 * (1.0 + 3.0 * 0.044715 * x * x)
        half = 0.5 * (1.0 + tangent)
        return x * half, half + 0.5 * x * (1.0 - tangent * tangent) * slope
    share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    return x * share, share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _gated_forward(gate, up, out, gate_stride, up_stride, width, ACTIVATION: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    values = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    factor = tl.load(up + row * up_stride + column, mask=inside, other=0.0)
    active, _slope = _activated(values.to(tl.float32), ACTIVATION)
    active = active.to(values.dtype).to(tl.float32)
    tl.store(out + row * width + column, (active * factor.to(tl.float32)).to(values.dtype), mask=inside)


@triton.jit
def _gated_backward(
    gradient,
    gate,
    up,
    to_gate,
    to_up,
    product,
    outer_stride,
    gate_stride,
    up_stride,
    to_gate_stride,
    width,
    ACTIVATION: tl.constexpr,
    AGAIN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    outer = tl.load(gradient + row * outer_stride + column, mask=inside, other=0.0).to(tl.float32)
    values = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0)
    factor = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    active, slope = _activated(values.to(tl.float32), ACTIVATION)
    active = active.to(values.dtype).to(tl.float32)
    inner = (outer * factor).to(values.dtype).to(tl.float32)
    tl.store(to_gate + row * to_gate_stride + column, (inner * slope).to(values.dtype), mask=inside)
    tl.store(to_up + row * width + column, (outer * active).to(values.dtype), mask=inside)
    if AGAIN:
        tl.store(product + row * width + column, (active * factor).to(values.dtype), mask=inside)


class KernelGating(Gating):
    """The gated product by the kernels.

    Args:
        activation: The activation function.
    """

    def __init__(self, activation: Activation) -> None:
        super().__init__(activation)
        self._number = NUMBERS[activation.name]

    def product(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """As for :class:`Gating`."""
        first, second = as_rows(gate), as_rows(up)
        out = torch.empty(first.shape, dtype=gate.dtype, device=gate.device)
        _gated_forward[_grid(first)](
            first,
            second,
            out,
            first.stride(0),
            second.stride(0),
            first.shape[1],
            self._number,
            COLUMNS=BLOCK,
            **OPTIONS,
        )
        return out.view(gate.shape)

    def gradients(self, outer: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As for :class:`Gating`."""
        to_gate, to_up, _ = self._gradients(as_rows(outer), gate, up, again=False)
        return to_gate, to_up

    def gradients_and_product(
        self, outer: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As for :class:`Gating`."""
        return self._gradients(as_rows(outer), gate, up, again=True)

    def _gradients(
        self, outer: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, *, again: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients, and the product if ``again``; the gate's gradient then overwrites ``outer``."""
        first, second = as_rows(gate), as_rows(up)
        to_up = torch.empty(first.shape, dtype=gate.dtype, device=gate.device)
        to_gate = outer if again else torch.empty_like(to_up)
        product = torch.empty_like(to_up) if again else to_up
        _gated_backward[_grid(first)](
            outer,
            first,
            second,
            to_gate,
            to_up,
            product,
            outer.stride(0),
            first.stride(0),
            second.stride(0),
            to_gate.stride(0),
            first.shape[1],
            self._number,
            again,
            COLUMNS=BLOCK,
            **OPTIONS,
        )
        return to_gate.view(gate.shape), to_up.view(gate.shape), product.view(gate.shape)


def _grid(flat: torch.Tensor) -> tuple[int, int]:
    return flat.shape[0], triton.cdiv(flat.shape[1], BLOCK)
