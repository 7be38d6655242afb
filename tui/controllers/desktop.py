"""The screen with the panes, the header above them, and the dialogs and notices that lie over them."""

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
    """All that the controllers show, and ask.

    Args:
        app: The application, for its stack of screens, its notices and its workers.
        state: The app's state, for the header.
    """

    def __init__(self, app: App[str], state: AppState) -> None:
        self._app, self._state = app, state
        self.panes = Panes(self._find_pane)

    @property
    def main(self) -> MainScreen:
        """The screen with the panes, whatever lies over it."""
        return next(screen for screen in self._app.screen_stack if isinstance(screen, MainScreen))

    def _find_pane(self, name: str) -> Pane | None:
        # The app may be beginning or ending.
        with suppress(NoMatches, StopIteration):
            return self.main.slot(name).pane
        return None

    def show_pane(self, name: str, *, zoom: bool = False) -> None:
        """Give a pane the keys, and the whole screen where ``zoom`` asks for it."""
        self.main.show_pane(name, zoom=zoom)

    def show_header(self) -> None:
        """Bring the header up to date."""
        with suppress(NoMatches):  # The first messages may come before the header does.
            main = self.main
            main.query_one(StatusBar).show(self._state, loss=not main.slot("train").display)

    # Dialogs.

    @property
    def is_covered(self) -> bool:
        """Whether something lies over the panes."""
        return len(self._app.screen_stack) > 1

    @property
    def top(self) -> Screen[object]:
        """The screen that has the keys."""
        return self._app.screen

    def find_screen(self, kind: type[KindT]) -> KindT | None:
        """The screen of a kind that is open, whatever lies over it; None where there is none."""
        return next((screen for screen in self._app.screen_stack if isinstance(screen, kind)), None)

    def open(self, screen: Screen[ResultT], answered: Callable[[ResultT | None], None] | None = None) -> None:
        """Lay a screen over the panes; ``answered`` gets its result."""
        self._app.push_screen(screen, answered)

    def uncover(self) -> None:
        """Take away all that lies over the panes."""
        while self.is_covered:
            self._app.pop_screen()

    def fail(self, title: str, error: UserError) -> None:
        """A dialog for something that the user asked for and that did not work."""
        from tui.screens.dialogs import error_dialog

        self.open(error_dialog(title, error))

    # Notices.

    def tell(self, text: str, title: str = "", *, severity: SeverityLevel = "information", seconds: float = 4) -> None:
        """A notice for some seconds; the text is shown as it is."""
        self._app.notify(text, title=title, severity=severity, timeout=seconds, markup=False)

    def warn(self, title: str, text: str) -> None:
        """A notice that needs no answer."""
        self.tell(one_line(text, 400), one_line(title, 60), severity="warning", seconds=6)

    # What is yet to come.

    def call_later(self, callback: Callable[..., object], *args: object) -> None:
        """Call something when the messages that are there already have been handled."""
        self._app.call_later(callback, *args)

    def run(self, work: Callable[[], Awaitable[None]], group: str) -> None:
        """Do something that waits, beside the handling of messages."""
        self._app.run_worker(work, group=group)

    def leave(self, line: str | None) -> None:
        """End the app.

        Args:
            line: What is printed after it.
        """
        self._app.exit(line)
