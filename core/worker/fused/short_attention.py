"""Attention of short rows on a CPU by whole matrix products.

Torch's CPU kernel splits short rows into such small pieces that its backward takes three times as long.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def attend_short(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention by :class:`ShortAttention`.

    Args:
        query: ``(rows, heads, queries, head)``.
        key: ``(rows, key heads, keys, head)``; the last query belongs to the last key.
        value: ``(rows, key heads, keys, value)``.
        scaling: The factor of the scores; None for one over the root of the head's size.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = ShortAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out


def later(queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The causal mask, minus infinity where a key comes after a query, else 0: ``(queries, keys)``.

    Args:
        queries: Number of queries.
        keys: Number of keys; the last query belongs to the last of them.
        device: Of the mask.
        dtype: Of the mask.
    """
    with torch.inference_mode(False):
        full = torch.full((queries, keys), float("-inf"), device=device, dtype=dtype)
        return full.triu(keys - queries + 1)


@functools.lru_cache(maxsize=64)
def _later_of_short(queries: int, keys: int) -> torch.Tensor:
    return later(queries, keys, torch.device("cpu"), torch.float32)


def drop_masks() -> None:
    """Drop the masks that are kept for the next rows of a length."""
    _later_of_short.cache_clear()


class ShortAttention(torch.autograd.Function):
    """Causal attention of short rows on a CPU: whole products, the probabilities kept for backward.

    Scores and their gradients are fp32; probabilities meet the values in the values' dtype.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        """Compute the attention.

        Args:
            ctx: The autograd context.
            query: ``(rows, heads, queries, head)``.
            key: ``(rows, key heads, keys, head)``; the last query belongs to the last key.
            value: ``(rows, key heads, keys, value)``.
            scale: The factor of the scores.

        Returns:
            ``(rows, heads, queries, value)``.
        """
        folded, keys, values = _folded(query, key), key.flatten(0, 1), value.flatten(0, 1)
        queries, length = query.shape[2], key.shape[2]
        mask = _later_of_short(queries, length).repeat(folded.shape[1] // queries, 1)
        # Autocast would compute the scores in 16 bit.
        with torch.autocast(query.device.type, enabled=False):
            scores = torch.baddbmm(mask, folded.float(), keys.float().transpose(1, 2), alpha=scale)
            shares = torch.softmax(scores, dim=-1).to(value.dtype)
            out = torch.bmm(shares, values)
        ctx.save_for_backward(query, key, value, shares)
        ctx.scale = scale
        return _unfolded(out, query)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        query, key, value, shares = ctx.saved_tensors
        folded, keys, values = _folded(query, key), key.flatten(0, 1), value.flatten(0, 1)
        # As in forward, in case backward is called within autocast.
        with torch.autocast(query.device.type, enabled=False):
            gradient = _folded(outputs[0], key)
            to_value = torch.bmm(shares.transpose(1, 2), gradient)
            to_shares = torch.bmm(gradient.float(), values.float().transpose(1, 2))
            to_scores = torch._softmax_backward_data(to_shares, shares.float(), -1, torch.float32)
            to_scores = to_scores.mul_(ctx.scale).to(query.dtype)
            to_query = _unfolded(torch.bmm(to_scores, keys), query)
            to_key = torch.bmm(to_scores.transpose(1, 2), folded)
        return to_query, to_key.view(key.shape), to_value.view(value.shape), None


def _folded(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Queries of all heads that share a key head, concatenated: ``(rows * key heads, share * queries, head)``."""
    return query.reshape(query.shape[0] * key.shape[1], -1, query.shape[-1])


def _unfolded(folded: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_folded`: the rows and heads of the queries; values may have a size of their own."""
    return folded.view(*query.shape[:-1], folded.shape[-1])
