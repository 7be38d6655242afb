"""Screens over the panes, opened in the whole app or in an app of their own."""

from __future__ import annotations

from typing import Any, TypeVar

from textual.app import App
from textual.pilot import Pilot
from textual.screen import Screen

from core.config.document import ConfigDocument
from tests.tui.harness import ShellApp, document_of, pane_of, press
from tui.app import LocaltuneApp

S = TypeVar("S", bound=Screen[Any])


class ScreenApp(ShellApp):
    """An app that shows a screen, and keeps the answers."""

    def __init__(self, screen: Screen[Any]) -> None:
        super().__init__()
        self.first = screen
        self.answers: list[Any] = []

    def on_mount(self) -> None:
        self.push_screen(self.first, self.answers.append)


def shows_rows(app: App[Any]) -> object:
    """The rows of the configuration are shown, where it has any."""
    assert isinstance(app, LocaltuneApp)
    document = app.state.document
    return document is not None and (document.get("data.train") is None or pane_of(app, "data").view is not None)


def document(pilot: Pilot[Any]) -> ConfigDocument:
    """The configuration of the app."""
    assert isinstance(pilot.app, LocaltuneApp)
    return document_of(pilot.app)


def value(pilot: Pilot[Any], name: str) -> Any:
    """The value of an option in the configuration of the app."""
    return document(pilot).get(name)


async def open_screen(pilot: Pilot[Any], kind: type[S], *keys: str) -> S:
    """Open a screen by keys."""
    await press(pilot, *keys, until=lambda: isinstance(pilot.app.screen, kind))
    assert isinstance(pilot.app.screen, kind)
    return pilot.app.screen
