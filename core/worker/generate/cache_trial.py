"""Trial of a model's cache: whether tokens that are read after others, by what is kept of these, give what all of them
read at once do.

Attention's keys and values always do. A recurrent layer's state does where the model's code takes it up again; several
families begin anew with every piece of a text, some even with every token, without an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from core.worker.model.recurrent import recurrent_kinds
from core.worker.oom.retry import is_out_of_memory

#: Largest difference of logits, as a share of their size, that rounding explains.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
#: Tokens that are tried, those of the first piece, and those of padding.
_LENGTH, _FIRST, _PADDING = 20, 12, 5
_FOUND = "_cache_use"


@dataclass(frozen=True)
class CacheUse:
    """Uses that a model's cache of keys and values was found right for.

    Args:
        recurrent: Whether a part of it is a state, which cannot be cut to fewer tokens.
        tokens: Whether a single token may be read after others.
        pieces: Whether several tokens may be.
        padding: Whether a row that is padded on the left is read as it is alone.
    """

    recurrent: bool = False
    tokens: bool = True
    pieces: bool = True
    padding: bool = True


def cache_argument(network: Any) -> str:
    """The name of the cache among the arguments of a model."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"


def cache_use(network: Any) -> CacheUse:
    """What a model's cache is good for; tried once for a model with recurrent layers.

    Args:
        network: A causal language model of transformers, in evaluation mode.
    """
    found = getattr(network, _FOUND, None)
    if not isinstance(found, CacheUse):
        found = _try(network) if recurrent_kinds(network) else CacheUse()
        setattr(network, _FOUND, found)
    return found


@torch.no_grad()
def _try(network: Any) -> CacheUse:
    device = network.get_input_embeddings().weight.device
    rows = int(network.get_input_embeddings().weight.shape[0])
    ids = (torch.arange(7, 7 + _LENGTH, device=device) * 5 % rows)[None]
    wanted = network(input_ids=ids, use_cache=False).logits[0, -1]

    def is_same(read: Callable[[], torch.Tensor]) -> bool:
        try:
            share = (read().float() - wanted.float()).norm() / wanted.float().norm()
        except Exception as error:  # whatever a model makes of a cache that is none of its own
            if is_out_of_memory(error):
                raise
            return False
        return bool(share <= TOLERANCE.get(wanted.dtype, 0.05))

    def in_pieces(*lengths: int) -> torch.Tensor:
        cache = DynamicCache(config=network.config)
        found: torch.Tensor = wanted
        for piece in torch.split(ids, list(lengths), dim=1):
            found = network(input_ids=piece, use_cache=True, **{cache_argument(network): cache}).logits[0, -1]
        return found

    def padded() -> torch.Tensor:
        filled = torch.nn.functional.pad(ids, (_PADDING, 0), value=int(ids[0, 0]))
        mask = torch.ones_like(filled)
        mask[:, :_PADDING] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # As an answer is decoded: the row, and a token behind it.
        parts = [slice(None, -1), slice(-1, None)] if tokens else [slice(None)]
        cache = {cache_argument(network): DynamicCache(config=network.config)} if tokens else {}
        found: torch.Tensor = wanted
        for part in parts:
            found = network(
                input_ids=filled[:, part],
                attention_mask=mask[:, : part.stop],
                position_ids=positions[:, part],
                use_cache=tokens,
                **cache,
            ).logits[0, -1]
        return found

    one = [1] * 3
    tokens = is_same(lambda: in_pieces(_LENGTH - len(one), *one))
    pieces = tokens and is_same(lambda: in_pieces(_FIRST, _LENGTH - _FIRST))
    return CacheUse(recurrent=True, tokens=tokens, pieces=pieces, padding=is_same(padded))
