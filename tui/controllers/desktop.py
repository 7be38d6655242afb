"""The desktop: the screen with the panes, the header above them, and the dialogs and notices over them."""

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
from tui.main_screen import MainScreen
from tui.panes import Panes
from tui.panes.base import Pane
from tui.state import AppState
from tui.widgets.status_bar import StatusBar

ResultT = TypeVar("ResultT")
KindT = TypeVar("KindT")


class Desktop:
    """The screens, dialogs and notices that the controllers show.

    Args:
        app: The application, for its stack of screens, its notices and its workers.
        state: The app's state, for the header.
        clock: The present, in Unix seconds.
        write: Writes to the terminal as it is.
    """

    def __init__(
        self,
        app: App[str],
        state: AppState,
        clock: Callable[[], float],
        write: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._app, self._state, self._clock, self._write = app, state, clock, write
        self.panes = Panes(self._find_pane)

    @property
    def main(self) -> MainScreen:
        """The screen with the panes, even while a dialog covers it."""
        return next(screen for screen in self._app.screen_stack if isinstance(screen, MainScreen))

    def _find_pane(self, name: str) -> Pane | None:
        # The app may be starting or ending.
        with suppress(NoMatches, StopIteration):
            return self.main.slot(name).pane
        return None

    def show_pane(self, name: str, *, zoom: bool = False) -> None:
        """Focus a pane, and let it fill the screen if ``zoom`` is set."""
        self.main.show_pane(name, zoom=zoom)

    def show_header(self) -> None:
        """Bring the header up to date."""
        # The first messages may come before the header does, and the app's timers run while it ends.
        with suppress(NoMatches, StopIteration):
            main = self.main
            main.follow_run(live=self._state.live_run is not None)
            main.query_one(StatusBar).show(self._state, self._clock(), loss=not main.slot("train").display)

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
        """The open screen of a class, wherever it is in the stack; None where there is none."""
        return next((screen for screen in self._app.screen_stack if isinstance(screen, kind)), None)

    def open(self, screen: Screen[ResultT], answered: Callable[[ResultT | None], None] | None = None) -> None:
        """Push a screen over the panes; ``answered`` gets its result."""
        self._app.push_screen(screen, answered)

    def uncover(self) -> None:
        """Pop all screens over the panes."""
        while self.is_covered:
            self._app.pop_screen()

    def drop_question(self, run: str) -> None:
        """Close the question about a live run that has ended, if that is on the screen."""
        from tui.screens.choice import ChoiceDialog

        if isinstance(self.top, ChoiceDialog) and self.top.live_run == run:
            self.top.dismiss("")

    def fail(self, title: str, error: UserError) -> None:
        """Show a dialog for a request of the user that failed."""
        from tui.screens.dialogs import error_dialog

        self.open(error_dialog(title, error))

    # Notices.

    def tell(self, text: str, title: str = "", *, severity: SeverityLevel = "information", seconds: float = 4) -> None:
        """Show a notice for some seconds; its text is no markup."""
        self._app.notify(text, title=title, severity=severity, timeout=seconds, markup=False)

    def warn(self, title: str, text: str) -> None:
        """Show a warning as a notice."""
        self.tell(one_line(text, 400), one_line(title, 60), severity="warning", seconds=6)

    def call_for_attention(self, title: str, text: str) -> None:
        """Ring the bell and have the terminal show a notification, as ``notify.toml`` says; by default neither."""
        from core.notify import load_notify_settings

        try:
            settings = load_notify_settings()
        except UserError as error:
            self.warn("notify.toml is not read", str(error))
            return
        if settings.bell:
            self._app.bell()
        if settings.desktop:
            # OSC 9: a notification of the desktop; terminals without it ignore the sequence.
            self._write(f"\x1b]9;{one_line(f'{title}: {text}' if text else title, 200)}\x07")

    def clear_notices(self) -> None:
        """Take all notices away."""
        self._app.clear_notifications()

    # Scheduling.

    def call_later(self, callback: Callable[..., object], *args: object) -> None:
        """Call a function after the messages that are already queued have been handled."""
        self._app.call_later(callback, *args)

    def run(self, work: Callable[[], Awaitable[None]], group: str) -> None:
        """Run a coroutine as a worker, concurrently with the handling of messages."""
        self._app.run_worker(work, group=group)

    def leave(self, line: str | None) -> None:
        """Exit the app.

        Args:
            line: The line printed after it.
        """
        self._app.exit(line)
