"""Runs pane: a list of all runs on this machine, newest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.widgets import Input, Static

from core.errors import UserError
from core.runs.catalog.table import DEFAULT_SORT, SORT_COLUMNS, select_rows, sort_rows
from core.runs.record.store import NAME_LIMIT, NOTE_LIMIT, Labels, Run, clean_tags, clean_text
from tui.keys import bindings
from tui.panes.base import Pane
from tui.shell import RunsInView
from tui.widgets.empty_state import EmptyState
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.lists.run_list import RunList
from tui.widgets.run_detail import account_column, account_rows, queue_line
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from core.queue.view import QueueView
    from core.runs.catalog.result import RunDetail
    from core.runs.catalog.rows import RunFigures, RunRow
#: Columns from which the details of a run are beside the list, and rows from which they are below it.
BESIDE_WIDTH, BELOW_HEIGHT = 150, 17


class FilterInput(SafeInput):
    """Input of the filter; visible while there is a filter. The arrow keys return to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("down,up", "submit", show=False)]

    #: Key hints while this has the focus.
    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (("esc", "clears the filter"), ("enter", "keeps it"))


class RunsPane(Pane):
    """List of runs with a filter."""

    DEFAULT_CSS = style_of("RunsPane")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("runs")]

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[RunRow] | None = None
        self._detail: RunDetail | None = None
        self._view: RunsInView | None = None
        self._account = Content("")
        self.ask_bar = AskBar(id="runs-ask")
        self._sort, self._is_reversed, self._lists_archived = DEFAULT_SORT, False, False
        # After a sort, the cursor stays on the first row even if figures arrive later.
        self._stays_first = False

    def compose(self) -> ComposeResult:
        yield TextBlock(id="queue")
        yield EmptyState("Looking for runs …", id="empty")
        with Container(id="runs"):
            yield RunList(self.shell.clock)
            yield Static(id="detail", markup=False)
        yield FilterInput(placeholder="words, #tag, data:word, state:word · enter keep · esc clear")
        yield self.ask_bar

    def on_mount(self) -> None:
        """Hide the list until the first runs arrive."""
        self.set_title("5 Runs")
        self.query_one("#runs").display = False
        self._show_hints()

    def on_resize(self, event: events.Resize) -> None:
        """Place the details of a run where they fit, and request them once there is room."""
        width, height = event.size
        self.set_class(width >= BESIDE_WIDTH, "-beside")
        self.set_class(width < BESIDE_WIDTH and height >= BELOW_HEIGHT, "-below")
        self.call_after_refresh(self._look)
        self.call_after_refresh(self._show_title)

    def show_queue(self, view: QueueView) -> None:
        """Show the queue in a line."""
        self.query_one("#queue", TextBlock).show(queue_line(view, self.keys["app.queue"].display))

    def show_detail(self, detail: RunDetail) -> None:
        """Show the details of the run under the cursor."""
        self._detail = detail
        self._show_account()

    def _relabel(self, run: Run, labels: Labels) -> None:
        self.show([replace(row, labels=labels) if row.run == run else row for row in self._rows or ()])

    def show(self, rows: Sequence[RunRow]) -> None:
        """Show the list; the cursor stays on its run."""
        self._rows = rows
        self._filter()

    def _filter(self) -> None:
        rows = self._rows
        if rows is None:
            return
        text = self.query_one(FilterInput).value
        run_list, empty = self.query_one(RunList), self.query_one("#empty", EmptyState)
        kept = sort_rows(
            select_rows(rows, text, archived=self._lists_archived),
            run_list.figures,
            self._sort,
            reverse=self._is_reversed,
        )
        had_focus = self.has_focus_within
        run_list.show_order(self._sort, descending=SORT_COLUMNS[self._sort].descending != self._is_reversed)
        run_list.show(kept)
        if self._stays_first and kept and run_list.selected != kept[0]:
            run_list.move(-run_list.count)
        self.query_one("#runs").display = bool(kept)
        empty.display = not kept
        if not kept:
            self._explain_empty(bool(text.split()))
        self._show_title()
        # The columns that fit are known once the list has its width.
        self.call_after_refresh(self._show_title)
        self._show_hints()
        self._look()
        if had_focus and kept and not self.has_focus_within:
            run_list.focus()

    def _explain_empty(self, is_filtered: bool) -> None:
        empty, keys = self.query_one("#empty", EmptyState), self.keys
        if not self._rows:
            start = (keys["app.start"].display, "start a run of the configuration")
            empty.say("No runs yet.", [start, (keys["app.train"].display, "see how to start one")])
        elif is_filtered:
            empty.say("No run matches.", [("esc", "clear the filter")])
        else:
            empty.say("All runs are archived.", [(keys["runs.archived"].display, "list them")])

    def _show_title(self) -> None:
        """Show the number of runs, the filter and the sort column in the title, and how many columns have no room."""
        rows, run_list = self._rows or (), self.query_one(RunList)
        live = sum(
            1 for row in rows if row.state in ("queued", "starting", "training", "paused", "stopping", "stalled")
        )
        archived = sum(row.labels.archived for row in rows)
        listed = len(rows) if self._lists_archived else len(rows) - archived
        is_filtered = bool(self.query_one(FilterInput).value.split())
        count = f"{run_list.count} of {len(rows)}" if is_filtered else str(listed)
        marked, left_out = len(run_list.marked), run_list.left_out if run_list.count else 0
        details = self.keys["runs.details"].display
        self.set_title(
            "5 Runs",
            count,
            f"{live} live" if live else "",
            f"{archived} archived{' too' if self._lists_archived else ''}" if archived else "",
            f"by {self._sort}" if self._sort != DEFAULT_SORT else "",
            f"{marked} marked" if marked else "",
            f"{left_out} more column{'s' if left_out > 1 else ''}: {details} details" if left_out else "",
        )

    def _show_hints(self) -> None:
        """Show the most important keys; the comparison first if runs are marked."""
        names = ["open", "details", "compare", "edit", "filter"]
        if not self._rows:
            names = ["trash"]
        elif self.query_one(RunList).selected is None:
            names = ["filter", "archived", "trash"]
        elif self.query_one(RunList).marked:
            names = ["compare", "mark", "open", "details", "filter"]
        self.set_hints([*(["app.start"] if not self._rows else []), *(f"runs.{name}" for name in names)])

    @on(RunList.Opened)
    def _opened(self, event: RunList.Opened) -> None:
        event.stop()
        self.action_open()

    @on(RunList.Moved)
    def _moved(self, event: RunList.Moved) -> None:
        event.stop()
        self._look()

    def _look(self) -> None:
        """Request the figures of the visible runs, and the details of the run under the cursor."""
        run_list = self.query_one(RunList)
        chosen, older = run_list.selected, run_list.older
        before = older.run if older is not None else None
        has_room = self.has_class("-beside") or self.has_class("-below")
        in_view = [row.run for row in run_list.in_view]
        seen = {run.id for run in in_view}
        wanted = (self._rows or ()) if SORT_COLUMNS[self._sort].needs_figures else ()
        others = [row.run for row in wanted if row.run.id not in seen]
        view = RunsInView(in_view, chosen.run if chosen is not None and has_room else None, before, others)
        if view != self._view:
            self._view = view
            self.shell.bridge.look_at(view)
        self._show_account()

    def show_figures(self, figures: Mapping[str, RunFigures]) -> None:
        """Show newly read figures in the list."""
        run_list = self.query_one(RunList)
        run_list.show_figures(figures)
        if SORT_COLUMNS[self._sort].needs_figures:
            self._filter()
        if run_list.selected is not None and run_list.selected.run.id in figures:
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
            # Its size does not depend on its content, and a layout of the screen takes as long as all else of a key.
            place.update(content, layout=False)

    def forget(self, run: Run) -> None:
        """Remove a deleted run from the list without waiting for the next listing."""
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
        """Clear the filter, or the marks if there is none."""
        line, run_list = self.query_one(FilterInput), self.query_one(RunList)
        if not line.value and not line.has_focus:
            run_list.clear_marks()
            self._marks_changed()
        line.value = ""
        line.remove_class("-open")
        run_list.focus()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable most actions without a run under the cursor."""
        if action in ("filter", "leave_filter"):
            allowed = super().check_action(action, parameters)
            has_more = bool(self.query_one(FilterInput).value) or bool(self.query_one(RunList).marked)
            return allowed if action == "filter" else has_more and allowed
        if action in ("restore", "trash", "toggle_archived"):
            return super().check_action(action, parameters)
        if action in ("rename", "tag", "note") and not super().check_action(action, parameters):
            return False
        return self.query_one(RunList).selected is not None

    def action_filter(self) -> None:
        """Show and focus the filter's input."""
        line = self.query_one(FilterInput)
        line.add_class("-open")
        # Unlike focus(), at once: keys typed ahead are its text.
        self.screen.set_focus(line)

    def _use_run(self, use: Callable[[Run], object]) -> None:
        if (row := self.query_one(RunList).selected) is not None:
            use(row.run)

    def action_open(self) -> None:
        """Show the run under the cursor."""
        self._use_run(self.shell.runs.open)

    def action_details(self) -> None:
        """Show everything about the run under the cursor."""
        self._use_run(self.shell.runs.show_details)

    def action_mark(self) -> None:
        """Toggle the mark of the run under the cursor, and move to the next."""
        run_list = self.query_one(RunList)
        run_list.toggle_mark()
        self._stays_first = False
        run_list.move(1)
        self._marks_changed()

    def _marks_changed(self) -> None:
        self._show_title()
        self._show_hints()

    def action_compare(self) -> None:
        """Compare the marked runs; with fewer than two, the run under the cursor with the marked or the next run."""
        run_list = self.query_one(RunList)
        chosen = list(run_list.marked)
        if len(chosen) < 2:
            others = chosen or [row for row in (run_list.older,) if row is not None]
            chosen = [row for row in (run_list.selected, *others) if row is not None]
        runs = list({row.run.id: row.run for row in chosen}.values())
        if len(runs) < 2:
            self.notify(f"Mark two runs with {self.keys['runs.mark'].display} to compare them.", markup=False)
        else:
            self.shell.runs.compare(runs)

    def action_sort(self, by: int) -> None:
        """Sort by the next or previous column, in its default direction."""
        names = list(SORT_COLUMNS)
        self._sort_by(names[(names.index(self._sort) + by) % len(names)])

    def _sort_by(self, column: str) -> None:
        self._sort, self._is_reversed, self._stays_first = column, False, True
        self._filter()

    @on(RunList.SortWanted)
    def _title_clicked(self, message: RunList.SortWanted) -> None:
        message.stop()
        if message.column == self._sort:
            self.action_reverse()
        else:
            self._sort_by(message.column)

    def action_reverse(self) -> None:
        """Sort in the other direction."""
        self._is_reversed, self._stays_first = not self._is_reversed, True
        self._filter()

    def action_toggle_archived(self) -> None:
        """Show or hide archived runs."""
        self._lists_archived = not self._lists_archived
        self._filter()

    def action_archive(self) -> None:
        """Archive the marked runs or the run under the cursor; unarchive them if all are archived."""
        run_list = self.query_one(RunList)
        rows = run_list.marked or [row for row in (run_list.selected,) if row is not None]
        archived = not all(row.labels.archived for row in rows)
        for row in rows:
            self.shell.bridge.label(row.run, partial(replace, archived=archived), self._relabel)
        run_list.clear_marks()
        self._marks_changed()
        if archived and not self._lists_archived:
            self.notify(
                f"Archived: {len(rows)} run{'s' if len(rows) > 1 else ''}. "
                f"{self.keys['runs.archived'].display} lists them too.",
                markup=False,
            )

    async def action_rename(self) -> None:
        """Ask for a display name for the run under the cursor."""
        await self._ask("name", "display name; the id stays the same", lambda labels: labels.name, _named)

    async def action_tag(self) -> None:
        """Ask for the tags of the run under the cursor."""
        await self._ask("tags", "words, as: keep baseline", lambda labels: " ".join(labels.tags), _tagged)

    async def action_note(self) -> None:
        """Ask for a note on the run under the cursor."""
        await self._ask("note", "what to remember of it", lambda labels: labels.note, _noted)

    async def _ask(
        self, label: str, hint: str, present: Callable[[Labels], str], change: Callable[[Labels, str], Labels]
    ) -> None:
        row = self.query_one(RunList).selected

        async def ask() -> None:
            if row is None or (answer := await self.ask_bar.ask(label, present(row.labels), placeholder=hint)) is None:
                return
            if answer == present(row.labels):
                return
            try:
                change(row.labels, answer)  # an invalid answer raises here, not in the bridge's thread
                self.shell.bridge.label(row.run, lambda labels: change(labels, answer), self._relabel)
            except UserError as error:
                self.notify(f"{error.message} {error.hint}", severity="warning", markup=False)

        if row is not None:
            await self.ask_bar.converse(ask())

    def action_restore(self) -> None:
        """Restore the run that was deleted last."""
        self.shell.runs.restore_last()

    def action_trash(self) -> None:
        """Show the runs in the trash."""
        self.shell.runs.show_trash()

    def action_continue_run(self) -> None:
        """Continue the run under the cursor."""
        self._use_run(self.shell.starting.continue_run)

    def action_edit_config(self) -> None:
        """Open the configuration of the run under the cursor as a new one."""
        self._use_run(self.shell.configuration.edit_run)

    def action_export(self) -> None:
        """Export the result of the run under the cursor."""
        self._use_run(self.shell.runs.export)

    def action_evaluate(self) -> None:
        """Evaluate the model of the run under the cursor on a file of prompts."""
        self._use_run(self.shell.runs.evaluate)

    def action_serve(self) -> None:
        """Serve the model of the run under the cursor to other programs."""
        self._use_run(self.shell.serving.request)

    def action_delete(self) -> None:
        """Delete the run under the cursor after a confirmation."""
        run_list = self.query_one(RunList)
        if (row := run_list.selected) is not None:
            figures = run_list.figures_of(row)
            self.shell.runs.delete(row.run, figures.size if figures is not None else None)

    def action_move(self, by: int) -> None:
        """Move the cursor."""
        self._stays_first = False
        self.query_one(RunList).move(by)

    def action_move_page(self, by: int) -> None:
        """Move the cursor by pages."""
        self._stays_first = False
        run_list = self.query_one(RunList)
        run_list.move(by * max(run_list.page_rows, 1))

    def action_move_end(self, direction: int) -> None:
        """Move the cursor to the first or the last run."""
        self._stays_first = False
        run_list = self.query_one(RunList)
        run_list.move(direction * run_list.count)


def _named(labels: Labels, text: str) -> Labels:
    return replace(labels, name=clean_text(text, NAME_LIMIT, "name"))


def _tagged(labels: Labels, text: str) -> Labels:
    return replace(labels, tags=clean_tags([text]))


def _noted(labels: Labels, text: str) -> Labels:
    return replace(labels, note=clean_text(text, NOTE_LIMIT, "note"))
