"""Trial of a model's cache: tokens read after cached ones must give the same logits as all tokens read at once.

Attention's keys and values always do. A recurrent layer's state does only where the model's code resumes from it;
several families silently start over with every piece of a text, some even with every token.
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

#: Largest difference of logits from rounding, as a share of their norm.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}
#: Tokens of the trial, of its first piece, and of padding.
_LENGTH, _FIRST, _PADDING = 20, 12, 5
_FOUND = "_cache_use"


@dataclass(frozen=True)
class CacheUse:
    """Correct uses of a model's cache of keys and values.

    Args:
        recurrent: It contains a state, which cannot be cut to fewer tokens.
        tokens: A single token may be read after others.
        pieces: Several tokens may be read after others.
        padding: A row padded on the left gives the same as alone.
    """

    recurrent: bool = False
    tokens: bool = True
    pieces: bool = True
    padding: bool = True


def cache_argument(network: Any) -> str:
    """Name of a model's argument for the cache."""
    return "cache" if "cache" in inspect.signature(network.forward).parameters else "past_key_values"


def cache_use(network: Any) -> CacheUse:
    """The correct uses of a model's cache; tried once for a model with recurrent layers.

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
        except Exception as error:  # a model may fail in any way on a cache of another type
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
        # As in decoding: the row, and a token after it.
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
