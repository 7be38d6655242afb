"""Attention kernels: which of torch's serve a device and a shape, and their calls for sequences of variable length.

On a GPU a dense mask is expensive: with it, torch avoids flash attention, visits every pair of tokens, and repeats keys
for every query head. Variable-length attention needs no mask for packed rows, shared prefixes and sliding windows; the
lower-right causal bias replaces it for shared prefixes.
"""

from __future__ import annotations

import enum
import functools
import inspect
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch.nn.attention.bias import causal_lower_right

#: Largest head that flash attention supports, and the multiple that variable-length attention needs.
FLASH_HEAD, VARLEN_MULTIPLE = 256, 8
#: On sm86, sm89 and sm12x flash attention cannot train heads above the first number and up to the second.
FLASH_GAP = (192, 224)
HALF = (torch.bfloat16, torch.float16)

#: Torch's ``varlen_attn``, or a function with the same arguments.
VarlenFunction = Callable[..., torch.Tensor]


class Kernel(enum.Enum):
    """An attention kernel."""

    VARLEN = "variable-length flash attention"
    """A single call for all rows of a layer, whatever their prefixes and windows."""
    FLASH = "flash attention"
    """A call for each group of rows; prefixes by the lower-right causal bias."""
    EFFICIENT = "memory-efficient attention"
    """The same, keys repeated for every query head: the kernel does not support grouped heads."""
    MASKED = "attention with a dense mask"
    """The same, with a mask wherever queries and keys differ in number, or there is a window. The choice for CPUs."""


def flash_serves(capability: tuple[int, int], dtype: torch.dtype, head: int, value_head: int) -> bool:
    """True if flash attention can be trained on a card.

    Args:
        capability: Compute capability of the card.
        dtype: Of queries, keys and values.
        head: Features of a head of the queries and keys.
        value_head: The same of the values.
    """
    if capability < (8, 0) or dtype not in HALF or head != value_head or head > FLASH_HEAD:
        return False
    narrow = capability in ((8, 6), (8, 9)) or capability[0] >= 12
    return not (narrow and FLASH_GAP[0] < head <= FLASH_GAP[1])


def kernels_for(
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    head: int,
    value_head: int,
    *,
    window: bool = False,
    varlen: bool = True,
    rocm: bool = False,
) -> tuple[Kernel, ...]:
    """Kernels worth trying, the fastest first; the last one always works.

    Args:
        capability: Compute capability of the card; None for a CPU, and for AMD's cards.
        dtype: Of queries, keys and values.
        head: Features of a head of the queries and keys.
        value_head: The same of the values.
        window: Whether rows are longer than a sliding window.
        varlen: True if torch has variable-length attention with the needed arguments.
        rocm: True for an AMD card, where only the trial tells what its build of torch has.
    """
    if capability is None and not rocm:
        return (Kernel.MASKED,)
    # AOTriton's flash attention, which ROCm has, serves the shapes of a data-center card.
    flash = flash_serves(capability or (8, 0), dtype, head, value_head)
    first = (Kernel.VARLEN,) if flash and varlen and head % VARLEN_MULTIPLE == 0 else ()
    if window:
        return (*first, Kernel.MASKED)
    return (*first, *((Kernel.FLASH,) if flash else ()), Kernel.EFFICIENT, Kernel.MASKED)


# Variable-length attention.


@functools.cache
def find_varlen() -> VarlenFunction | None:
    """Torch's variable-length attention; None where this version has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    # It returns more than its output on request only.
    return cast(VarlenFunction, varlen_attn)


@functools.cache
def _parameters(function: VarlenFunction) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def varlen_arguments(
    known: Collection[str], *, grouped: bool, window: int | None, scale: float | None, head: int
) -> dict[str, object] | None:
    """Keyword arguments of torch's variable-length attention, which differ between versions.

    Args:
        known: Names of its parameters.
        grouped: Whether keys have fewer heads than queries.
        window: Tokens that a query sees, itself included; None for all before it.
        scale: Factor of the scores; None for one over the root of the head's size.
        head: Features of a head.

    Returns:
        None where this version lacks one.
    """
    arguments: dict[str, object] = {}
    if "window_size" in known:
        arguments["window_size"] = (-1 if window is None else window - 1, 0)
    elif "is_causal" in known and window is None:
        arguments["is_causal"] = True
    else:
        return None
    if "scale" in known:
        arguments["scale"] = scale
    elif scale is not None and scale != head**-0.5:
        return None
    if "enable_gqa" in known:
        arguments["enable_gqa"] = grouped
    return arguments


def varlen_call(
    *, grouped: bool, window: int | None, scale: float | None, head: int
) -> tuple[VarlenFunction, dict[str, object]] | None:
    """Torch's variable-length attention and its keyword arguments; None where this version lacks one of them.

    Args:
        grouped: As in :func:`varlen_arguments`.
        window: The same.
        scale: The same.
        head: The same.
    """
    function = find_varlen()
    if function is None:
        return None
    arguments = varlen_arguments(_parameters(function), grouped=grouped, window=window, scale=scale, head=head)
    return None if arguments is None else (function, arguments)


@dataclass(frozen=True)
class Sequences:
    """Lengths of concatenated sequences; the last query of each belongs to its last key."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    _sums: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def sums(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Cumulative lengths, int32 ``(sequences + 1,)`` for queries and for keys; transferred once for all layers of
        a batch."""
        if device not in self._sums:
            both = [[0, *itertools.accumulate(lengths)] for lengths in (self.queries, self.keys)]
            with torch.inference_mode(False):
                host = torch.tensor(both, dtype=torch.int32)
                # A copy from pageable memory would wait for all pending work of the device.
                queries, keys = host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
            self._sums[device] = (queries, keys)
        return self._sums[device]


def attend_sequences(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sequences: Sequences,
    *,
    window: int | None,
    scale: float | None,
) -> torch.Tensor:
    """Causal attention of sequences by :func:`find_varlen`.

    Args:
        query: ``(queries, heads, head)``.
        key: ``(keys, key heads, head)``.
        value: ``(keys, key heads, head)``.
        sequences: Their lengths.
        window: As in :func:`varlen_arguments`.
        scale: The same.

    Returns:
        ``(queries, heads, head)``.

    Raises:
        NotImplementedError: If this version of torch lacks a needed argument.
    """
    grouped, head = query.shape[1] != key.shape[1], query.shape[2]
    call = varlen_call(grouped=grouped, window=window, scale=scale, head=head)
    if call is None:
        raise NotImplementedError("this torch has no variable-length attention of this kind")
    function, arguments = call
    begins, key_begins = sequences.sums(query.device)
    return function(query, key, value, begins, key_begins, max(sequences.queries), max(sequences.keys), **arguments)


# A single group of rows.


def repeated(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values, ``(rows, key heads, keys, head)``, once for every query head."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def attend_lower_right(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float | None
) -> torch.Tensor:
    """Causal attention whose last query sees all keys, without a mask: ``(rows, heads, queries, head)``.

    Args:
        query: ``(rows, heads, queries, head)``.
        key: ``(rows, key heads, keys, head)``, at least as many as queries.
        value: The same.
        scale: Factor of the scores.
    """
    grouped = query.shape[1] != key.shape[1]
    queries, keys = query.shape[2], key.shape[2]
    if queries == keys:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    bias = causal_lower_right(queries, keys)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=grouped)
