"""Controller of the session: open files and cursors are saved while the app runs, and restored at the next start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from core.paths import working_directory
from core.text import one_line
from tui.controllers.configuration import Configuration
from tui.draft_keeper import DraftKeeper
from tui.main_screen import Desktop
from tui.panes import PANES
from tui.session import Session, forget_session, read_session, write_session

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from tui.reopening import Reopened

#: Seconds after the start in which an internal error is blamed on the restored session.
SUSPECT_SECONDS = 10.0


class Returning:
    """Controller of the session.

    Args:
        desktop: The panes and notices, and the state of the app.
        drafts: The drafts of unsaved edits.
        configuration: The controller of the configuration.
        remembers: Whether sessions are saved and restored; if not, an earlier session is deleted.
    """

    def __init__(self, desktop: Desktop, drafts: DraftKeeper, configuration: Configuration, *, remembers: bool) -> None:
        self._desktop, self._state, self._clock = desktop, desktop.state, desktop.clock
        self._drafts, self._configuration, self._remembers = drafts, configuration, remembers
        self.last = read_session() if remembers else None
        """The last session; None if there is none."""
        if not remembers:
            forget_session()
        self._written = self.last
        self._awaited: Reopened | None = None
        self._is_complete = False
        self._started = desktop.clock()

    @property
    def pane(self) -> str:
        """The focused pane of the last session; empty if unknown."""
        known = {spec.id for spec in PANES}
        return self.last.pane if self.last is not None and self.last.pane in known else ""

    @property
    def is_zoomed(self) -> bool:
        """True if that pane filled a terminal with room for four."""
        return self.last is not None and self.last.zoomed

    # The beginning.

    def begin(self, data: Path | None = None) -> None:
        """Reopen the last session, or else the configuration of the newest run.

        Args:
            data: The data named by the user; a new configuration begins with it if the reopened one does not use it.
        """
        from tui.reopening import begin_with, reopen

        if self._remembers or data is None:
            self._show(lambda: reopen(self.last, data))
        else:
            self._show(lambda: begin_with(data))

    def begin_with_run(self, name: str) -> None:
        """Open the configuration of the run named by the user."""
        from tui.reopening import reopen_run

        self._show(lambda: reopen_run(name))

    def begin_with_file(self, path: Path) -> None:
        """Restore the cursors of a configuration named by the user, if it was open last."""
        from tui.reopening import place_of

        if self.last is not None and self.last.config == str(working_directory() / path):
            self._awaited = place_of(self.last)

    def loaded(self, document: ConfigDocument) -> None:
        """Show the configuration named by the user, or a new one, and restore the cursors."""
        self._configuration.loaded(document)
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            self._show_place(awaited)
        self._is_complete = True

    def _show(self, find: Callable[[], Reopened]) -> None:
        async def work() -> None:
            found = await asyncio.to_thread(find)
            data, pane = found.data, self._desktop.panes.data
            if data is not None and pane is not None and await pane.read(data) is None:
                # It cannot be read, as the pane says, and takes the place of no other data.
                data = None
            self._configuration.reopened(found.opened, data)
            self._show_place(found)
            self._tell(found)
            self._is_complete = True

        self._desktop.run(work, "return")

    def _show_place(self, found: Reopened) -> None:
        panes = self._desktop.panes
        if found.option and panes.config is not None:
            panes.config.return_to(found.option)
        if found.place is not None and panes.data is not None:
            panes.data.return_to(found.place)

    def _tell(self, found: Reopened) -> None:
        if found.missing:
            self._desktop.warn("Not as you left it", found.missing)
        if (ended := found.ended) is not None:
            is_well = ended.state.state in ("finished", "stopped")
            text = one_line(ended.tell(self._clock()), 400)
            self._desktop.tell(text, severity="information" if is_well else "error", seconds=8)

    # While the app runs.

    def look(self) -> None:
        """Save the session if it has changed."""
        if self._is_complete and self._remembers and self._state.document is not None:
            session = self._present()
            if session != self._written:
                self._written = session
                write_session(session)

    def leave(self) -> None:
        """Save the session with the present time; until it has been restored, the last one stays."""
        self._written = None
        self.look()
        self._is_complete = False

    def forget_if_suspect(self) -> None:
        """Delete the session after an early internal error, which restoring it may have caused."""
        if self._remembers and self._clock() - self._started < SUSPECT_SECONDS:
            self._is_complete = False
            forget_session()

    def _present(self) -> Session:
        state, panes, main = self._state, self._desktop.panes, self._desktop.main
        view = state.view
        path = state.document.path if state.document is not None else None
        place = panes.data.place if panes.data is not None else None
        return Session(
            config=str(working_directory() / path) if path is not None else "",
            draft=self._drafts.config_id if path is None else "",
            origin=str(state.origin.run.path) if state.origin is not None else "",
            option=panes.config.option if panes.config is not None else "",
            data=place,
            pane=main.current,
            zoomed=main.zoomed,
            run=str(view.run.path) if view is not None else "",
            live=view is not None and view.is_live,
            time=self._clock(),
        )
