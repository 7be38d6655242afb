"""The Runs pane: every run on this machine, newest first, to open and to continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.widgets import Input, Static

from core.runs.catalog import RunRow
from tui.keys import bindings
from tui.messages import (
    ContinueRequested,
    DeleteRequested,
    EditRunRequested,
    ExportRequested,
    OpenRunRequested,
    RunsInView,
)
from tui.panes.base import Pane
from tui.widgets.empty_state import EmptyState
from tui.widgets.forms.safe_input import SafeInput
from tui.widgets.lists.run_list import RunList
from tui.widgets.run_detail import account_column, account_rows

if TYPE_CHECKING:
    from core.runs.detail import RunDetail, RunFigures
    from core.runs.store import Run

#: Columns from which the account of a run stands beside the list, and rows from which it stands below.
BESIDE_WIDTH, BELOW_HEIGHT = 150, 17


class FilterInput(SafeInput):
    """The input of the filter; it stays as long as there is a filter, and the arrow keys lead back to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down,up", "submit", show=False)]

    #: Key hints while this has the focus.
    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (("esc", "clears the filter"), ("enter", "keeps it"))


class RunsPane(Pane):
    """A list of runs with a filter."""

    DEFAULT_CSS = """
    RunsPane FilterInput { dock: bottom; background: $panel; border: none; height: 1; display: none; }
    RunsPane FilterInput:focus { border: none; }
    RunsPane FilterInput.-open { display: block; }
    RunsPane #runs { height: 1fr; layout: vertical; }
    RunsPane #detail { display: none; height: auto; color: $foreground; }
    RunsPane.-below #detail { display: block; height: 8; border-top: solid $border; }
    RunsPane.-beside #runs { layout: horizontal; }
    RunsPane.-beside RunList { width: 1fr; }
    RunsPane.-beside #detail { display: block; width: 50; height: 1fr; padding-left: 2; border-left: solid $border; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs")]
    HELP = (
        "All runs, newest first. Opening a live one follows it; an ended one can be continued from its last "
        "checkpoint, or its configuration be edited and started as a new run."
    )

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[RunRow] | None = None
        self._detail: RunDetail | None = None
        self._view: RunsInView | None = None
        self._account = Content("")

    def compose(self) -> ComposeResult:
        yield EmptyState("Looking for runs …", id="empty")
        with Container(id="runs"):
            yield RunList(self.shell.clock)
            yield Static(id="detail", markup=False)
        yield FilterInput(placeholder="filter by id, model or state · enter keep · esc clear")

    def on_mount(self) -> None:
        """Start without a list."""
        self.set_title("5 Runs")
        self.query_one("#runs").display = False
        self.set_hints(["runs.open", "runs.edit", "runs.continue", "runs.export", "runs.delete", "runs.filter"])

    def on_resize(self, event: events.Resize) -> None:
        """Put the account of a run where there is room for it."""
        width, height = event.size
        self.set_class(width >= BESIDE_WIDTH, "-beside")
        self.set_class(width < BESIDE_WIDTH and height >= BELOW_HEIGHT, "-below")
        self.call_after_refresh(self._show_account)

    def show(self, rows: Sequence[RunRow]) -> None:
        """Show the list, keeping the cursor on its run."""
        self._rows = rows
        self._filter()

    def _filter(self) -> None:
        rows = self._rows
        if rows is None:
            return
        words = self.query_one(FilterInput).value.lower().split()
        kept = [row for row in rows if all(word in f"{row.run.id} {row.model} {row.state}".lower() for word in words)]
        run_list, empty = self.query_one(RunList), self.query_one("#empty", EmptyState)
        had_focus = self.has_focus_within
        run_list.show(kept)
        self.query_one("#runs").display = bool(kept)
        empty.display = not kept
        keys = self.keys
        if not rows:
            start = (keys["app.start"].display, "start a run of the configuration")
            empty.say("No runs yet.", [start, (keys["app.train"].display, "see how to come to one")])
        elif not kept:
            empty.say("No run matches.", [("esc", "clear the filter")])
        live = sum(
            1 for row in rows if row.state in ("queued", "starting", "training", "paused", "stopping", "stalled")
        )
        count = f"{len(kept)} of {len(rows)}" if words else str(len(rows))
        self.set_title("5 Runs", count, f"{live} live" if live else "")
        self._look()
        if had_focus and kept and not self.has_focus_within:
            run_list.focus()

    @on(RunList.Moved)
    def _moved(self, event: RunList.Moved) -> None:
        event.stop()
        self._look()

    def _look(self) -> None:
        """Ask for the figures of the runs in view, and for the account of the one under the cursor."""
        run_list = self.query_one(RunList)
        chosen, older = run_list.selected, run_list.older
        before = older.run if older is not None else None
        has_room = self.has_class("-beside") or self.has_class("-below")
        view = RunsInView(
            [row.run for row in run_list.in_view], chosen.run if chosen is not None and has_room else None, before
        )
        if view != self._view:
            self._view = view
            self.post_message(view)
        self._show_account()

    def show_figures(self, figures: Mapping[str, RunFigures]) -> None:
        """Show figures of runs in the list."""
        run_list = self.query_one(RunList)
        run_list.show_figures(figures)
        if run_list.selected is not None and run_list.selected.run.id in figures:
            self._show_account()

    def show_detail(self, detail: RunDetail) -> None:
        """Show the account of the run under the cursor, if it is still there."""
        self._detail = detail
        self._show_account()

    def _show_account(self) -> None:
        run_list, place = self.query_one(RunList), self.query_one("#detail", Static)
        row, detail = run_list.selected, self._detail
        width, height = place.content_region.size
        if row is None or detail is None or detail.run != row.run or not width:
            content = Content("")
        else:
            write = account_column if self.has_class("-beside") else account_rows
            content = write(row, detail, run_list.figures_of(row), width, height, self.shell.glyphs)
        if not content.is_same(self._account):
            self._account = content
            place.update(content)

    def forget(self, run: Run) -> None:
        """Take a deleted run from the list, before the runs are listed anew."""
        self.show([row for row in self._rows or () if row.run != run])

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        self._filter()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
        line = self.query_one(FilterInput)
        line.set_class(bool(line.value), "-open")
        self.query_one(RunList).focus()

    @on(SafeInput.Cancelled)
    def _cancelled(self, event: SafeInput.Cancelled) -> None:
        event.stop()
        self.action_leave_filter()

    def action_leave_filter(self) -> None:
        """Show all runs again."""
        line = self.query_one(FilterInput)
        line.value = ""
        line.remove_class("-open")
        self.query_one(RunList).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Moving and opening are disabled without a list."""
        if action in ("filter", "leave_filter"):
            allowed = super().check_action(action, parameters)
            return allowed if action == "filter" else bool(self.query_one(FilterInput).value) and allowed
        return self.query_one(RunList).selected is not None

    def action_filter(self) -> None:
        """Show the input of the filter, and focus it."""
        line = self.query_one(FilterInput)
        line.add_class("-open")
        # At once: keys typed ahead are its text.
        self.screen.set_focus(line)

    def action_open(self) -> None:
        """Show the run under the cursor."""
        if (row := self.query_one(RunList).selected) is not None:
            self.post_message(OpenRunRequested(row.run))

    def action_continue_run(self) -> None:
        """Continue the run under the cursor."""
        if (row := self.query_one(RunList).selected) is not None:
            self.post_message(ContinueRequested(row.run))

    def action_edit_config(self) -> None:
        """Open the configuration of the run under the cursor as a new one."""
        if (row := self.query_one(RunList).selected) is not None:
            self.post_message(EditRunRequested(row.run))

    def action_export(self) -> None:
        """Export what the run under the cursor has trained."""
        if (row := self.query_one(RunList).selected) is not None:
            self.post_message(ExportRequested(row.run))

    def action_delete(self) -> None:
        """Delete the run under the cursor, once that is confirmed."""
        run_list = self.query_one(RunList)
        if (row := run_list.selected) is not None:
            figures = run_list.figures_of(row)
            self.post_message(DeleteRequested(row.run, figures.size if figures is not None else None))

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self.query_one(RunList).move(by)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by pages."""
        run_list = self.query_one(RunList)
        run_list.move(by * max(run_list.page_rows, 1))

    def action_move_end(self, direction: int) -> None:
        """Move the cursor to the first or the last run."""
        run_list = self.query_one(RunList)
        run_list.move(direction * run_list.row_count)
