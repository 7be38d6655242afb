"""Packed attention: causal self-attention over packed rows, with a shared prefix computed once.

It is registered with transformers under :data:`NAME`, next to its own implementations. Without a :class:`Layout` it is
torch's SDPA, as transformers calls it. With a layout, the sequence is cut into its groups, and each group's rows attend
to the group's prefix and to themselves, never to another row.

On a GPU no dense mask is made where a kernel of :mod:`core.worker.fused.attention_kernels` computes the same. The
kernel is chosen by a trial on the device for every shape of heads; a sliding window reaches the layers as a
:class:`Window`.

On a CPU, rows of up to :data:`BLOCK_ROW` tokens go through :class:`ShortAttention` and :class:`BlockAttention`.

In compiled layers, packed rows and windows are one opaque operation: the compiler would otherwise build a program for
every pattern of groups.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from core.memory.batching import BLOCK_ROW, QUERY_BLOCK, SHORT_ROW
from core.worker.fused.attention_kernels import (
    Kernel,
    Sequences,
    attend_lower_right,
    attend_sequences,
    flash_serves,
    kernels_for,
    repeated,
)
from core.worker.fused.lora import arithmetic_of
from core.worker.fused.mode import apply, comparable, is_fused
from core.worker.fused.trial import Trial, compare

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
    kernels: set[Kernel] = field(default_factory=set, init=False, repr=False, compare=False)
    """The kernels used for the layout."""
    table: torch.Tensor = field(init=False, repr=False, compare=False)
    """The groups for compiled layers, three numbers each and three zeros, int64 on the host: in a tensor, new groups
    do not recompile. It is flat, so that no dimension specializes on the number of groups."""
    _masks: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers = [number for group in self.groups for number in (group.prefix, group.rows, group.width)]
        object.__setattr__(self, "table", torch.tensor([*numbers, 0, 0, 0]))

    def mask(self, query: torch.Tensor, keys: int) -> torch.Tensor:
        """The mask of :func:`later` for queries ``(rows, heads, queries, head)``, made once for all layers of a batch.
        A long one takes much memory, so it is dropped with the batch."""
        wanted = (query.shape[2], keys, query.device, query.dtype)
        if wanted not in self._masks:
            self._masks[wanted] = later(*wanted)
        return self._masks[wanted]

    @functools.cached_property
    def sequences(self) -> Sequences:
        """Prefixes and rows as separate sequences; the keys of a row are its prefix and itself."""
        queries: list[int] = []
        keys: list[int] = []
        for group in self.groups:
            if group.prefix:
                queries.append(group.prefix)
                keys.append(group.prefix)
            queries += [group.width] * group.rows
            keys += [group.prefix + group.width] * group.rows
        return Sequences(tuple(queries), tuple(keys))

    @property
    def longest(self) -> int:
        """Tokens of the longest row with its prefix."""
        return max(group.prefix + group.width for group in self.groups)


@dataclass(frozen=True, eq=False)
class Window:
    """A causal mask with a sliding window, kept symbolic for kernels that take the window size."""

    size: int
    """Tokens that a query sees, itself included."""
    _made: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    _sequences: dict[tuple[int, int], Sequences] = field(default_factory=dict, init=False, repr=False)

    def mask(self, query: torch.Tensor) -> torch.Tensor:
        """The dense mask, True where a query sees a key, ``(length, length)``; made once for all layers of a batch."""
        wanted = (query.shape[2], query.device)
        if wanted not in self._made:
            with torch.inference_mode(False):
                full = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device)
                self._made[wanted] = full.tril_().triu_(1 - self.size)
        return self._made[wanted]

    def sequences(self, query: torch.Tensor) -> Sequences:
        """Rows of a batch as sequences."""
        rows, length = query.shape[0], query.shape[2]
        if (rows, length) not in self._sequences:
            self._sequences[rows, length] = Sequences((length,) * rows, (length,) * rows)
        return self._sequences[rows, length]


#: Types of devices whose kernels take sliding windows; cleared by a model family that inspects its masks.
_windowed = {"cuda"}


def spell_windows_out(device: torch.device) -> bool:
    """Make dense masks for sliding windows from now on.

    Args:
        device: The device of the model.

    Returns:
        True if that is a change.
    """
    if device.type not in _windowed:
        return False
    _windowed.discard(device.type)
    return True


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


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | Window | None:
    size = kwargs.get("local_size")
    window = _window(size, kwargs)
    if not _layout_on:
        if window is not None and _is_first_pass(kwargs):
            return window
        made: torch.Tensor | None = sdpa_mask(*args, **kwargs)
        return made
    if window is None and size is not None and _layout_on[-1].longest > size:
        raise LayoutError(f"rows of {_layout_on[-1].longest} tokens pass the attention window of {size}")
    return window


def _window(size: int | None, kwargs: dict[str, Any]) -> Window | None:
    """The mask as a window, on devices whose kernels take one; chunked attention has a size too, but no window."""
    config = kwargs.get("config")
    slides = size is not None and getattr(config, "sliding_window", None) == size
    if size is None or not slides or getattr(config, "attention_chunk_size", None) == size:
        return None
    return Window(size) if torch.device(kwargs.get("device", "cpu")).type in _windowed else None


def _is_first_pass(kwargs: dict[str, Any]) -> bool:
    """True if rows are whole and unpadded, and the mask is causal but for its window."""
    offsets = [kwargs.get(name, 0) for name in ("q_offset", "kv_offset")]
    if not all(isinstance(offset, int) and offset == 0 for offset in offsets):
        return False
    whole = kwargs["q_length"] == kwargs["kv_length"] and kwargs.get("attention_mask") is None
    return whole and bool(kwargs.get("allow_is_causal_skip", True))


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Window | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    if layout is None:
        return _attend_padded(module, query, key, value, attention_mask, dropout, scaling, kwargs), None
    window = attention_mask if isinstance(attention_mask, Window) else None
    mask = None if window is not None else attention_mask
    if mask is not None or not _is_plain(module, query, key, None, dropout, kwargs):
        more = " or has dropout" if dropout else ""
        raise LayoutError(f"its attention is not plainly causal{more}")
    size = kwargs.get("sliding_window") if window is None else window.size
    if torch.compiler.is_compiling():
        return _opaque(query, key, value, layout.table, size, scaling, told=window is not None), None
    return _attend_packed(query, key, value, layout, size, scaling, told=window is not None, module=module), None


def _attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    size: int | None,
    scaling: float | None,
    *,
    told: bool,
    module: Any = None,
) -> torch.Tensor:
    """Attention of packed rows by the device's kernel: ``(1, tokens, heads, head)``.

    Args:
        query: ``(1, heads, tokens, head)``.
        key: ``(1, key heads, tokens, head)``.
        value: The same.
        layout: The layout of the rows.
        size: Tokens that a query sees, itself included; None for all before it.
        scaling: The factor of the scores; None for one over the root of the head's size.
        told: True if the model made a mask for the window, False if only the layer has the size.
        module: The layer, recorded in the layout.
    """
    windowed = size is not None and layout.longest > size
    kernel = choose_kernel(query, key, value, window=windowed)
    if windowed and (not told or kernel is not Kernel.VARLEN):
        raise LayoutError(f"rows of {layout.longest} tokens pass the attention window of {size}")
    if module is not None:
        layout.attended.add(id(module))
    layout.kernels.add(kernel)
    return _attend_groups(query, key, value, layout, scaling, kernel, size if windowed else None)


def _attend_padded(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | Window | None,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """Attention of a padded batch: ``(rows, tokens, heads, head)``."""
    if isinstance(mask, Window):
        window, mask = mask, None
        if query.shape[2] > window.size:
            plain = _is_plain(module, query, key, None, dropout, kwargs)
            if plain and torch.compiler.is_compiling():
                return _opaque(query, key, value, None, window.size, scaling, told=True)
            if plain and choose_kernel(query, key, value, window=True) is Kernel.VARLEN:
                return _attend_window(query, key, value, window, scaling)
            mask = window.mask(query)
    if _is_plain(module, query, key, mask, dropout, kwargs):
        if _is_for_cpu(query, key.shape[2]):
            if key.shape[2] > SHORT_ROW and torch.compiler.is_compiling():
                return _opaque(query, key, value, None, None, scaling, told=False)
            return attend_on_cpu(query, key, value, scaling).transpose(1, 2).contiguous()
        if _repeats_keys(query, key, value):
            query, key, value = _cast(query, key, value)
            key, value = (repeated(tensor, query.shape[1]) for tensor in (key, value))
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
            return out.transpose(1, 2).contiguous()
    found: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return found[0]


def _is_plain(
    module: Any, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, dropout: float, kwargs: Any
) -> bool:
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    asked = any(kwargs.get(name) is not None for name in _UNSUPPORTED)
    return mask is None and dropout == 0.0 and bool(causal) and not asked and query.shape[2] == key.shape[2]


def _is_for_cpu(query: torch.Tensor, keys: int) -> bool:
    learning = query.requires_grad or not torch.is_grad_enabled()
    return query.device.type == "cpu" and 1 < keys <= BLOCK_ROW and learning and is_fused()


# Compiled layers.


def _opaque(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor | None,
    size: int | None,
    scaling: float | None,
    *,
    told: bool,
) -> torch.Tensor:
    """Attention of packed rows, of a padded batch with a window, or of one in blocks, as one operation."""
    query, key, value = _cast(query, key, value)
    out: torch.Tensor = torch.ops.localtune.attention(query, key, value, table, size, scaling, told)
    return out


@torch.library.custom_op("localtune::attention", mutates_args=())
def _opaque_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor | None,
    size: int | None,
    scaling: float | None,
    told: bool,
) -> torch.Tensor:
    # Gradients are off inside the operation, but on in the surrounding pass.
    with comparable():
        return _attend_by_table(query, key, value, table, size, scaling, told).contiguous()


@_opaque_forward.register_fake
def _opaque_shape(query: torch.Tensor, _key: torch.Tensor, value: torch.Tensor, *_others: object) -> torch.Tensor:
    rows, heads, tokens, _ = query.shape
    return query.new_empty(rows, tokens, heads, value.shape[3])


@torch.library.custom_op("localtune::attention_backward", mutates_args=())
def _opaque_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor | None,
    size: int | None,
    scaling: float | None,
    told: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with _recorded():
        inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
        out = _attend_by_table(inputs[0], inputs[1], inputs[2], table, size, scaling, told)
        found = torch.autograd.grad(out, inputs, gradient)
    # Custom operations may not return views of one another.
    to_query, to_key, to_value = (part.clone(memory_format=torch.contiguous_format) for part in found)
    return to_query, to_key, to_value


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    """A context in which autograd records inside an operation, where torch turns it off."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
        if hasattr(torch._C.DispatchKey, name):
            exclude = exclude.remove(getattr(torch._C.DispatchKey, name))
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield


@_opaque_backward.register_fake
def _opaque_gradients(
    gradient: torch.Tensor,  # noqa: ARG001 - torch's signature
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *_others: object,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    to_query, to_key, to_value = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    return to_query, to_key, to_value


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG001
    query, key, value, table, *ctx.others = inputs
    ctx.save_for_backward(query, key, value, table)


def _gradients(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # The attention is computed again: the operation cannot pass on the tensors that its kernel saved.
    found = torch.ops.localtune.attention_backward(gradient, *ctx.saved_tensors, *ctx.others)
    return *found, None, None, None, None


_opaque_forward.register_autograd(_gradients, setup_context=_keep_for_backward)


def _attend_by_table(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    table: torch.Tensor | None,
    size: int | None,
    scaling: float | None,
    told: bool,
) -> torch.Tensor:
    with torch.autocast(query.device.type, enabled=False):
        if table is not None:
            layout = _layout_of(tuple(table.tolist()))
            return _attend_packed(query, key, value, layout, size, scaling, told=told)
        if size is None:
            return attend_on_cpu(query, key, value, scaling).transpose(1, 2)
        window = _window_of(size)
        if choose_kernel(query, key, value, window=True) is Kernel.VARLEN:
            return _attend_window(query, key, value, window, scaling)
        key, value = (repeated(tensor, query.shape[1]) for tensor in (key, value))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=window.mask(query), scale=scaling)
        return out.transpose(1, 2)


def try_opaque(device: torch.device, dtype: torch.dtype) -> Trial:
    """Compare attention as compiled layers call it with attention as eager layers do, forward and backward.

    Args:
        device: The device.
        dtype: The dtype of the arithmetic.
    """
    layout = Layout(tuple(Group(*group) for group in TRIAL_LAYOUT))

    def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _attend_packed(query, key, value, layout, None, None, told=False)

    def opaque(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return _opaque(query, key, value, layout.table, None, None, told=False)

    return compare("attention of compiled layers", opaque, plain, trial_inputs(device, dtype, 4, 2, 64, 64))


@functools.lru_cache(maxsize=1)
def _layout_of(table: tuple[int, ...]) -> Layout:
    """The layout of a batch, cached so that all its layers share the masks."""
    return Layout(tuple(Group(*table[at : at + 3]) for at in range(0, len(table) - 3, 3)))


_window_of = functools.lru_cache(maxsize=1)(Window)


# The choice of a kernel.


#: Compute capability by type of device, once known: compiled layers cannot query it.
_capabilities: dict[str, tuple[int, int] | None] = {"cpu": None}


def capability_of(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA card; None for other devices."""
    kind = device.type
    if kind not in _capabilities:
        known = kind == "cuda" and torch.version.cuda is not None
        _capabilities[kind] = torch.cuda.get_device_capability(device) if known else None
    return _capabilities[kind]


def is_rocm(device: torch.device) -> bool:
    """True for an AMD card, whose kernels are known by their trial only."""
    return device.type == "cuda" and torch.version.hip is not None


def choose_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: bool) -> Kernel:
    """The kernel for packed rows or a sliding window: the fastest that matches a dense mask on the device.

    Args:
        query: ``(rows, heads, tokens, head)``.
        key: ``(rows, key heads, tokens, head)``.
        value: The same.
        window: Whether rows are longer than a sliding window.
    """
    if query.device.type == "cpu":
        return Kernel.MASKED
    heads, head = query.shape[1], query.shape[3]
    dtype = arithmetic_of(query)
    return _proven_kernel(query.device, dtype, heads, key.shape[1], head, value.shape[3], window)


@functools.lru_cache(maxsize=64)
def _proven_kernel(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head: int, value_head: int, window: bool
) -> Kernel:
    known = kernels_for(capability_of(device), dtype, head, value_head, window=window, rocm=is_rocm(device))
    for kernel in known:
        if kernel is Kernel.MASKED:
            break
        inputs = trial_inputs(device, dtype, heads, key_heads, head, value_head)
        # Activation checkpointing's hooks may be active here and would capture the tensors that the trial saves;
        # inside the operation of compiled layers no gradients would be recorded.
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor), _recorded():
            if try_kernel(kernel, inputs, window=window).passed:
                return kernel
    return Kernel.MASKED


#: The trial's rows: a shared prefix, two rows of one length, and a single row longer than the trial's window.
TRIAL_LAYOUT = ((5, 2, 11), (0, 2, 7), (0, 1, 19))
TRIAL_WINDOW = 6


def trial_inputs(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, head: int, value_head: int
) -> list[torch.Tensor]:
    """Queries, keys and values of the trial's rows, heads and tokens transposed as they come from the projections.

    Args:
        device: Their device.
        dtype: Their dtype.
        heads: Of the queries.
        key_heads: Of the keys and values.
        head: Features of a head of queries and keys.
        value_head: The same of the values.
    """
    tokens = sum(Group(*group).tokens for group in TRIAL_LAYOUT)
    generator = torch.Generator().manual_seed(0)
    sizes = ((heads, head), (key_heads, head), (key_heads, value_head))
    made = [torch.randn(1, tokens, count, size, generator=generator) for count, size in sizes]
    return [tensor.to(device, dtype).transpose(1, 2).requires_grad_() for tensor in made]


def try_kernel(kernel: Kernel, inputs: Sequence[torch.Tensor], *, window: bool) -> Trial:
    """Compare a kernel with a dense mask, forward and backward.

    Args:
        kernel: The kernel.
        inputs: Result of :func:`trial_inputs`.
        window: Whether to try a sliding window.
    """
    layout = Layout(tuple(Group(*group) for group in TRIAL_LAYOUT))
    size = TRIAL_WINDOW if window else None

    def by(way: Kernel) -> Callable[..., torch.Tensor]:
        return lambda query, key, value: _attend_groups(query, key, value, layout, None, way, size)

    name = f"{kernel.value} of windows" if window else kernel.value
    return compare(name, by(kernel), by(Kernel.MASKED), inputs)


def _repeats_keys(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """True if grouped heads would lead SDPA to its math kernel, which keeps all scores: memory-efficient attention
    does not support them."""
    if query.shape[1] == key.shape[1]:
        return False
    if is_rocm(query.device):
        return choose_kernel(query, key, value, window=False) not in (Kernel.VARLEN, Kernel.FLASH)
    capability = capability_of(query.device)
    return capability is not None and not flash_serves(capability, arithmetic_of(query), query.shape[3], value.shape[3])


def _cast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors in the dtype of the arithmetic: some kernels do not take part in autocast."""
    dtype = arithmetic_of(tensors[0])
    return tuple(tensor.to(dtype) for tensor in tensors)


# Packed rows.


def _attend_groups(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: Layout,
    scaling: float | None,
    kernel: Kernel = Kernel.MASKED,
    window: int | None = None,
) -> torch.Tensor:
    """Attention over one flat sequence.

    Args:
        query: ``(1, heads, tokens, head)``.
        key: ``(1, key heads, tokens, head)``.
        value: The same.
        layout: The layout of the rows.
        scaling: The factor of the scores; None for one over the root of the head's size.
        kernel: The kernel.
        window: Tokens that a query sees, itself included; None for all before it.

    Returns:
        ``(1, tokens, heads, head)``.
    """
    if kernel is not Kernel.MASKED:
        query, key, value = _cast(query, key, value)
    if kernel is Kernel.VARLEN:
        # The gradient of an index would be a copy of all tokens; that of squeeze is a view.
        rows = query.squeeze(0).transpose(0, 1)
        keys, values = (_with_prefixes(tensor.squeeze(0).transpose(0, 1), layout) for tensor in (key, value))
        return attend_sequences(rows, keys, values, layout.sequences, window=window, scale=scaling)[None]
    parts: list[torch.Tensor] = []
    at = 0
    for group in layout.groups:
        before = at + group.prefix
        end = at + group.tokens
        if group.prefix:
            ends = slice(at, before)
            out = _attend(query[:, :, ends], key[:, :, ends], value[:, :, ends], scaling, layout, kernel, window)
            parts.append(out.transpose(1, 2).flatten(0, 1))
        own = [_rows(tensor, before, end, group) for tensor in (query, key, value)]
        if group.prefix:
            own[1:] = [
                torch.cat([tensor[:, :, at:before].expand(group.rows, -1, -1, -1), rows], dim=2)
                for tensor, rows in zip((key, value), own[1:], strict=True)
            ]
        out = _attend(own[0], own[1], own[2], scaling, layout, kernel, window)
        parts.append(out.transpose(1, 2).flatten(0, 1))
        at = end
    return torch.cat(parts)[None]


def _rows(tensor: torch.Tensor, begin: int, end: int, group: Group) -> torch.Tensor:
    """A slice of ``(1, heads, tokens, head)`` as ``(rows, heads, width, head)``."""
    heads, size = tensor.shape[1], tensor.shape[3]
    return tensor.squeeze(0)[:, begin:end].reshape(heads, group.rows, group.width, size).transpose(0, 1)


def _with_prefixes(tensor: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Keys or values, ``(tokens, heads, head)``, each row's after its prefix."""
    if not any(group.prefix for group in layout.groups):
        return tensor
    parts: list[torch.Tensor] = []
    at = 0
    for group in layout.groups:
        before, end = at + group.prefix, at + group.tokens
        own, shared = tensor[before:end], tensor[at:before]
        if group.prefix:
            # Repeated by expansion, not by an index, whose gradient would be summed in an undefined order.
            both = [shared.expand(group.rows, *shared.shape), own.reshape(group.rows, group.width, *own.shape[1:])]
            own = torch.cat(both, dim=1).flatten(0, 1)
        parts += [shared, own]
        at = end
    return torch.cat(parts)


def _attend_window(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: Window, scaling: float | None
) -> torch.Tensor:
    """Attention of a padded batch with a sliding window, without a mask: ``(rows, tokens, heads, head)``."""
    rows, keys, values = (tensor.transpose(1, 2).flatten(0, 1) for tensor in _cast(query, key, value))
    out = attend_sequences(rows, keys, values, window.sequences(query), window=window.size, scale=scaling)
    return out.view(query.shape[0], query.shape[2], *out.shape[1:])


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    layout: Layout,
    kernel: Kernel,
    window: int | None,
) -> torch.Tensor:
    """Causal attention whose last query sees all keys: ``(rows, heads, queries, head)``."""
    queries, keys = query.shape[2], key.shape[2]
    windowed = window is not None and keys > window
    if _is_for_cpu(query, keys) and not windowed:
        return attend_on_cpu(query, key, value, scaling)
    if kernel is not Kernel.MASKED:
        if kernel is Kernel.EFFICIENT:
            key, value = (repeated(tensor, query.shape[1]) for tensor in (key, value))
        return attend_lower_right(query, key, value, scale=scaling)
    grouped = query.shape[1] != key.shape[1]
    if queries == keys and not windowed:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    key, value = (repeated(tensor, query.shape[1]) for tensor in (key, value))
    mask = layout.mask(query, keys)
    if window is not None and windowed:
        mask = mask + mask.new_full(mask.shape, float("-inf")).tril_(keys - queries - window)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)


# Rows on a CPU.


def attend_on_cpu(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention by :class:`ShortAttention` or :class:`BlockAttention`.

    Args:
        query: ``(rows, heads, queries, head)``.
        key: ``(rows, key heads, keys, head)``; the last query belongs to the last key.
        value: ``(rows, key heads, keys, value)``.
        scaling: The factor of the scores; None for one over the root of the head's size.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[2] <= SHORT_ROW:
        return apply(ShortAttention, query, key, value, scale)
    return apply(BlockAttention, query, key, value, scale).transpose(1, 2)


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
    """Causal attention of short rows on a CPU by whole matrix products, the probabilities kept for backward.

    Torch's CPU kernel splits short rows into such small pieces that its backward takes three times as long.

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
        mask = _later_of_short(queries, length)
        # Autocast would compute the scores in 16 bit.
        with torch.autocast(query.device.type, enabled=False):
            shares = _shares(folded, keys, mask, scale).to(value.dtype)
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
            to_scores = _to_scores(gradient, values, shares.float(), ctx.scale).to(query.dtype)
            to_query = _unfolded(torch.bmm(to_scores, keys), query)
            to_key = torch.bmm(to_scores.transpose(1, 2), folded)
        return to_query, to_key.view(key.shape), to_value.view(value.shape), None


class BlockAttention(torch.autograd.Function):
    """Causal attention of longer rows on a CPU: a block of queries at a time, with the keys that it sees.

    Backward computes the probabilities of a block again, so that none are kept, as in FlashAttention (Dao et al., 2022,
    arXiv 2205.14135). Torch's CPU kernel repeats keys and values for every query head, and keeps them.

    The dtypes are those of :class:`ShortAttention`; gradients of keys and values are summed in fp32.
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
            ``(rows, queries, heads, value)``; not a view, so that a model may change it in place.
        """
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        rows, heads, queries, _ = query.shape
        keys, values = key.flatten(0, 1).float(), value.flatten(0, 1)
        made = value.new_empty(rows, queries, heads, value.shape[3])
        out = made.transpose(1, 2)
        with torch.autocast(query.device.type, enabled=False):
            for block, seen, mask in _blocks(query, key):
                own = query[:, :, block]
                shares = _shares(_folded(own, key), keys[:, :seen], mask, scale).to(value.dtype)
                out[:, :, block] = _unfolded(torch.bmm(shares, values[:, :seen]), own)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of queries, keys and values."""
        query, key, value = ctx.saved_tensors
        outer = outputs[0].transpose(1, 2)
        keys, values = key.flatten(0, 1), value.flatten(0, 1).float()
        wide_keys = keys.float()
        to_query = torch.empty_like(query)
        to_keys, to_values = (torch.zeros_like(tensor, dtype=torch.float32) for tensor in (keys, values))
        with torch.autocast(query.device.type, enabled=False):
            for block, seen, mask in _blocks(query, key):
                own = query[:, :, block]
                folded, gradient = _folded(own, key), _folded(outer[:, :, block], key)
                shares = _shares(folded, wide_keys[:, :seen], mask, ctx.scale)
                to_values[:, :seen].add_(torch.bmm(shares.to(value.dtype).transpose(1, 2), gradient))
                to_scores = _to_scores(gradient, values[:, :seen], shares, ctx.scale).to(query.dtype)
                to_query[:, :, block] = _unfolded(torch.bmm(to_scores, keys[:, :seen]), own)
                to_keys[:, :seen].add_(torch.bmm(to_scores.transpose(1, 2), folded))
        return to_query, to_keys.to(key.dtype).view(key.shape), to_values.to(value.dtype).view(value.shape), None


def _blocks(query: torch.Tensor, key: torch.Tensor) -> Iterator[tuple[slice, int, torch.Tensor]]:
    """Blocks of queries, with the number of keys that each sees, and the mask of the last ones among them."""
    queries, keys = query.shape[2], key.shape[2]
    mask = later(QUERY_BLOCK, QUERY_BLOCK, query.device, torch.float32)
    for begin in range(0, queries, QUERY_BLOCK):
        end = min(begin + QUERY_BLOCK, queries)
        # The last query of every block sees all of the block's keys.
        yield slice(begin, end), keys - queries + end, mask[begin - end :, begin - end :]


def _shares(folded: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Probabilities in fp32, ``(rows * key heads, share * queries, keys)``.

    Args:
        folded: Of the queries.
        keys: ``(rows * key heads, keys, head)``.
        mask: Of the last keys, ``(queries, keys)``.
        scale: The factor of the scores.
    """
    folded = folded.float()
    scores = torch.baddbmm(folded.new_empty(()), folded, keys.float().transpose(1, 2), beta=0, alpha=scale)
    last = scores.view(len(scores), -1, len(mask), scores.shape[2])[..., -mask.shape[1] :]
    last += mask
    return torch.softmax(scores, dim=-1)


def _to_scores(gradient: torch.Tensor, values: torch.Tensor, shares: torch.Tensor, scale: float) -> torch.Tensor:
    """The gradient of the scores in fp32, times their factor, by that of the output and the probabilities in fp32."""
    to_shares = torch.bmm(gradient.float(), values.float().transpose(1, 2))
    return torch._softmax_backward_data(to_shares, shares, -1, torch.float32).mul_(scale)


def _folded(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Queries of all heads that share a key head, concatenated: ``(rows * key heads, share * queries, head)``."""
    return query.reshape(query.shape[0] * key.shape[1], -1, query.shape[-1])


def _unfolded(folded: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """The inverse of :func:`_folded`: the rows and heads of the queries; values may have a size of their own."""
    return folded.view(*query.shape[:-1], folded.shape[-1])


# Registration.


def register() -> None:
    """Register the implementation with transformers; safe to call again."""
    if torch.cuda.is_available():
        capability_of(torch.device("cuda", torch.cuda.current_device()))
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
