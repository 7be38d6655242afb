"""Fused rotary position embedding (RoFormer, arXiv 2104.09864) of queries or keys, in transformers' half-split form.

Where there are fewer angles than features, the first ones are rotated, and the others left as they are. The result
keeps its dtype: some families have their angles in fp32 and their features in 16 bit.

``rotate_half`` in the modeling files makes copies of both halves and keeps them; a rotation's backward is the rotation
by the negative angle, and needs only the angles.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class RotaryFunction(torch.autograd.Function):
    """The autograd function ``x cos + rotate_half(x) sin``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate the first features.

        Args:
            ctx: The autograd context.
            x: ``(batch, heads, length, head)``.
            cos: ``(batch or 1, 1, length, turned)``, both halves alike; at most as many as ``head``.
            sin: The same.
        """
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of ``x``."""
        cos, sin = ctx.saved_tensors
        return _rotate(outputs[0], cos, sin, -1.0), None, None


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([_rotate(x[..., :turned], cos, sin, sign), x[..., turned:]], dim=-1)
    half = turned // 2
    out = x * cos  # in the wider dtype of both
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)
    return out.to(x.dtype)


def apply_rotary_pos_emb(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of queries and keys, with the signature of the function in transformers' modeling files.

    Args:
        q: Queries, ``(batch, heads, length, head)``.
        k: Keys, likewise.
        cos: ``(batch or 1, length, turned)``.
        sin: The same.
        unsqueeze_dim: The position at which ``cos`` and ``sin`` get the dimension of the heads.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    function = _chosen.get((q.device, q.dtype), RotaryFunction) if unsqueeze_dim == 1 else RotaryFunction
    return function.apply(q, cos, sin), function.apply(k, cos, sin)  # type: ignore[no-untyped-call]


#: Other functions that compute the same, by device and dtype of the features. They belong to the process, as the
#: function above does: a model's file has one for all its models.
_chosen: dict[tuple[torch.device, torch.dtype], type[torch.autograd.Function]] = {}


def choose(device: torch.device, dtype: torch.dtype, function: type[torch.autograd.Function]) -> None:
    """Have features of a device and dtype rotated by another function that computes the same.

    Args:
        device: The device.
        dtype: The dtype.
        function: An autograd function with the arguments of :class:`RotaryFunction`.
    """
    _chosen[device, dtype] = function
