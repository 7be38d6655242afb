"""The shell: the app as panes, screens and widgets see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from textual.dom import DOMNode

from tui.glyphs import GlyphSet
from tui.keys import Key, KeyTable
from tui.state import AppState


@runtime_checkable
class Shell(Protocol):
    """Keys, glyphs, clock and state, to be read; to change something, a widget posts one of :mod:`tui.messages`."""

    @property
    def keys(self) -> KeyTable:
        """The keys as the user has them."""

    @property
    def glyphs(self) -> GlyphSet:
        """The characters to draw with."""

    @property
    def clock(self) -> Callable[[], float]:
        """The present, in Unix seconds."""

    @property
    def state(self) -> AppState:
        """The configuration, the run and the devices."""

    def can_run(self, key: Key) -> bool:
        """Whether the action of a key makes sense now."""

    async def run_key(self, key: Key) -> None:
        """Do what a key does, in the pane that it belongs to."""


def shell_of(node: DOMNode) -> Shell:
    """The shell around a widget or a screen.

    Raises:
        TypeError: If the app is none.
    """
    app = node.app
    if not isinstance(app, Shell):
        raise TypeError(f"{type(app).__name__} is no shell")
    return app
