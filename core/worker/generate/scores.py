"""Log-probabilities of the tokens of an answer or a prompt, sent beside the text that they make.

Nothing here needs torch: the reader of GGUF files has none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from core.chat.request import ChatRequest

#: Stands for minus infinity, which JSON has no number for.
_LEAST = -9999.0


class TokenScores:
    """The scores of tokens, held until their text is sent.

    A score is ``token`` (its bytes as Latin-1), ``logprob`` (natural logarithm; None for a token that nothing precedes)
    and ``top`` (the likeliest tokens in its place, bytes and log-probability each). They are those of the model itself:
    penalties, temperature and a grammar do not count.

    Args:
        asked: The request.
        bytes_of: The bytes of a token.
        send: Sends a message beside the pieces of the answer.
    """

    def __init__(
        self, asked: ChatRequest, bytes_of: Callable[[int], bytes], send: Callable[[dict[str, Any]], None]
    ) -> None:
        self.count = asked.logprobs or 0
        """Number of likeliest tokens that a token comes with."""
        self.has_end = asked.prompt is not None
        """True if the stop token is one of the tokens, as in a continued text."""
        self._bytes_of, self._send = bytes_of, send
        self._held: list[tuple[int, dict[str, Any]]] = []

    @classmethod
    def of(
        cls, asked: ChatRequest, bytes_of: Callable[[int], bytes], send: Callable[[dict[str, Any]], None]
    ) -> TokenScores | None:
        """The scores of a request; None if it asks for none. Arguments as for the class."""
        return None if asked.logprobs is None else cls(asked, bytes_of, send)

    def add(self, token: int, logprob: float | None, top: Sequence[tuple[int, float]], begin: int = 0) -> None:
        """Add a token.

        Args:
            token: The token.
            logprob: Its log-probability.
            top: The likeliest tokens in its place, with theirs.
            begin: Characters of the answer before it.
        """
        best = [[self._text(other), max(value, _LEAST)] for other, value in top]
        score = None if logprob is None else max(logprob, _LEAST)
        self._held.append((begin, {"token": self._text(token), "logprob": score, "top": best}))

    def release(self, characters: int | None = None) -> None:
        """Send the scores of the first ``characters`` of the answer; None for all."""
        ready = [each for begin, each in self._held if characters is None or begin < characters]
        if ready:
            self._send({"logprobs": ready})
            del self._held[: len(ready)]

    def _text(self, token: int) -> str:
        return self._bytes_of(token).decode("latin-1")
