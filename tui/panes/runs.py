"""The Runs pane: every run on this machine, newest first, to open and to continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, cast

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.events import Key as KeyEvent
from textual.widget import Widget
from textual.widgets import Input

from tui.keys import bindings
from tui.messages import ContinueRequested, OpenRunRequested
from tui.widgets.empty_state import EmptyState
from tui.widgets.lists.run_list import RunList

if TYPE_CHECKING:
    from core.runs.catalog import RunRow
    from tui.app import LocaltuneApp


class FilterInput(Input):
    """The line in which the filter is typed; ``esc`` empties it and gives the keys back to the list."""

    #: What the line of keys shows while this has the focus.
    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (("esc", "clears the filter"), ("enter", "keeps it"))

    class Left(Input.Submitted):
        """The user has left the line, with the filter kept or emptied."""

    async def on_key(self, event: KeyEvent) -> None:
        """``esc`` clears, arrows go to the list."""
        if event.key in ("escape", "down", "up"):
            event.stop()
            event.prevent_default()
            if event.key == "escape":
                self.value = ""
            self.post_message(self.Left(self, self.value))


class RunsPane(Widget):
    """A list of runs with a filter."""

    DEFAULT_CSS = """
    RunsPane { layout: vertical; padding: 0 1; }
    RunsPane FilterInput { dock: bottom; height: 1; border: none; padding: 0; background: $panel; display: none; }
    RunsPane FilterInput.-open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs")]
    HELP = (
        "All runs, newest first. Opening a live one follows it; an ended one can be continued from its last checkpoint."
    )

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[RunRow] | None = None
        self._title = ""

    @property
    def _app(self) -> LocaltuneApp:
        return cast("LocaltuneApp", self.app)

    def compose(self) -> ComposeResult:
        yield EmptyState("Looking for runs …", id="empty")
        yield RunList(self._app.clock)
        yield FilterInput(placeholder="filter by id, model or state · enter keep · esc clear", select_on_focus=False)

    def on_mount(self) -> None:
        """Begin without a list."""
        self.border_title = "5 Runs"
        self.query_one(RunList).display = False
        self.border_subtitle = Content(self._app.keys.hints(["runs.open", "runs.continue", "runs.filter"]))

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
        keys = self._app.keys
        if not rows:
            start = (keys["app.start"].display, "start with the configuration")
            empty.say("No runs yet.", [start, (keys["app.train"].display, "show the pane where a run appears")])
        elif not kept:
            empty.say(f"None of the {len(rows)} runs matches.", [("esc", "clear the filter")])
        live = sum(
            1 for row in rows if row.state in ("queued", "starting", "training", "paused", "stopping", "stalled")
        )
        count = f"{len(kept)} of {len(rows)}" if words else str(len(rows))
        title = f"5 Runs · {count}" + (f" · {live} live" if live else "")
        if title != self._title:
            # Writing to the border repaints the whole pane.
            self._title = title
            self.border_title = Content(title)
        if had_focus and kept and not self.has_focus_within:
            run_list.focus()

    def focus_default(self) -> Widget:
        """What gets the keys when the pane does."""
        return self.query_one(RunList)

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

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """Moving and opening need a list; where the filter is typed, the key that begins it is text."""
        if action == "filter":
            return not isinstance(self.screen.focused, Input)
        return self.query_one(RunList).selected is not None

    def action_filter(self) -> None:
        """Type a filter."""
        line = self.query_one(FilterInput)
        line.add_class("-open")
        # At once: what is typed ahead is its text.
        self.screen.set_focus(line)

    def action_open(self) -> None:
        """Show the run under the cursor."""
        if (row := self.query_one(RunList).selected) is not None:
            self.post_message(OpenRunRequested(row.run))

    def action_continue_run(self) -> None:
        """Continue the run under the cursor."""
        if (row := self.query_one(RunList).selected) is not None:
            self.post_message(ContinueRequested(row.run))

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
