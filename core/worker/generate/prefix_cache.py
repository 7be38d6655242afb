"""Keys and values kept between the turns of a conversation, so that a turn reads only what is new in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from core.worker.generate.decoding import KeyValues, common_prefix

#: Conversations kept: one for each column of the chat.
KEPT = 3


class PrefixCache:
    """The keys and values of the newest conversation of each source.

    They hold for the weights that computed them: whoever changes the weights of a source forgets it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[int], KeyValues, float]] = {}

    def take(self, source: str, prompt: Sequence[int], network: Any) -> tuple[KeyValues, int]:
        """Keys and values for a prompt, and the number of its tokens that they have already; at least one is left to
        read. They are no longer kept here, so that nothing is left of an answer that fails."""
        tokens, state, _ = self._kept.pop(source, ([], None, 0.0))
        if state is not None:
            shared = common_prefix([tokens, prompt[:-1]])
            if shared and state.cut(shared):
                return state, shared
        return KeyValues(network), 0

    def keep(self, source: str, tokens: Sequence[int], state: KeyValues) -> None:
        """Keep the keys and values of these tokens for the next turn; those that were used longest ago go."""
        if not state.may_be_kept:
            return
        self._kept[source] = (list(tokens[: state.length]), state, time.monotonic())
        while len(self._kept) > KEPT:
            del self._kept[min(self._kept, key=lambda name: self._kept[name][2])]

    def forget(self, source: str | None = None) -> None:
        """Forget a source, or all of them."""
        if source is None:
            self._kept.clear()
        else:
            self._kept.pop(source, None)

    def tokens_of(self, source: str) -> int:
        """Number of tokens kept of a source."""
        return len(self._kept[source][0]) if source in self._kept else 0
