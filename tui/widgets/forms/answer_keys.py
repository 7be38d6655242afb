"""The keys that answer a question: a letter of a word typed at it is no answer, even where it is the right one."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from tui.keys import display_key

#: Seconds after a wrong key within which no key is an answer: somebody is typing.
QUIET_SECONDS = 0.5
#: Keys that mean the whole app, whatever it asks.
LEAVING_KEYS = frozenset({"ctrl+c", "ctrl+q"})


class AnswerKeys:
    """The keys of a question that have been pressed, with their times."""

    def __init__(self) -> None:
        self._missed = float("-inf")

    def is_answer(self, is_offered: bool, time: float) -> bool:
        """Whether a key is an answer.

        Args:
            is_offered: Whether it is one of the keys of the question.
            time: The time at which it was pressed, in seconds.
        """
        if is_offered and time - self._missed >= QUIET_SECONDS:
            return True
        self._missed = time
        return False


def waiting_text(keys: Sequence[str]) -> Content:
    """The keys that a question waits for, for a reader who has pressed another one: ``press y or esc``."""
    shown = [display_key(key) for key in dict.fromkeys([*keys, "escape"])]
    listed = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
    return Content.styled(f"press {listed}", "$near")
