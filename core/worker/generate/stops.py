"""Stop texts, found in a stream that holds back a possible beginning of one; and the pieces in which prompts are read.

Nothing here needs torch: the reader of GGUF files has none.
"""

from __future__ import annotations

from collections.abc import Sequence

from core.chat.request import QuestionError
from core.text import beginning_at_end


class StopTexts:
    """A stream of text that ends before the first of some texts.

    Args:
        stops: The texts; with none everything passes at once.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found = False
        """True once a stop text was found; the text after it is dropped."""
        self._stops = tuple(stops)
        self._held = ""
        self._given: list[str] = []

    @property
    def text(self) -> str:
        """All text passed on."""
        return "".join(self._given)

    def push(self, piece: str) -> str:
        """Add text, and return the part that cannot belong to a stop text."""
        if self.found:
            return ""
        self._held += piece
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            return self._give(min(places), drop=True)
        return self._give(len(self._held) - beginning_at_end(self._held, self._stops))

    def flush(self) -> str:
        """The held-back text, at the end of the answer."""
        return self._give(len(self._held))

    def _give(self, count: int, *, drop: bool = False) -> str:
        given, self._held = self._held[:count], "" if drop else self._held[count:]
        if given:
            self._given.append(given)
        return given


#: Tokens of a prompt read at once; between two pieces the answer can be cancelled. Keys and values differ in their last
#: bits with the number of tokens beside them, so every prompt is read in the same pieces, and only whole pieces are
#: kept: an answer does not depend on what was asked before.
PIECE_TOKENS = 128


def checked_tokens(tokens: list[int], vocabulary: int) -> list[int]:
    """The tokens of a request.

    Raises:
        QuestionError: If one is not in the vocabulary.
    """
    if max(tokens) >= vocabulary:
        raise QuestionError(
            f"The prompt has the token {max(tokens)}, and the model knows those below {vocabulary}.",
            "Take the tokenizer of this model.",
        )
    return tokens


def whole_pieces(tokens: int) -> int:
    """Number of tokens of a prompt before its last piece, which is read for each answer."""
    return max(0, tokens - 1) // PIECE_TOKENS * PIECE_TOKENS


def reusable(kept: Sequence[int], prompt: Sequence[int]) -> int:
    """Number of tokens of a prompt that are not read again if ``kept``, whole pieces of another one, are cached."""
    return min(common_prefix([kept, prompt]) // PIECE_TOKENS * PIECE_TOKENS, whole_pieces(len(prompt)))


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """The length of the common prefix of all sequences."""
    if not sequences:
        return 0
    # The least and the greatest sequence share the prefix of all.
    low, high = min(map(list, sequences)), max(map(list, sequences))
    return next((place for place, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))  # noqa: B905
