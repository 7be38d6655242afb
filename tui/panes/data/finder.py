"""Search for rows: by a text in any column, or by their number."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

from core.errors import UserError
from core.text import one_line
from core.units import format_count
from tui.datasets.tasks import paced
from tui.datasets.view import Match
from tui.keys import KeyTable
from tui.panes.data.session import DatasetSession, Move


class Finder:
    """The text searched for, and messages about the search.

    Args:
        session: The rows.
    """

    def __init__(self, session: DatasetSession) -> None:
        self._session = session
        self.term = ""
        """The text searched for last; it is highlighted."""

    async def find(self, index: int, step: int, keys: KeyTable, say: Callable[[str], object]) -> Move:
        """Search for the text among the listed rows.

        Args:
            index: The row to begin after, or before.
            step: 1 downwards, -1 upwards.
            keys: The key table with the user's changes.
            say: Called in a thread with a message about the progress.
        """
        session, view = self._session, self._session.view
        if view is None:
            return Move()
        among = session.filter.indices if session.filter is not None else None
        total, given_up = format_count(len(session.listed)), threading.Event()

        def report(seen: int) -> None:
            say(f"searching for {self.term}: {format_count(seen)} of {total} rows · esc stops")

        try:
            search = asyncio.to_thread(view.search, self.term, index, step, given_up.is_set, paced(report), among)
            match = await search
        except UserError as error:
            view.failure = error
            match = None
        finally:
            given_up.set()
        return self._found(match, step, keys) if view is session.view else Move()

    def _found(self, match: Match | None, step: int, keys: KeyTable) -> Move:
        session = self._session
        if match is None:
            rows = "None of these rows" if session.filter is not None else "No row"
            return Move(said=f"{rows} has “{one_line(self.term, 60)}” in it.")
        if session.place_of(match.index) is None:
            # The listed rows have changed by now.
            return Move(said="")
        return Move(
            match.index,
            f"{self.term}: row {format_count(match.index + 1)}"
            + (", from the other end" if match.wrapped else "")
            + f" · {keys['data.next'].display} next  {keys['data.previous'].display} previous",
            landing=step,
        )

    def row_number(self, text: str) -> Move:
        """A row by its number as typed, from 1; with a filter, the nearest one that is listed."""
        digits = text.replace(" ", "").replace(",", "").replace("_", "")
        if not digits or self._session.view is None:
            return Move()
        last = self._session.view.count
        # More digits than any count has are no number, and slow to read.
        if not digits.isdecimal() or len(digits) > 20 or not 1 <= int(digits) <= last:
            return Move(said=f"✗ There is no row {one_line(text, 40)}; rows go from 1 to {format_count(last)}.")
        index, listed = int(digits) - 1, self._session.filter
        if listed is None or listed.place(index) is not None:
            return Move(index)
        near = listed.indices[listed.nearest(index)]
        none = f"Row {format_count(index + 1)} is not “{listed.title}”"
        return Move(near, f"{none}; the nearest that is, is row {format_count(near + 1)}.")
