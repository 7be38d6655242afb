"""The base of the screens that cover the panes."""

from __future__ import annotations

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, ScreenResultType


class Overlay(ModalScreen[ScreenResultType]):
    """A screen that is dismissed once: a key typed after the dismissing one may still reach it, and is no answer."""

    _is_left = False

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Dismiss the screen with a result, at most once: a second call would answer twice and pop the screen below."""
        if self._is_left:
            return AwaitComplete()
        self._is_left = True
        return super().dismiss(result)
