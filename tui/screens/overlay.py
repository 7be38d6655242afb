"""The base of the screens that cover the panes."""

from __future__ import annotations

from collections.abc import Container
from typing import ClassVar

from textual.await_complete import AwaitComplete
from textual.screen import ModalScreen, ScreenResultType


class Overlay(ModalScreen[ScreenResultType]):
    """A screen that is dismissed once: a key typed after the dismissing one may still reach it, and is no answer."""

    TAKES_TEXT: ClassVar[bool] = False
    """Whether keys are text even before an input has the focus."""
    SCOPE: ClassVar[str] = ""
    """Its scope in the table of keys; empty where it has none."""

    _is_left = False

    @property
    def known_keys(self) -> Container[str]:
        """The keys that do something here."""
        return self.active_bindings

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Dismiss the screen with a result, at most once: a second call would answer twice and pop the screen below."""
        if self._is_left:
            return AwaitComplete()
        self._is_left = True
        return super().dismiss(result)
