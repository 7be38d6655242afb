"""What all screens that lie over the panes have in common."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, ScreenResultType


class Overlay(ModalScreen[ScreenResultType]):
    """A screen that is left once: a key typed behind the one that leaves it may still reach it, and is no answer."""

    _is_left = False

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Go away with a result, unless it has gone already; a second time would answer twice and take away what is
        below it."""
        if self._is_left:
            return AwaitComplete()
        self._is_left = True
        return super().dismiss(result)
