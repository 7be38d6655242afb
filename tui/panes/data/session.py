"""What the parts of the data pane share: the file that is shown, its list, the row under the cursor."""

from __future__ import annotations

from core.config.document import ConfigDocument
from tui.datasets.marks import RowFilter
from tui.datasets.plan import plan_data
from tui.datasets.view import DatasetView
from tui.panes.base import Pane
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.lists.conversation import Conversation
from tui.widgets.lists.mask_view import MaskView
from tui.widgets.lists.row_list import RowList


class DatasetPane(Pane):
    """A pane with a file of rows, numbered from 0; the list has all of them, or those that a filter leaves."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.view: DatasetView | None = None
        """The file that is shown."""
        self.plan = plan_data(ConfigDocument())
        """How the configuration has its rows read, and made into tokens."""
        self.filter: RowFilter | None = None
        """Which of its rows are listed; None for all."""
        self.indexed = 1.0
        """Share of the file that has been indexed."""

    @property
    def rows(self) -> RowList:
        """The list."""
        return self.query_one("#data-rows", RowList)

    @property
    def conversation(self) -> Conversation:
        """The row under the cursor as who says what."""
        return self.query_one("#data-conversation", Conversation)

    @property
    def mask_view(self) -> MaskView:
        """The row under the cursor as tokens."""
        return self.query_one("#data-mask", MaskView)

    @property
    def ask_bar(self) -> AskBar:
        """Where paths, texts and row numbers are typed."""
        return self.query_one("#data-ask", AskBar)

    @property
    def index(self) -> int:
        """The number of the row under the cursor."""
        return self.index_at(self.rows.cursor)

    def index_at(self, place: int) -> int:
        """The number of the row at a place of the list."""
        if self.filter is None:
            return place
        return self.filter.indices[place] if place < len(self.filter.indices) else 0

    def go_to(self, index: int) -> bool:
        """Put the cursor on a row, where it is seen; false if a filter leaves it out."""
        place = index if self.filter is None else self.filter.place(index)
        if place is None:
            return False
        self.show_rows()
        self.rows.cursor = place
        return True

    def set_status(self, text: str) -> None:
        """Say something in place of the summary; empty shows the summary again."""
        raise NotImplementedError

    def refresh_status(self) -> None:
        """Bring the summary up to date."""
        raise NotImplementedError

    def refresh_title(self) -> None:
        """Bring title, key hints and summary up to date."""
        raise NotImplementedError

    def show_only(self, shown: str) -> None:
        """Show one of the body, the report, the tree and the empty state."""
        raise NotImplementedError

    def show_rows(self) -> None:
        """Show the rows, if the report is shown in their place."""
        raise NotImplementedError

    def show_row(self) -> None:
        """Show the row under the cursor."""
        raise NotImplementedError

    def show_place(self, detail: str = "") -> None:
        """Write which row is shown, and what is known of it, over the row."""
        raise NotImplementedError
