"""Constrained decoding: tokens that would leave a JSON Schema are masked, by llguidance."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from core.chat.json_schema import grammar_of, reason_of
from core.chat.request import QuestionError
from core.worker.data.encode import backend_of

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Grammar:
    """Holds one answer to a JSON Schema, token by token.

    Args:
        tokenizer: The model's tokenizer, of transformers.
        stop_ids: Tokens that end an answer; they are allowed once the JSON is complete.
        schema: The schema, as JSON.

    Raises:
        QuestionError: If no answer can be held to the schema.
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int], schema: str) -> None:
        from llguidance import LLMatcher

        grammar = grammar_of(schema)
        self._matcher = LLMatcher(_tokens(tokenizer, tuple(sorted(stop_ids))), grammar, log_level=0)
        self._check()

    def allow(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits with those of tokens that do not fit at minus infinity.

        Args:
            logits: ``(vocabulary,)``.

        Raises:
            QuestionError: If the schema is too complex to be followed further.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        fits = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        allowed[: len(fits)] = torch.from_numpy(fits)
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """Go on after a token that was chosen.

        Raises:
            QuestionError: As :meth:`allow`.
        """
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_complete(self) -> bool:
        """Whether the JSON has come to its end, and nothing can follow."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = reason_of(self._matcher.get_error())
            raise QuestionError(f"The JSON Schema cannot be followed: {reason}.", "Ask with a simpler one.")


@functools.lru_cache(maxsize=2)
def _tokens(tokenizer: Any, stop_ids: tuple[int, ...]) -> LLTokenizer:
    """The tokenizer as llguidance reads it; that takes about half a second."""
    from llguidance import LLTokenizer

    return LLTokenizer(backend_of(tokenizer).to_str(), eos_token=list(stop_ids))
