"""The Runs pane: every run on this machine, newest first, to open and to continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from core.runs.catalog import RunRow
from tui.keys import bindings
from tui.messages import ContinueRequested, EditRunRequested, OpenRunRequested
from tui.panes.base import Pane
from tui.widgets.empty_state import EmptyState
from tui.widgets.forms.safe_input import SafeInput
from tui.widgets.lists.run_list import RunList


class FilterInput(SafeInput):
    """The input of the filter; it stays as long as there is a filter, and the arrow keys lead back to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down,up", "submit", show=False)]

    #: Key hints while this has the focus.
    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (("esc", "clears the filter"), ("enter", "keeps it"))


class RunsPane(Pane):
    """A list of runs with a filter."""

    DEFAULT_CSS = """
    RunsPane FilterInput { dock: bottom; background: $panel; display: none; }
    RunsPane FilterInput.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs")]
    HELP = (
        "All runs, newest first. Opening a live one follows it; an ended one can be continued from its last "
        "checkpoint, or its configuration be edited and started as a new run."
    )

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[RunRow] | None = None

    def compose(self) -> ComposeResult:
        yield EmptyState("Looking for runs …", id="empty")
        yield RunList(self.shell.clock)
        yield FilterInput(placeholder="filter by id, model or state · enter keep · esc clear")

    def on_mount(self) -> None:
        """Start without a list."""
        self.set_title("5 Runs")
        self.query_one(RunList).display = False
        self.set_hints(["runs.open", "runs.edit", "runs.continue", "runs.filter"])

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
        run_list.display = bool(kept)
        empty.display = not kept
        keys = self.keys
        if not rows:
            start = (keys["app.start"].display, "start with the configuration")
            empty.say("No runs yet.", [start, (keys["app.train"].display, "show the pane where a run appears")])
        elif not kept:
            empty.say(f"None of the {len(rows)} runs matches.", [("esc", "clear the filter")])
        live = sum(
            1 for row in rows if row.state in ("queued", "starting", "training", "paused", "stopping", "stalled")
        )
        count = f"{len(kept)} of {len(rows)}" if words else str(len(rows))
        self.set_title("5 Runs", count, f"{live} live" if live else "")
        if had_focus and kept and not self.has_focus_within:
            run_list.focus()

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
        line = self.query_one(FilterInput)
        line.value = ""
        line.remove_class("-open")
        self.query_one(RunList).focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Moving and opening are disabled without a list."""
        if action == "filter":
            return super().check_action(action, parameters)
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
