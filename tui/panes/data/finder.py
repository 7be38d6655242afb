"""Finding rows: by a text in any column, or by their number."""

from __future__ import annotations

from core.text import one_line
from tui.datasets.summary import spaced
from tui.datasets.tasks import Search, SearchEnded
from tui.keys import KeyTable
from tui.panes.data.session import DatasetSession, Move


class Finder:
    """The text that is looked for, and what is said of the search.

    Args:
        session: The rows.
    """

    def __init__(self, session: DatasetSession) -> None:
        self._session = session
        self.term = ""
        """The text searched for last; it is marked."""
        self._number = 0

    def begin(self, index: int, step: int) -> Search:
        """A search among the rows that are listed; it takes the place of the one before.

        Args:
            index: The row to begin after, or before.
            step: 1 downwards, -1 upwards.
        """
        self._number += 1
        among = self._session.filter.indices if self._session.filter is not None else None
        return Search(self._number, self.term, index, step, among)

    def is_current(self, ended: SearchEnded) -> bool:
        """Whether a search that has ended is the last one, in the file that is shown."""
        return ended.view is self._session.view and ended.search == self._number

    def describe(self, seen: int) -> str:
        """How far the search is."""
        return f"searching for {self.term}: {spaced(seen)} of {spaced(len(self._session.listed))} rows · esc stops"

    def found(self, ended: SearchEnded, keys: KeyTable) -> Move:
        """Where a search has ended."""
        match = ended.match
        if match is None:
            rows = "None of these rows" if self._session.filter is not None else "No row"
            none = f"{rows} has “{one_line(self.term, 60)}” in it."
            return Move(said="Search stopped." if ended.cancelled else none)
        if self._session.place_of(match.index) is None:
            # The rows that are listed are others by now.
            return Move(said="")
        return Move(
            match.index,
            f"{self.term}: row {spaced(match.index + 1)}"
            + (", from the other end" if match.wrapped else "")
            + f" · {keys['data.next'].display} next  {keys['data.previous'].display} previous",
        )

    def row_number(self, text: str) -> Move:
        """A row by its number as it is typed, from 1; in a filter, the nearest one that is listed."""
        digits = text.replace(" ", "").replace(",", "").replace("_", "")
        if not digits or self._session.view is None:
            return Move()
        last = self._session.view.count
        # More digits than any count has are no number, and slow to read.
        if not digits.isdecimal() or len(digits) > 20 or not 1 <= int(digits) <= last:
            return Move(said=f"✗ There is no row {one_line(text, 40)}; rows go from 1 to {spaced(last)}.")
        index, listed = int(digits) - 1, self._session.filter
        if listed is None or listed.place(index) is not None:
            return Move(index)
        near = listed.indices[listed.nearest(index)]
        none = f"Row {spaced(index + 1)} has no {listed.code}"
        return Move(near, f"{none}; the nearest that has is row {spaced(near + 1)}.")
