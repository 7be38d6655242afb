"""Log-probabilities of tokens in OpenAI's two forms: of chats, and of completions."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from typing import Any, Literal


class Logprobs:
    """Log-probabilities of one answer, in the order of its text.

    Args:
        kind: Kind of the request.
    """

    def __init__(self, kind: Literal["chat", "text"]) -> None:
        self._is_chat = kind == "chat"
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The next tokens, as the value of ``logprobs``.

        Args:
            scores: As in :class:`core.worker.generate.scores.TokenScores`.
        """
        if self._is_chat:
            return {"content": [_token(score) for score in scores], "refusal": None}
        offsets = []
        for score in scores:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(_bytes(score["token"])))
        return {
            "tokens": [_text(score["token"]) for score in scores],
            "token_logprobs": [score["logprob"] for score in scores],
            "top_logprobs": [None if score["logprob"] is None else _likeliest(score) for score in scores],
            "text_offset": offsets,
        }


def _token(score: Mapping[str, Any]) -> dict[str, Any]:
    return {**_named(score["token"], score["logprob"]), "top_logprobs": [_named(*other) for other in score["top"]]}


def _named(token: str, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": logprob, "bytes": list(_bytes(token))}


def _likeliest(score: Mapping[str, Any]) -> dict[str, float]:
    """The likeliest tokens and the token itself."""
    found: dict[str, float] = {}
    for token, logprob in (*score["top"], (score["token"], score["logprob"])):
        found.setdefault(_text(token), logprob)
    return found


def _bytes(token: str) -> bytes:
    return token.encode("latin-1")


def _text(token: str) -> str:
    """The text of a token; part of a character as OpenAI writes it: ``bytes:\\xe2\\x82``."""
    raw = _bytes(token)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
