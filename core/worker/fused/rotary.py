"""Fused rotary position embedding (RoFormer, arXiv 2104.09864) of queries or keys, in transformers' half-split form.

Where there are fewer angles than features, the first features are rotated and the others stay as they are. The result
keeps its dtype: some families have angles in fp32 and features in 16 bits.

``rotate_half`` in the modeling files copies both halves and keeps them; a rotation's backward is the rotation by the
negative angle, and needs only the angles.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from core.worker.fused.mode import apply


class Rotation(Protocol):
    """A way to rotate: :func:`rotate`, or a kernel that computes the same."""

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float, /) -> torch.Tensor:
        """The rotated features, in the dtype of ``x``; ``sign`` is that of the angles."""


class RotaryFunction(torch.autograd.Function):
    """The autograd function ``x cos + rotate_half(x) sin``."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Rotate the first features.

        Args:
            ctx: The autograd context.
            x: ``(batch, heads, length, head)``.
            cos: ``(batch or 1, 1, length, turned)``, both halves alike; at most as many as ``head``.
            sin: The same.
            rotation: The way to compute it.
        """
        ctx.save_for_backward(cos, sin)
        ctx.rotation = rotation
        return rotation(x, cos, sin, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of ``x``."""
        cos, sin = ctx.saved_tensors
        return ctx.rotation(outputs[0], cos, sin, -1.0), None, None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: float) -> torch.Tensor:
    """The rotation by torch's own operations.

    Args:
        x: As for :class:`RotaryFunction`.
        cos: The same.
        sin: The same.
        sign: The sign of the angles: 1, or -1 to rotate back.
    """
    turned = cos.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat([rotate(x[..., :turned], cos, sin, sign), x[..., turned:]], dim=-1)
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
    rotation = _chosen.get((q.device, q.dtype), rotate) if unsqueeze_dim == 1 else rotate
    return apply(RotaryFunction, q, cos, sin, rotation), apply(RotaryFunction, k, cos, sin, rotation)


#: Other implementations, by device and dtype of the features. They are global like the function above: a modeling file
#: has a single one for all its models.
_chosen: dict[tuple[torch.device, torch.dtype], Rotation] = {}


def choose(device: torch.device, dtype: torch.dtype, rotation: Rotation) -> None:
    """Use another implementation for features of a device and dtype.

    Args:
        device: The device.
        dtype: The dtype.
        rotation: The way to rotate them.
    """
    _chosen[device, dtype] = rotation
