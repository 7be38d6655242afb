"""Finding rows in the data pane: by a text, with every match in the row, or by number."""

from __future__ import annotations

from textual import on, work
from textual.worker import get_current_worker

from core.text import one_line
from tui.datasets.summary import spaced
from tui.datasets.tasks import Search, SearchEnded, SearchProgress, search_dataset
from tui.datasets.view import DatasetView
from tui.panes.data.filters import DatasetFilters
from tui.widgets.lists.conversation import Conversation
from tui.widgets.lists.mask_view import MaskView


class DatasetSearch(DatasetFilters):
    """Looks for a text in the rows that are listed; matches are marked in the list and in the row."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.term = ""
        """The text searched for last; it is marked."""
        self._search_number = 0
        self._landing: tuple[int, int] | None = None
        """The row that a search has ended on, and the direction that it came from."""

    # A row number.

    def action_ask_row(self) -> None:
        """Ask for a row number."""
        if self.view is not None:
            self.ask_bar.ask("row", "row", "", f"1 to {spaced(self.view.count)}")

    def go_to_number(self, text: str) -> None:
        """Go to a row by its number as it is typed, from 1; in a filter, to the nearest one that is listed."""
        digits = text.replace(" ", "").replace(",", "").replace("_", "")
        if not digits or self.view is None:
            return
        last = self.view.count
        # More digits than any count has are no number, and slow to read.
        if not digits.isdecimal() or len(digits) > 20 or not 1 <= int(digits) <= last:
            self.set_status(f"✗ There is no row {one_line(text, 40)}; rows go from 1 to {spaced(last)}.")
            return
        index = int(digits) - 1
        if not self.go_to(index) and self.filter is not None:
            place = self.filter.nearest(index)
            self.rows.cursor = place
            near = spaced(self.filter.indices[place] + 1)
            self.set_status(f"Row {spaced(index + 1)} has no {self.filter.code}; the nearest that has is row {near}.")

    # A text.

    @property
    def is_searching(self) -> bool:
        """Whether a search is under way."""
        return any(worker.group == "data-search" and worker.is_running for worker in self.workers)

    def action_search(self) -> None:
        """Ask for a text to find."""
        if self.view is not None:
            self.ask_bar.ask("search", "find", self.term, "a text in any column")

    def search_for(self, term: str) -> None:
        """Mark a text, and go to the first row that has it, from the present one on."""
        self.mark(term)
        if term:
            self._find(1, include_cursor=True)

    def mark(self, term: str) -> None:
        """Mark a text wherever it is shown; nothing where empty."""
        self.term = term
        self.rows.highlight(term)
        self.conversation.highlight(term)
        self.mask_view.highlight(term)

    def action_search_again(self, step: int) -> None:
        """The next place with the text, or the one before: in the row while it has the keys, else in the rows."""
        if not self.term:
            self.action_search()
            return
        reader = self._reader
        if reader.has_focus and reader.move_match(step):
            self._say_match(reader)
        elif self.view is not None:
            self._find(step)

    def stop_search(self) -> None:
        """End the search under way."""
        self.workers.cancel_group(self, "data-search")

    @property
    def _reader(self) -> Conversation | MaskView:
        return self.mask_view if self.shows_tokens else self.conversation

    def _find(self, step: int, *, include_cursor: bool = False) -> None:
        if self.view is None:
            return
        self.set_status(f"searching for {self.term} … esc stops")
        start = self.index - 1 if include_cursor else self.index
        self._search_number += 1
        among = self.filter.indices if self.filter is not None else None
        self._search(self.view, Search(self._search_number, self.term, start, step, among))

    @work(thread=True, exclusive=True, group="data-search")
    def _search(self, view: DatasetView, search: Search) -> None:
        worker = get_current_worker()
        search_dataset(view, search, lambda: worker.is_cancelled, self.post_message)

    @on(SearchProgress)
    def _search_progress(self, message: SearchProgress) -> None:
        if message.view is self.view and self.is_searching:
            total = spaced(self.rows.count)
            self.set_status(f"searching for {self.term}: {spaced(message.seen)} of {total} rows · esc stops")

    @on(SearchEnded)
    def _search_ended(self, message: SearchEnded) -> None:
        if message.view is not self.view or message.search != self._search_number:
            return
        match = message.match
        if match is None:
            term, rows = one_line(self.term, 60), "of these rows " if self.filter is not None else ""
            none = f"None {rows}has “{term}” in it." if rows else f"No row has “{term}” in it."
            self.set_status("Search stopped." if message.cancelled else none)
            return
        self._landing = match.index, message.step
        if not self.go_to(match.index):
            # The rows that are listed are others by now.
            self.set_status("")
            return
        self.set_status(
            f"{self.term}: row {spaced(match.index + 1)}"
            + (", from the other end" if match.wrapped else "")
            + f" · {self.keys['data.next'].display} next  {self.keys['data.previous'].display} previous"
        )

    def show_landing(self) -> None:
        """Scroll the row to its first match, or to its last, if a search has just ended on it."""
        landing, self._landing = self._landing, None
        if landing is None or landing[0] != self.index:
            return
        _, step = landing
        # How far the row can be scrolled is known only after its layout.
        self.call_after_refresh(self._reader.move_match, step)

    def tokens_shown(self) -> None:
        """The tokens of the row have come."""
        self.show_landing()

    def _say_match(self, reader: Conversation | MaskView) -> None:
        place, count = reader.match_place
        self.set_status(f"{self.term}: {spaced(place)} of {spaced(count)} in row {spaced(self.index + 1)}")
