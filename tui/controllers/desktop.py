"""Desktop: the interface of the controllers to panes, header, dialogs and notices, and the state that they share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from textual.app import App
from textual.css.query import NoMatches
from textual.notifications import SeverityLevel
from textual.screen import Screen

from core.errors import UserError
from core.text import one_line
from tui.keys import KeyTable
from tui.main_screen import MainScreen
from tui.panes import Panes
from tui.panes.base import Pane
from tui.state import AppState
from tui.widgets.status_bar import StatusBar

ResultT = TypeVar("ResultT")
KindT = TypeVar("KindT")


class Desktop:
    """Panes, dialogs and notices for the controllers, with the app's state, keys and clock.

    Args:
        app: The app, for its screen stack, notices and workers.
        state: The app's state.
        keys: The key table with the user's changes.
        clock: The clock, in Unix seconds.
        write: Writes text to the terminal as is.
    """

    def __init__(
        self,
        app: App[str],
        state: AppState,
        keys: KeyTable,
        clock: Callable[[], float],
        write: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.state, self.keys, self.clock = state, keys, clock
        self._app, self._write = app, write
        self.panes = Panes(self._find_pane)

    @property
    def main(self) -> MainScreen:
        """The main screen, even while a dialog covers it."""
        return next(screen for screen in self._app.screen_stack if isinstance(screen, MainScreen))

    def _find_pane(self, name: str) -> Pane | None:
        # The app may be starting or exiting.
        with suppress(NoMatches, StopIteration):
            return self.main.slot(name).pane
        return None

    def show_pane(self, name: str, *, zoom: bool = False) -> None:
        """Focus a pane; it fills the screen if ``zoom`` is set."""
        self.main.show_pane(name, zoom=zoom)

    def show_header(self) -> None:
        """Update the header."""
        # Messages may arrive before the header is mounted, and timers fire while the app exits.
        with suppress(NoMatches, StopIteration):
            main = self.main
            main.follow_run(live=self.state.live_run is not None)
            main.query_one(StatusBar).show(self.state, self.clock(), loss=not main.slot("train").display)

    # Dialogs.

    @property
    def is_covered(self) -> bool:
        """True while a dialog or screen covers the panes."""
        return len(self._app.screen_stack) > 1

    @property
    def is_watched(self) -> bool:
        """True while the terminal has the focus, or does not report it."""
        return self._app.app_focus

    @property
    def top(self) -> Screen[object]:
        """The active screen."""
        return self._app.screen

    def find_screen(self, kind: type[KindT]) -> KindT | None:
        """The open screen of a class, anywhere in the stack; None if there is none."""
        return next((screen for screen in self._app.screen_stack if isinstance(screen, kind)), None)

    def open(self, screen: Screen[ResultT], answered: Callable[[ResultT | None], None] | None = None) -> None:
        """Push a screen; ``answered`` gets its result."""
        self._app.push_screen(screen, answered)

    def uncover(self) -> None:
        """Pop all screens over the panes."""
        while self.is_covered:
            self._app.pop_screen()

    def drop_question(self, run: str) -> None:
        """Close an open dialog about a live run that has ended."""
        from tui.screens.choice import ChoiceDialog

        if isinstance(self.top, ChoiceDialog) and self.top.live_run == run:
            self.top.dismiss("")

    def fail(self, title: str, error: UserError) -> None:
        """Show an error dialog for a failed request of the user."""
        from tui.screens.dialogs import error_dialog

        self.open(error_dialog(title, error))

    # Notices.

    def tell(self, text: str, title: str = "", *, severity: SeverityLevel = "information", seconds: float = 4) -> None:
        """Show a notice for some seconds; its text is not parsed as markup."""
        self._app.notify(text, title=title, severity=severity, timeout=seconds, markup=False)

    def warn(self, title: str, text: str) -> None:
        """Show a warning as a notice."""
        self.tell(one_line(text, 400), one_line(title, 60), severity="warning", seconds=6)

    def call_for_attention(self, title: str, text: str) -> None:
        """Ring the bell and send a desktop notification, each only if enabled in ``notify.toml``."""
        from core.notify import load_notify_settings

        try:
            settings = load_notify_settings()
        except UserError as error:
            self.warn("notify.toml is not read", str(error))
            return
        if settings.bell:
            self._app.bell()
        if settings.desktop:
            # OSC 9; terminals without desktop notifications ignore it.
            self._write(f"\x1b]9;{one_line(f'{title}: {text}' if text else title, 200)}\x07")

    def clear_notices(self) -> None:
        """Remove all notices."""
        self._app.clear_notifications()

    # Scheduling.

    def call_later(self, callback: Callable[..., object], *args: object) -> None:
        """Call a function after the queued messages have been handled."""
        self._app.call_later(callback, *args)

    def run(self, work: Callable[[], Awaitable[None]], group: str) -> None:
        """Run a coroutine as a worker."""
        self._app.run_worker(work, group=group)

    def leave(self, line: str | None) -> None:
        """Exit the app.

        Args:
            line: The line printed afterwards.
        """
        self._app.exit(line)
