"""What the parts of the data pane share: the file that is shown, its list and where things are said."""

from __future__ import annotations

from tui.panes.base import Pane
from tui.panes.dataset_view import DatasetView
from tui.widgets.row_list import RowList


class DatasetPane(Pane):
    """A pane with a file of rows."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.view: DatasetView | None = None
        """The file that is shown."""

    @property
    def rows(self) -> RowList:
        """The list."""
        return self.query_one("#data-rows", RowList)

    def set_status(self, text: str) -> None:
        """Say something in place of the summary; empty shows the summary again."""
        raise NotImplementedError

    def refresh_status(self) -> None:
        """Bring the summary up to date."""
        raise NotImplementedError

    def show_place(self, detail: str = "") -> None:
        """Write which row is shown, and what is known of it, over the row."""
        raise NotImplementedError
