"""The shell: the interface of the app for panes, screens and widgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from textual.dom import DOMNode

from tui.glyphs import GlyphSet
from tui.keys import Key, KeyTable
from tui.state import AppState


@runtime_checkable
class Shell(Protocol):
    """The app as a protocol: keys, glyphs, clock and state, read-only; changes are posted as :mod:`tui.messages`."""

    @property
    def keys(self) -> KeyTable:
        """The key table with the user's changes."""

    @property
    def glyphs(self) -> GlyphSet:
        """The glyphs to draw with."""

    @property
    def pace(self) -> float:
        """Factor of the seconds between two updates of the screen: 1, or 2 where the user wants half as many."""

    @property
    def clock(self) -> Callable[[], float]:
        """The clock: the present, in Unix seconds."""

    @property
    def state(self) -> AppState:
        """The state: the configuration, the run and the devices."""

    def can_run(self, key: Key) -> bool:
        """Whether a key's action makes sense now."""

    async def run_key(self, key: Key) -> None:
        """Run a key's action, in the pane that it belongs to."""


def shell_of(node: DOMNode) -> Shell:
    """The shell of a widget or a screen.

    Raises:
        TypeError: If the app is not a shell.
    """
    app = node.app
    if not isinstance(app, Shell):
        raise TypeError(f"{type(app).__name__} is no shell")
    return app
