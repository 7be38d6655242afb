"""Fused RMSNorm: root mean square normalization (arXiv 1910.07467), with a frozen or a trained weight.

The modules of transformers go through fp32 in four steps and keep each of them for backward; here only the input and
one number per token are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class RmsNormFunction(torch.autograd.Function):
    """The autograd function ``w * (x / rms(x))``, normalized in fp32, rounded to the input's dtype, then weighted."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalize the last dimension of ``x``.

        Args:
            ctx: The autograd context.
            x: ``(..., hidden)``.
            weight: ``(hidden,)``.
            epsilon: Added to the mean of squares.
        """
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normal: torch.Tensor = (wide * inverse).to(x.dtype)
        return normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of ``x``, and of ``weight`` if it is trained."""
        x, weight, inverse = ctx.saved_tensors
        to_weight = gradient_of_weight(outputs[0], x, inverse).to(weight.dtype) if ctx.needs_input_grad[1] else None
        gradient = (outputs[0] * weight).float()
        normal = x.float() * inverse
        share = (gradient * normal).mean(dim=-1, keepdim=True)
        return gradient.sub_(normal.mul_(share)).mul_(inverse).to(x.dtype), to_weight, None


def gradient_of_weight(gradient: torch.Tensor, x: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """The gradient of a norm's weight: products in the input's dtype, summed over all rows in fp32.

    Args:
        gradient: Gradient of the output, ``(..., hidden)``.
        x: The input, the same.
        inverse: Reciprocal of each row's root mean square, ``(..., 1)``, fp32.

    Returns:
        ``(hidden,)``, fp32.
    """
    products = (x * inverse).to(x.dtype).mul_(gradient)
    return products.reshape(-1, x.shape[-1]).sum(dim=0, dtype=torch.float32)
