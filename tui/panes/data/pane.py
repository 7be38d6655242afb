"""The data pane: any dataset file, its rows as a list and one of them as a conversation or as tokens."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from core.errors import UserError
from core.text import one_line
from tui.data_paths import entry_text
from tui.datasets.summary import counted, describe_filter, spaced, summarize
from tui.keys import bindings
from tui.messages import DatasetChosen, FormRequested
from tui.panes.data.opener import DatasetOpening
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.lists.conversation import Conversation
from tui.widgets.lists.mask_view import MaskView
from tui.widgets.lists.problem_list import ProblemList
from tui.widgets.lists.row_list import RowList
from tui.widgets.start_here import StartHere
from tui.widgets.text_block import TextBlock

#: Columns from which the row is shown beside the list instead of below it.
BESIDE_WIDTH = 120


class DataPane(DatasetOpening):
    """Pick a file, page through its rows, find one, and use the file for training or evaluation.

    Its subjects are in the classes it is made of: opening (:mod:`~tui.panes.data.opener`), finding
    (:mod:`~tui.panes.data.finder`), filters (:mod:`~tui.panes.data.filters`), the whole file
    (:mod:`~tui.panes.data.report`) and tokens (:mod:`~tui.panes.data.tokens`); here is what is where on the
    screen, and which key does what.
    """

    DEFAULT_CSS = """
    DataPane {
        & > #data-status { height: auto; max-height: 2; color: $muted; }
        & > #data-body { height: 1fr; layout: vertical; }
        & #data-rows { height: 3fr; min-height: 4; }
        & #data-row { height: 2fr; min-height: 3; border-top: solid $border; border-title-color: $muted; }
        & > #data-report { height: 1fr; overflow-y: auto; }
        & #data-problems { margin: 1 0; }
        & #data-histogram { color: $primary; }
        & #data-row:focus-within { border-top: solid $border-focus; border-title-color: $foreground; }
        &.-tokens #data-rows { height: 2fr; }
        &.-tokens #data-row { height: 3fr; }
        &.-beside > #data-body { layout: horizontal; }
        &.-beside #data-rows { width: 3fr; height: 100%; }
        &.-beside #data-row { width: 2fr; height: 100%; border-left: solid $border; padding-left: 1; }
        &.-beside #data-row:focus-within { border-left: solid $border-focus; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("data")]
    HELP = (
        "Rows as a run would read them. ✗ is not used, ! is used and should be looked at; tok and sup count the tokens "
        "of a row and those that are learned, of a pair those of its longer answer. As tokens, what is learned is bold "
        "and underlined, special tokens are reversed, and ✂ marks where the greatest length ends the row."
    )

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._status = ""
        self._status_row = 0

    def compose(self) -> ComposeResult:
        """Status, list and row; the tree and the empty state take their place when needed."""
        yield Static(id="data-status", markup=False)
        yield StartHere(id="data-empty")
        with Container(id="data-body"):
            yield RowList(id="data-rows")
            with Vertical(id="data-row"):
                yield Conversation(id="data-conversation")
                yield MaskView(id="data-mask")
        with Vertical(id="data-report"):
            yield TextBlock(id="data-numbers")
            yield ProblemList(id="data-problems")
            yield TextBlock(id="data-histogram")
        yield Container(id="data-browser")
        yield AskBar(id="data-ask")

    def on_mount(self) -> None:
        """Say what to do first."""
        self.arrange_row()
        self.show_empty()

    def on_unmount(self) -> None:
        """Give the file back; that ends the scans too."""
        self.end_analysis()
        if self.view is not None:
            self.view.close()

    def on_resize(self, event: events.Resize) -> None:
        """Put the row beside the list where there is room for it."""
        self.set_class(event.size.width >= BESIDE_WIDTH, "-beside")
        self.refresh_status()

    # What is shown.

    def show_only(self, shown: str) -> None:
        """Show one of the body, the report, the tree and the empty state."""
        for name in ("data-empty", "data-body", "data-report", "data-browser"):
            self.query_one(f"#{name}").display = name == shown
        self._show_line()

    def _show_line(self) -> None:
        """The line above the rows; the report says by itself what it would."""
        has_rows = self.view is not None and not self.shows_report
        self.query_one("#data-status").display = has_rows or bool(self._status)

    def show_empty(self, error: UserError | None = None) -> None:
        """Say what to do first, and what went wrong before."""
        empty = self.query_one("#data-empty", StartHere)
        keys = [(self.keys[name].display, self.keys[name].help) for name in ("data.open", "data.browse", "data.sample")]
        empty.explain("No data yet." if error is None else "No data is open.", keys, error)
        self.show_only("data-empty")
        self.prefer_focus(empty)
        self.set_title("1 Data")
        self.set_hints(["data.open", "data.browse", "data.sample"])

    def refresh_title(self) -> None:
        """Bring title, key hints and summary up to date."""
        view = self.view
        if view is None:
            return
        known = counted(view.count, "row") if self.indexed >= 1 else f"{spaced(view.count)}+ rows"
        if self.filter is None:
            self.set_title("1 Data", view.path.name, view.format_name, known)
        else:
            self.set_title("1 Data", view.path.name, self.filter.code, f"{spaced(self.filter.total)} of {known}")
        self.set_hints(["data.tokens", "data.report", "data.filter", "data.search", "data.train"])
        self.refresh_status()

    def refresh_status(self) -> None:
        """Bring the summary up to date."""
        view = self.view
        if view is None or self._status:
            return
        line = self.query_one("#data-status", Static)
        width = self.scrollable_content_region.width or None
        if (problem := view.failure or view.unknown or view.analysis_error) is not None:
            reload = "" if problem is view.unknown else f" {self.keys['data.reload'].display} opens it again."
            line.update(Content.styled(one_line(f"✗ {problem}{reload}"), "$limit"))
        elif self.filter is not None:
            line.update(describe_filter(self.filter, self.keys, width))
        else:
            line.update(summarize(view, self.indexed, self.keys, self.analysis_progress, width))

    def set_status(self, text: str) -> None:
        """Say something in place of the summary; empty shows the summary again."""
        self._status, self._status_row = one_line(text), self.rows.cursor
        line = self.query_one("#data-status", Static)
        self._show_line()
        if text:
            line.update(Content.styled(self._status, "$limit" if text.startswith("✗") else "$foreground"))
        else:
            line.update("")
            self.refresh_status()

    @on(RowList.Moved)
    def _moved(self, message: RowList.Moved) -> None:
        message.stop()
        # Where the cursor is, not where it was: several moves may have been told of at once.
        if self._status and self.rows.cursor != self._status_row and not self.is_searching:
            self.set_status("")
        self.show_row()

    def show_row(self) -> None:
        """Show the row under the cursor."""
        view, index = self.view, self.index
        if view is None or index >= view.count:
            return
        self.conversation.show(view.turns(index))
        self.show_place()
        self.show_tokens()
        if not self.shows_tokens:
            self.show_landing()
        if view.failure is not None:
            self.refresh_status()

    def show_place(self, detail: str = "") -> None:
        """Write which row is shown, and what is known of it, over the row."""
        view, index = self.view, self.index
        if view is None or index >= view.count:
            return
        line = view.line_of(index)
        place = f"row {spaced(index + 1)}" + (f" · line {spaced(line)}" if line and line != index + 1 else "")
        words = [place, *(["as tokens"] if self.shows_tokens else []), *([detail] if detail else [])]
        self.query_one("#data-row").border_title = Content(f" {' · '.join(words)} ")

    # Moving.

    def action_move(self, rows: int) -> None:
        """Move the cursor, or scroll the row where it has the keys."""
        self._mover.move(rows)

    def action_move_page(self, direction: int) -> None:
        """A page up or down."""
        self._mover.move_page(direction)

    def action_move_end(self, direction: int) -> None:
        """To the first or the last row."""
        self._mover.move(direction * 10**12)

    @property
    def _mover(self) -> RowList | Conversation | MaskView | ProblemList:
        parts = (self.conversation, self.mask_view, self.query_one(ProblemList))
        return next((part for part in parts if part.has_focus), self.rows)

    def action_read_row(self) -> None:
        """Give the keys to the row under the cursor."""
        if self.view is not None:
            (self.mask_view if self.shows_tokens else self.conversation).focus()

    @on(RowList.Opened)
    def _row_opened(self, message: RowList.Opened) -> None:
        message.stop()
        self.action_read_row()

    def action_back(self) -> None:
        """One step back: a search is stopped, the report or the row is left, a mark or a filter is taken away."""
        if self.is_searching:
            self.stop_search()
        elif self.shows_report:
            self.action_report()
        elif self.conversation.has_focus or self.mask_view.has_focus:
            self.rows.focus()
        elif self.term:
            self.mark("")
            self.set_status("")
        elif self.filter is not None:
            self.show_filtered(None)

    # The configuration: what the file is used for, and how its rows are read.

    def action_use(self, use: Literal["train", "eval"]) -> None:
        """Ask the app to put this file into the configuration."""
        if self.view is None:
            self.set_status("Open a file first.")
            return
        self.post_message(DatasetChosen(Path(entry_text(self.view.path)), use))

    def action_form(self, form: Literal["template", "columns"]) -> None:
        """Ask the app for a screen with the templates or the columns."""
        self.post_message(FormRequested(form))

    # What is asked for: a path, a text to find, a row number.

    @on(AskBar.Submitted)
    def _answered(self, message: AskBar.Submitted) -> None:
        message.stop()
        if message.purpose == "open" and message.path is not None:
            self.show(message.path, ask=True)
        elif message.purpose == "row":
            self.go_to_number(message.value)
        elif message.purpose == "search":
            self.search_for(message.value)

    @on(AskBar.Changed)
    @on(AskBar.Cancelled)
    def _asking(self, message: Message) -> None:
        message.stop()
