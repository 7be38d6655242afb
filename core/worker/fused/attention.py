"""Packed attention: causal self-attention over packed rows, with a shared prefix computed once.

It is registered with transformers under :data:`NAME`, next to its own implementations. Called without a
:class:`Layout` it is torch's SDPA, as transformers calls it. With one, the sequence is cut into its groups, and each
group's rows attend to the group's prefix and to themselves, never to another row.

Short rows on a CPU go through :class:`ShortAttention`: torch's kernel for the CPU cuts them into pieces so small that
its backward takes three times as long.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from core.memory.batching import SHORT_ROW
from core.worker.fused.mode import is_fused

#: The implementation's name for ``set_attn_implementation``.
NAME = "localtune"
#: Arguments of attention layers that packed rows do not support, by the names of transformers.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "attention_bias")


class LayoutError(Exception):
    """A model needs attention that packed rows do not support; its rows are padded in a batch instead."""


@dataclass(frozen=True)
class Group:
    """Rows of one width after a shared prefix."""

    prefix: int
    """Tokens of the prefix; 0 for none."""
    rows: int
    width: int
    """Tokens of each row after the prefix, padding included."""

    @property
    def tokens(self) -> int:
        """Tokens of the group in the sequence."""
        return self.prefix + self.rows * self.width


@dataclass(frozen=True)
class Layout:
    """The layout of a packed sequence: its groups, in their order."""

    groups: tuple[Group, ...]
    attended: set[int] = field(default_factory=set, init=False, repr=False, compare=False)
    """The attention layers that have used the layout, by identity."""
    _masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def mask(self, query: torch.Tensor, keys: int) -> torch.Tensor:
        """The mask of :func:`_later` for queries ``(rows, heads, queries, head)``, made once for all layers of a batch.
        A long one takes much memory, so it is dropped with the batch."""
        wanted = (query.shape[2], keys, query.device, query.dtype)
        if wanted not in self._masks:
            self._masks[wanted] = _later(*wanted)
        return self._masks[wanted]

    @property
    def longest(self) -> int:
        """Tokens of the longest row with its prefix."""
        return max(group.prefix + group.width for group in self.groups)


_layout_on: list[Layout] = []


@contextlib.contextmanager
def masks_left_out(layout: Layout) -> Iterator[None]:
    """A context in which a model makes no attention masks, as the layout defines the visible tokens.

    Args:
        layout: The layout of the next forward.
    """
    _layout_on.append(layout)
    try:
        yield
    finally:
        _layout_on.pop()


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    if not _layout_on:
        made: torch.Tensor | None = sdpa_mask(*args, **kwargs)
        return made
    window = kwargs.get("local_size")
    if window is not None and _layout_on[-1].longest > window:
        raise LayoutError(f"rows of {_layout_on[-1].longest} tokens pass the attention window of {window}")
    return None


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if layout is None:
        if _is_plain(module, query, key, attention_mask, dropout, kwargs) and _is_short(query, key.shape[2]):
            return _attend_short(query, key, value, scaling).transpose(1, 2).contiguous(), None
        found: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return found
    if attention_mask is not None or not _is_plain(module, query, key, None, dropout, kwargs):
        more = " or has dropout" if dropout else ""
        raise LayoutError(f"its attention is not plainly causal{more}")
    window = kwargs.get("sliding_window")
    if window is not None and layout.longest > window:
        raise LayoutError(f"rows of {layout.longest} tokens pass the attention window of {window}")
    layout.attended.add(id(module))
    return _attend_groups(query, key, value, layout, scaling), None


def _is_plain(
    module: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, dropout: float, kwargs: Any
) -> bool:
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    asked = any(kwargs.get(name) is not None for name in _UNSUPPORTED)
    return mask is None and dropout == 0.0 and bool(causal) and not asked and query.shape[2] == key.shape[2]


def _is_short(query: torch.Tensor, keys: int) -> bool:
    learning = query.requires_grad or not torch.is_grad_enabled()
    return query.device.type == "cpu" and 1 < keys <= SHORT_ROW and learning and is_fused()


def _attend_groups(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None
) -> torch.Tensor:
    """Attention over one flat sequence.

    Args:
        query: ``(1, heads, tokens, head)``.
        key: ``(1, key heads, tokens, head)``.
        value: The same.
        layout: The layout of the rows.
        scaling: The factor of the scores; None for one over the root of the head's size.

    Returns:
        ``(1, tokens, heads, head)``.
    """
    parts: list[torch.Tensor] = []
    at = 0
    for group in layout.groups:
        before = at + group.prefix
        end = at + group.tokens
        if group.prefix:
            ends = slice(at, before)
            out = _attend(query[:, :, ends], key[:, :, ends], value[:, :, ends], scaling, layout)
            parts.append(out.transpose(1, 2).flatten(0, 1))
        own = [_rows(tensor, before, end, group) for tensor in (query, key, value)]
        if group.prefix:
            own[1:] = [
                torch.cat([tensor[:, :, at:before].expand(group.rows, -1, -1, -1), rows], dim=2)
                for tensor, rows in zip((key, value), own[1:], strict=True)
            ]
        parts.append(_attend(own[0], own[1], own[2], scaling, layout).transpose(1, 2).flatten(0, 1))
        at = end
    return torch.cat(parts)[None]


def _rows(tensor: torch.Tensor, begin: int, end: int, group: Group) -> torch.Tensor:
    """A slice of ``(1, heads, tokens, head)`` as ``(rows, heads, width, head)``."""
    heads, size = tensor.shape[1], tensor.shape[3]
    return tensor[0, :, begin:end].reshape(heads, group.rows, group.width, size).transpose(0, 1)


def _attend_short(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out: torch.Tensor = ShortAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return out


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, layout: Layout
) -> torch.Tensor:
    """Causal attention whose last query sees all keys: ``(rows, heads, queries, head)``."""
    queries, keys = query.shape[2], key.shape[2]
    if _is_short(query, keys):
        return _attend_short(query, key, value, scaling)
    grouped = query.shape[1] != key.shape[1]
    if queries == keys:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    if grouped:
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
    mask = layout.mask(query, keys)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


def _later(queries: int, keys: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The causal mask, minus infinity where a key comes after a query, else 0: ``(queries, keys)``."""
    with torch.inference_mode(False):
        full = torch.full((queries, keys), float("-inf"), device=device, dtype=dtype)
        return full.triu(keys - queries + 1)


@functools.lru_cache(maxsize=64)
def _later_of_short(queries: int, keys: int) -> torch.Tensor:
    return _later(queries, keys, torch.device("cpu"), torch.float32)


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


def register() -> None:
    """Register the implementation with transformers; safe to call again."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
