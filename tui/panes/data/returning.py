"""Coming back to a place in a file: to its row once that is known, and to the filter once every row is."""

from __future__ import annotations

from tui.datasets.marks import RowFilter
from tui.panes.data.session import DatasetSession, Move
from tui.session import DataPlace


class Return:
    """The way back to a place; it ends where the user goes elsewhere meanwhile."""

    def __init__(self) -> None:
        self.place: DataPlace | None = None
        """The place, until it has been reached; it stays while its file cannot be opened."""
        self._is_at_row = False

    def begin(self, place: DataPlace) -> None:
        """Begin the way to a place."""
        self.place, self._is_at_row = place, False

    def drop(self) -> None:
        """End the way: another file is opened."""
        self.place = None

    def moved_to(self, index: int) -> None:
        """Note the row of the cursor: on another row than the place's the user has gone elsewhere."""
        if self.place is not None and index not in ((self.place.row,) if self._is_at_row else (0, self.place.row)):
            self.place = None

    def step(self, session: DatasetSession) -> Move:
        """The next step in the open file, where one can be taken."""
        place, view = self.place, session.view
        if place is None or view is None:
            return Move()
        is_whole = view.file.complete or view.failure is not None
        if not self._is_at_row and (place.row < view.count or is_whole):
            self._is_at_row = True
            if not place.filter:
                self.place = None
            return Move(min(place.row, max(view.count - 1, 0)))
        if self._is_at_row and (view.analysis is not None or view.analysis_error is not None):
            self.place = None
            problem = view.analysis.problem(place.filter) if view.analysis is not None else None
            if problem is not None and problem.indices:
                return Move(relists=True, filter=RowFilter.of(problem))
        return Move()
