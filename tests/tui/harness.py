"""A test harness: one pane in a small app, with the themes, the keys and the frame of the real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.containers import Container
from textual.pilot import Pilot
from textual.widget import Widget

import tui.app
from core.config.document import ConfigDocument
from themes.loader import DEFAULT, load_builtin, variable_defaults
from tui.controllers.jobs import Jobs
from tui.glyphs import BRAILLE
from tui.keys import Key, KeyTable
from tui.main_screen import Desktop
from tui.screens.choice import ChoiceDialog
from tui.screens.pick import find_entry
from tui.state import AppState, RunView

#: Text that takes over an unprotected terminal: an escape sequence, OSC 52, C1, NUL, DEL, bidi, an unbalanced markup
#: tag.
HOSTILE = "a\x1b[31mb\x1b]52;c;aGk=\x07c\x9b2Jd\x00e\x7ff\u202eg\u2066h[/]i[bold]j\u0085k"
#: Characters of it that must never reach a terminal.
FORBIDDEN = set("\x1b\x07\x9b\x00\x7f\u202e\u2066\x85")


class Frame(Container):
    """A stand-in for the slot of the main screen."""


@dataclass(frozen=True)
class Request:
    """A request to a controller: ``configuration.edited`` and its arguments."""

    name: str
    args: tuple[Any, ...]
    options: Mapping[str, Any]


class RecordingController:
    """A stand-in for a controller, which records the requests to it."""

    def __init__(self, name: str, take: Callable[[Request], None]) -> None:
        self._name, self._take = name, take

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: self._take(Request(f"{self._name}.{name}", args, options))


class ShellApp(App[None]):
    """A shell with an empty state; it records requests to its controllers."""

    configuration: Any
    starting: Any
    runs: Any
    bridge: Any
    run_control: Any
    serving: Any
    jobs: Any

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        for name in ("configuration", "starting", "runs", "bridge", "run_control", "serving"):
            setattr(self, name, RecordingController(name, self.take_request))
        self.keys = KeyTable()
        self.glyphs = BRAILLE
        self.pace = 1.0
        self.clock: Callable[[], float] = time.time
        self.state = AppState()
        self.jobs = Jobs(self, Desktop(self, self.state, self.keys, self.clock))

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return variable_defaults(True)

    def can_run(self, key: Key) -> bool:
        return False

    def take_request(self, request: Request) -> None:
        """Record a request."""
        self.requests.append(request)

    async def first_painted(self) -> None:
        raise AssertionError("there is no main screen here")

    def pane_shown(self, name: str, *, shown: bool) -> None:
        raise AssertionError("there is no main screen here")

    async def run_key(self, key: Key) -> None:
        raise AssertionError("nothing offers keys here")

    def action_find_entry(self) -> None:
        find_entry(self.screen)


def requested(pilot: Pilot[Any], *names: str) -> list[Request]:
    """The requests to controllers so far of these names."""
    assert isinstance(pilot.app, ShellApp)
    return [request for request in pilot.app.requests if request.name in names]


class PaneApp(ShellApp):
    """An app that shows one pane."""

    CSS_PATH: ClassVar[str] = str(Path(tui.app.__file__).parent / "app.tcss")
    CSS = "Frame { height: 1fr; } Frame > * { border: round $border; }"

    def __init__(self, pane: Widget) -> None:
        super().__init__()
        self.pane = pane
        self.copied: list[str] = []
        for theme in load_builtin():
            self.register_theme(theme)
        self.theme = DEFAULT

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return variable_defaults(self.current_theme.dark)

    def take_request(self, request: Request) -> None:
        if request.name in ("configuration.edited", "configuration.saved", "configuration.loaded"):
            assert request.args[0] is getattr(self.pane, "document", None), "the document that the pane shows"
        super().take_request(request)

    def compose(self) -> ComposeResult:
        with Frame():
            yield self.pane

    def on_mount(self) -> None:
        preferred = self.pane.query(".-first-focus").first()
        preferred.focus()

    def copy_to_clipboard(self, text: str) -> None:
        self.copied.append(text)


def pane_of(app: App[Any], name: str) -> Any:
    """A pane of the whole app, by its id; None until it has been loaded."""
    assert isinstance(app, tui.app.LocaltuneApp)
    return app.desktop.panes.find(name)


def is_ready(app: tui.app.LocaltuneApp) -> object:
    """The configuration has been opened, and all panes are loaded."""
    return app.state.document is not None


def has_form(app: tui.app.LocaltuneApp) -> object:
    """The configuration and its form are there."""
    return is_ready(app) and pane_of(app, "config").form.fields


def has_run(app: tui.app.LocaltuneApp) -> object:
    """A run is shown."""
    return app.state.view is not None


def has_live_run(app: tui.app.LocaltuneApp) -> object:
    """A live run is shown, and the configuration has been opened."""
    return app.state.live_run is not None and app.state.document is not None


@asynccontextmanager
async def running(
    app: tui.app.LocaltuneApp | None = None,
    size: tuple[int, int] = (80, 24),
    *,
    notifications: bool = False,
    until: Callable[[tui.app.LocaltuneApp], object] | str = is_ready,
) -> AsyncIterator[tuple[tui.app.LocaltuneApp, Pilot[Any]]]:
    """The whole app, once a condition holds or a text is on the screen."""
    app = app or tui.app.LocaltuneApp()
    async with app.run_test(size=size, notifications=notifications) as pilot:
        await wait_for(pilot, lambda: until in screen_text(app) if isinstance(until, str) else until(app))
        yield app, pilot


@asynccontextmanager
async def opened(
    app: tui.app.LocaltuneApp | None = None, size: tuple[int, int] = (120, 34), *, with_run: bool = False
) -> AsyncIterator[tuple[tui.app.LocaltuneApp, Pilot[Any]]]:
    """The whole app with its configuration, the form of it and all panes, and with a run that is shown."""
    async with running(app, size, until=lambda app: has_form(app) and (has_run(app) or not with_run)) as (app, pilot):
        await pilot.pause()
        yield app, pilot


def document_of(app: tui.app.LocaltuneApp) -> ConfigDocument:
    """The configuration of the app."""
    assert app.state.document is not None
    return app.state.document


def view_of(app: tui.app.LocaltuneApp) -> RunView:
    """The run that the app shows."""
    assert app.state.view is not None
    return app.state.view


def asks(app: App[Any], label: str) -> bool:
    """True if a dialog with this choice is on the screen."""
    return isinstance(app.screen, ChoiceDialog) and any(choice.label == label for choice in app.screen.choices)


def screen_lines(app: App[Any]) -> list[str]:
    """The screen's text, a line each."""
    strips = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip) for strip in strips]


def screen_text(app: App[Any]) -> str:
    """The screen's text."""
    return "\n".join(screen_lines(app))


def words(pilot: Pilot[Any]) -> str:
    """The screen as one text, across line breaks."""
    return " ".join(screen_text(pilot.app).replace("│", " ").split())


async def paste(pilot: Pilot[Any], text: str) -> None:
    """Paste a text into the focused widget, as a terminal with bracketed paste does."""
    await pilot.pause()
    focused = pilot.app.focused
    assert focused is not None
    focused.post_message(events.Paste(text))
    await pilot.pause()


async def wait_for(pilot: Pilot[Any], condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Let the app run until a condition holds.

    Raises:
        AssertionError: If it does not hold in time; the screen is in the message.
    """
    began = time.monotonic()
    is_met = bool(condition())
    while not is_met:
        waited = time.monotonic() - began
        assert waited < seconds, f"not in time; the screen:\n{screen_text(pilot.app)}"
        # A look at the screen takes a core for some milliseconds.
        await asyncio.sleep(0.01 if waited < 0.2 else 0.05)
        is_met = bool(condition())
        # A pause goes through all widgets: it is only worth it where the condition may be met.
        if is_met and pilot.app.is_running:
            await pilot.pause()
            is_met = bool(condition())


class Stage(App[None]):
    """An app that shows one widget."""

    def __init__(self, widget: Widget) -> None:
        super().__init__()
        self.widget = widget

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return variable_defaults(True)

    def compose(self) -> ComposeResult:
        yield self.widget


def lend_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let apps suspend without a terminal."""
    monkeypatch.setattr(App, "suspend", lambda _: nullcontext())


def make_editor(directory: Path, script: str) -> str:
    """An editor that is a shell script; its command line for ``EDITOR``."""
    path = directory / "editor.sh"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def shown(pilot: Pilot[Any], *texts: str) -> None:
    """Wait until texts are on the screen."""
    await wait_for(pilot, lambda: all(text in screen_text(pilot.app) for text in texts))


async def resize(pilot: Pilot[Any], columns: int, rows: int) -> None:
    """Give the terminal another size, and wait until the app is idle."""
    await pilot.resize_terminal(columns, rows)
    await pilot.pause()


async def press(
    pilot: Pilot[Any],
    *keys: str,
    until: Callable[[], object] | str | tuple[str, ...] | None = None,
    seconds: float = 60.0,
) -> None:
    """Press keys; then wait for a condition or texts on the screen, or without either until the app is idle."""
    await pilot.press(*keys)
    if until is None:
        await pilot.pause()
    elif callable(until):
        await wait_for(pilot, until, seconds)
    else:
        await shown(pilot, *((until,) if isinstance(until, str) else until))
