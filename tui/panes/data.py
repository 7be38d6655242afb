"""The data pane: any dataset file, its rows as a list and one of them as a conversation."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import ClassVar, Literal

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import DirectoryTree, Static
from textual.worker import get_current_worker

from core.errors import UserError
from core.hub.entries import is_hub_entry
from core.hub.store import NotFetchedError
from core.text import one_line
from tui.data_paths import entry_text
from tui.keys import bindings
from tui.messages import DatasetChosen
from tui.panes.dataset_report import DatasetReport
from tui.panes.dataset_summary import counted, spaced, summarize
from tui.panes.dataset_tasks import (
    Opened,
    OpenFailed,
    ScanFailed,
    Scanned,
    Search,
    SearchEnded,
    SearchProgress,
    open_dataset,
    scan_dataset,
    search_dataset,
)
from tui.panes.dataset_view import DatasetView
from tui.widgets.ask_bar import AskBar
from tui.widgets.conversation import Conversation
from tui.widgets.data_tree import DATA_SUFFIXES, DataTree
from tui.widgets.mask_view import MaskView
from tui.widgets.problem_list import ProblemList
from tui.widgets.row_list import RowList
from tui.widgets.start_here import StartHere
from tui.widgets.text_block import TextBlock

#: Columns from which the row is shown beside the list instead of below it.
BESIDE_WIDTH = 120


class DataPane(DatasetReport):
    """Pick a file, page through its rows, find one, and use the file for training or evaluation."""

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

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._opening: Path | None = None
        self._asks = False
        self._missing: Path | None = None
        self._term = ""
        self._status = ""
        self._status_row = 0
        self._indexed = 1.0
        self._search_number = 0

    def compose(self) -> ComposeResult:
        """Status, list and row; the tree and the empty state take their place when needed."""
        yield Static(id="data-status", markup=False)
        yield StartHere("", id="data-empty")
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
        self._show_empty()

    def on_unmount(self) -> None:
        """Give the file back; that ends the scans too."""
        self.end_analysis()
        if self.view is not None:
            self.view.close()

    def on_resize(self, event: events.Resize) -> None:
        """Put the row beside the list where there is room for it."""
        self.set_class(event.size.width >= BESIDE_WIDTH, "-beside")

    # Opening.

    def show(self, path: Path, *, ask: bool = False) -> None:
        """Open a file and show its rows; what is wrong with it is said in the pane.

        Args:
            path: What is to be opened.
            ask: Whether to ask for what is not on this machine but can be downloaded.
        """
        self._opening, self._asks = path, ask
        self._missing = None
        self.set_status(f"opening {path.name} …")
        self._open(path)

    @work(thread=True, exclusive=True, group="data-open")
    def _open(self, path: Path) -> None:
        open_dataset(path, self.post_message)

    @on(Opened)
    def _opened(self, message: Opened) -> None:
        view = message.view
        if view.path != self._opening:
            view.close()
            return
        self._opening = None
        if self.view is not None:
            self.view.close()
        self.view, self._term, self._indexed = view, "", 1.0
        self.set_status("")
        self.end_analysis()
        self._lengths.clear()
        self.rows.show(self.cells, self.columns, view.count)
        self._show_only("data-body")
        self.conversation.highlight("")
        self.prefer_focus(self.rows)
        self._refresh_title()
        self._show_row(0)
        if self.masker is None:
            self.load_masker()
        else:
            self.start_analysis()
        self._scan(view)

    @on(OpenFailed)
    def _open_failed(self, message: OpenFailed) -> None:
        if message.path != self._opening:
            return
        self._opening = None
        error = message.error
        if isinstance(error, NotFetchedError):
            if self._asks:
                self._ask_to_fetch(message.path, error)
            self._missing = message.path
            key = self.keys["data.reload"].display
            error = UserError(error.message, f"{key} asks whether to download it; outside the app, {error.hint}")
        if self.view is not None:
            self.set_status(f"✗ {error}")
        else:
            self.set_status("")
            self._show_empty(error)

    def _ask_to_fetch(self, path: Path, error: NotFetchedError) -> None:
        """Let the user decide whether it is downloaded; if it is, open it."""
        from tui.screens.fetch import FetchDialog

        def ended(is_here: bool | None) -> None:
            if is_here:
                self.show(path)

        self.app.push_screen(FetchDialog(error.entry, error.message), ended)

    @work(thread=True, exclusive=True, group="data-scan")
    def _scan(self, view: DatasetView) -> None:
        worker = get_current_worker()
        scan_dataset(view, lambda: worker.is_cancelled, self.post_message)

    @on(Scanned)
    def _scanned(self, message: Scanned) -> None:
        if message.view is not self.view:
            return
        self._indexed = message.fraction
        self.rows.count = message.view.count
        self._refresh_title()
        self.refresh_status()

    @on(ScanFailed)
    def _scan_failed(self, message: ScanFailed) -> None:
        if message.view is self.view:
            message.view.failure = message.error
            self.refresh_status()

    # What is shown.

    @property
    def conversation(self) -> Conversation:
        """The row under the cursor."""
        return self.query_one("#data-conversation", Conversation)

    @property
    def ask_bar(self) -> AskBar:
        """Where paths, texts and row numbers are typed."""
        return self.query_one("#data-ask", AskBar)

    def _show_only(self, shown: str) -> None:
        for name in ("data-empty", "data-body", "data-report", "data-browser"):
            self.query_one(f"#{name}").display = name == shown
        self.query_one("#data-status").display = shown != "data-empty" or bool(self._status)

    def _show_empty(self, error: UserError | None = None) -> None:
        empty = self.query_one("#data-empty", StartHere)
        keys = [(self.keys[name].display, self.keys[name].help) for name in ("data.open", "data.browse", "data.sample")]
        empty.explain("No data yet." if error is None else "No data is open.", keys, error)
        self._show_only("data-empty")
        self.prefer_focus(empty)
        self.set_title("1 Data")
        self.set_hints(["data.open", "data.browse", "data.sample"])

    def _refresh_title(self) -> None:
        view = self.view
        if view is None:
            return
        known = counted(view.count, "row") if self._indexed >= 1 else f"{spaced(view.count)}+ rows"
        self.set_title("1 Data", view.path.name, view.format_name, known)
        self.set_hints(["data.tokens", "data.report", "data.search", "data.train"])
        self.refresh_status()

    def refresh_status(self) -> None:
        view = self.view
        if view is None or self._status:
            return
        line = self.query_one("#data-status", Static)
        problem = view.failure or view.unknown
        if problem is not None:
            reload = f"  {self.keys['data.reload'].display} opens it again." if view.failure else ""
            line.update(Content.styled(one_line(f"✗ {problem}{reload}"), "$limit"))
            return
        line.update(summarize(view, self._indexed, self.keys["data.problem"].display, self.analysis_progress))

    def set_status(self, text: str) -> None:
        """Say something in place of the summary; empty shows the summary again."""
        self._status, self._status_row = one_line(text), self.rows.cursor
        line = self.query_one("#data-status", Static)
        line.display = bool(text) or self.view is not None
        if text:
            line.update(Content.styled(self._status, "$limit" if text.startswith("✗") else "$foreground"))
        else:
            line.update("")
            self.refresh_status()

    @on(RowList.Moved)
    def _moved(self, message: RowList.Moved) -> None:
        message.stop()
        if self._status and message.index != self._status_row and not self._is_searching:
            self.set_status("")
        self._show_row(message.index)

    def _show_row(self, index: int) -> None:
        view = self.view
        if view is None or index >= view.count:
            return
        self.conversation.show(view.turns(index))
        self.show_place()
        self.show_tokens(index)
        if view.failure is not None:
            self.refresh_status()

    def show_place(self, detail: str = "") -> None:
        """Write which row is shown, and what is known of it, over the row."""
        view, index = self.view, self.rows.cursor
        if view is None or index >= view.count:
            return
        line = view.line_of(index)
        place = f"row {spaced(index + 1)}" + (f" · line {spaced(line)}" if line and line != index + 1 else "")
        words = [place, *(["as tokens"] if self.shows_tokens else []), *([detail] if detail else [])]
        self.query_one("#data-row").border_title = Content(f" {' · '.join(words)} ")

    # Keys.

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
        """Stop a search; else give the keys back to the list."""
        if self._is_searching:
            self.workers.cancel_group(self, "data-search")
        elif self.shows_report:
            self.action_report()
        elif self.conversation.has_focus or self.mask_view.has_focus:
            self.rows.focus()
        elif self._term:
            self._term = ""
            self._mark("")
            self.set_status("")

    def action_ask_path(self) -> None:
        """Ask for a path."""
        start = ""
        if self.view is not None:
            path = self.view.path
            start = entry_text(path) if is_hub_entry(path) else f"{path.parent}/"
        self.ask_bar.ask_path("open", "open", start, suffixes=DATA_SUFFIXES)

    def action_reload(self) -> None:
        """Open the file again, or ask for the one that is not on this machine."""
        if self._missing is not None:
            self.show(self._missing, ask=True)
        elif self.view is not None:
            self.show(self.view.path)

    def action_open_sample(self) -> None:
        """Open the sample tickets."""
        self.show(Path(str(files("sample_data").joinpath("tickets_train.jsonl"))))

    def action_use(self, use: Literal["train", "eval"]) -> None:
        """Ask the app to put this file into the configuration."""
        if self.view is None:
            self.set_status("Open a file first.")
            return
        self.post_message(DatasetChosen(Path(entry_text(self.view.path)), use))

    def action_report(self) -> None:
        """Show problems and statistics of the whole file, or its rows again."""
        if self.view is None:
            return
        if self.shows_report:
            self._show_only("data-body")
            self.rows.focus()
            return
        self._show_only("data-report")
        self.refresh_report()
        self.query_one(ProblemList).focus()

    def action_next_problem(self, step: int = 1) -> None:
        """Go to the next row with a problem, or to the one before."""
        view = self.view
        if view is None:
            return
        seek = view.next_problem if step > 0 else view.previous_problem
        found = seek(self.rows.cursor)
        if found is None:
            done = view.checked >= view.count
            self.set_status("No problems." if done else f"No problems in the first {spaced(view.checked)} rows.")
        else:
            self.rows.cursor = found

    # The tree.

    async def action_browse(self) -> None:
        """Show the directories around the file, or the working directory."""
        browser = self.query_one("#data-browser")
        await browser.remove_children()
        beside = self.view is not None and not is_hub_entry(self.view.path)
        tree = DataTree(self.view.path.parent if self.view is not None and beside else Path.cwd())
        await browser.mount(tree)
        self._show_only("data-browser")
        self.set_status("enter opens · backspace goes up · esc goes back")
        tree.focus()

    @on(DirectoryTree.FileSelected)
    async def _picked(self, message: DirectoryTree.FileSelected) -> None:
        message.stop()
        await self._leave_tree()
        self.show(message.path)

    @on(DataTree.Left)
    async def _tree_left(self, message: DataTree.Left) -> None:
        message.stop()
        await self._leave_tree()

    async def _leave_tree(self) -> None:
        self.set_status("")
        self._show_only("data-body" if self.view is not None else "data-empty")
        target = self.rows if self.view is not None else self.query_one("#data-empty")
        target.focus()
        await self.query_one("#data-browser").remove_children()

    # Asking: a path, a text to find, a row number.

    def action_search(self) -> None:
        """Ask for a text to find."""
        if self.view is not None:
            self.ask_bar.ask("search", "find", self._term, "a text in any column")

    def action_ask_row(self) -> None:
        """Ask for a row number."""
        if self.view is not None:
            self.ask_bar.ask("row", "row", "", f"1 to {spaced(self.view.count)}")

    @on(AskBar.Submitted)
    def _answered(self, message: AskBar.Submitted) -> None:
        message.stop()
        if message.purpose == "open" and message.path is not None:
            self.show(message.path, ask=True)
        elif message.purpose == "row":
            self._go_to(message.value)
        elif message.purpose == "search":
            self._term = message.value
            self._mark(message.value)
            if message.value:
                self._find(1, include_cursor=True)

    @on(AskBar.Changed)
    @on(AskBar.Cancelled)
    def _asking(self, message: Message) -> None:
        message.stop()

    def _go_to(self, text: str) -> None:
        digits = text.replace(" ", "").replace(",", "").replace("_", "")
        if not digits:
            return
        if not digits.isdecimal() or self.view is None or not 1 <= int(digits) <= self.view.count:
            last = spaced(self.view.count) if self.view is not None else "0"
            self.set_status(f"✗ There is no row {text}; rows go from 1 to {last}.")
            return
        self.rows.cursor = int(digits) - 1

    # Searching.

    @property
    def _is_searching(self) -> bool:
        return any(worker.group == "data-search" and worker.is_running for worker in self.workers)

    def action_search_again(self, step: int) -> None:
        """The next row with the text, or the one before."""
        if not self._term:
            self.action_search()
        elif self.view is not None:
            self._find(step)

    def _mark(self, term: str) -> None:
        self.rows.highlight(term)
        self.conversation.highlight(term)

    def _find(self, step: int, *, include_cursor: bool = False) -> None:
        if self.view is None:
            return
        self.set_status(f"searching for {self._term} … esc stops")
        start = self.rows.cursor - 1 if include_cursor else self.rows.cursor
        self._search_number += 1
        self._search(self._search_number, self.view, self._term, start, step)

    @work(thread=True, exclusive=True, group="data-search")
    def _search(self, number: int, view: DatasetView, term: str, start: int, step: int) -> None:
        worker = get_current_worker()
        search_dataset(view, Search(number, term, start, step), lambda: worker.is_cancelled, self.post_message)

    @on(SearchProgress)
    def _search_progress(self, message: SearchProgress) -> None:
        if message.view is self.view and self._is_searching:
            total = spaced(message.view.count)
            self.set_status(f"searching for {self._term}: {spaced(message.seen)} of {total} rows · esc stops")

    @on(SearchEnded)
    def _search_ended(self, message: SearchEnded) -> None:
        if message.view is not self.view or message.search != self._search_number:
            return
        if message.match is None:
            term = one_line(self._term, 60)
            self.set_status("Search stopped." if message.cancelled else f"No row has “{term}” in it.")
            return
        self.rows.cursor = message.match.index
        self.set_status(
            f"{self._term}: row {spaced(message.match.index + 1)}"
            + (", from the other end" if message.match.wrapped else "")
            + f" · {self.keys['data.next'].display} next  {self.keys['data.previous'].display} previous"
        )
