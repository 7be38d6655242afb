"""Data pane: the rows of a dataset as a list, and the row under the cursor as a conversation or as tokens."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.widgets import DirectoryTree, OptionList
from textual.worker import Worker, WorkerError

from core.analysis.job import AnalysisJob
from core.analysis.problems import FileLine
from core.analysis.result import Analysis
from core.config.document import ConfigDocument
from core.data.conversation import RowError
from core.data.corrected_copy import copy_of, moved_to, toggle_left_out, write_correction
from core.data.exclusion import Exclusion
from core.data.formats.mapping import UnknownColumnsError
from core.errors import UserError
from core.evaluation.row_losses import RowLosses, RowLossesJob, read_review, row_losses_job, write_review
from core.hub.store import NotFetchedError
from core.jobs.job import JobDiedError, JobProgress
from core.jobs.running import RunningJob
from core.paths import user_path, working_directory
from core.runs.record.store import Run
from core.text import one_line
from core.units import format_count
from tui.datasets.here import Here
from tui.datasets.losses import WORST, look_up
from tui.datasets.marks import RowFilter
from tui.datasets.plan import Reading, plan_data
from tui.datasets.summary import counted, describe_filter, describe_progress, summarize
from tui.datasets.view import DatasetView, open_dataset, paced
from tui.files import data_paths, entry_path, entry_text, follow_links, is_among, path_text
from tui.glyphs import GlyphSet
from tui.jobs import JobPage
from tui.keys import bindings
from tui.panes.base import SHORT_NAME, Pane
from tui.panes.data.report import ProblemList, Report
from tui.panes.data.rows import DataRows
from tui.panes.data.session import DatasetSession, Move, Opener, Return, sample_path
from tui.screens.start_facts import SeenRows
from tui.session import DataPlace
from tui.widgets.empty_state import FirstSteps, Way, ways_to_begin
from tui.widgets.forms.ask_bar import AskBar
from tui.widgets.lists.conversation import Conversation
from tui.widgets.lists.data_tree import DATA_SUFFIXES, DataTree
from tui.widgets.lists.mask_view import MaskView
from tui.widgets.lists.row_list import RowList
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextLine

if TYPE_CHECKING:
    from core.data.conversation import Example
    from tui.screens.chat import KeptAnswer
    from tui.screens.help import HelpScreen

#: Minimum columns for the row to the right of the list instead of below it.
BESIDE_WIDTH = 120
#: Actions that are there while the directory tree covers the rows.
_IN_TREE = frozenset({"ask_path", "browse", "open_sample", "former", "search"})


class AnalysisPage(JobPage[JobProgress, Analysis]):
    """The analysis of the open dataset, whose view is the pane's report."""

    shown_by = ("app.data", "data.report")

    def __init__(self, pane: DataPane) -> None:
        name = pane.view.path.name if pane.view is not None else ""
        super().__init__(RunningJob("analysis", one_line(name, 60), expected=10), "Analysis")
        self._pane = pane

    @property
    def keeps(self) -> str:
        """Nothing is lost: it begins again with the file."""
        return ""

    def is_in_sight(self) -> bool:
        """True if the pane is in sight, or there is nothing to look at."""
        return self._pane.is_on_screen or (self.job.result is not None and not self.job.result.problems)

    def outcome(self) -> str:
        """The number of problems."""
        if self.job.result is None:
            return ""
        count = len(self.job.result.problems)
        return f"{counted(count, 'kind')} of problem{'s' if count > 1 else ''}." if count else "No problems."

    def show_in_pane(self) -> bool:
        """Show the report."""
        shell = self._pane.shell
        self._pane.app.call_later(shell.run_key, shell.keys["app.data" if self._pane.shows_report else "data.report"])
        return True


class RowLossesPage(JobPage[JobProgress, RowLosses]):
    """The measurement of the losses of a run's rows, whose result is the pane's column.

    Args:
        pane: The pane.
        run: The run.
    """

    shown_by = ("app.data", "data.losses")

    def __init__(self, pane: DataPane, run: Run) -> None:
        super().__init__(RunningJob("measurement", f"the rows of {one_line(run.id, 60)}", expected=None), "Row losses")
        self._pane = pane
        self._job: RowLossesJob = row_losses_job(run)

    def run(self, tell: Callable[[JobProgress], None]) -> RowLosses:
        """Measure, in a thread."""
        return self._job.run(tell)

    def close(self) -> None:
        """End it."""
        self._job.close()

    def has_ended(self) -> None:
        """Show the losses."""
        self._pane.losses_measured(self)

    def is_in_sight(self) -> bool:
        """True if the pane shows them."""
        return self.job.result is not None and self._pane.is_on_screen

    def text(self, room: int, glyphs: GlyphSet) -> Content:  # noqa: ARG002 - the text is short
        """Its progress, or its result."""
        from tui.screens.job import progress_text

        return progress_text(self.job, glyphs) if self.job.result is None else Content(self.outcome())

    def outcome(self) -> str:
        """The number of rows, and their loss."""
        found = self.job.result
        return "" if found is None else f"{counted(found.count, 'row')}, mean loss {found.mean:.3f} a token."


class DataPane(Pane):
    """Pane of a dataset: open a file, browse and search its rows, and use the file for training or evaluation.

    It has the actions of the keys, starts work in threads, and passes the results to its parts.
    """

    DEFAULT_CSS = style_of("DataPane")
    BINDINGS: ClassVar[list[BindingType]] = [*bindings("data")]

    def __init__(self) -> None:
        super().__init__()
        self.session = DatasetSession()
        self.opener = Opener(self.session)
        self.body = DataRows(self.session, id="data-body")
        self.report = Report(id="data-report")
        self.browser = Container(id="data-browser")
        self.ask_bar = AskBar(id="data-ask")
        self._empty = FirstSteps(id="data-empty", can_focus=True)
        self._line = TextLine(id="data-status")
        self._empty_error: UserError | None = None
        self._status = ""
        self._status_row = 0
        self._opening: Worker[None] | None = None
        self._return = Return()
        self._told: tuple[Path, Analysis | None] | None = None
        self._measuring: RowLossesPage | None = None

    def compose(self) -> ComposeResult:
        """Status line and ask bar around the rows, the report, the directory tree or the empty state."""
        yield self._line
        yield self._empty
        yield self.body
        yield self.report
        yield self.browser
        yield self.ask_bar

    def on_mount(self) -> None:
        """Show the empty state."""
        keys = [self.keys[name] for name in ("data.correct", "data.exclude", "data.keep")]
        self.session.loss_hint = "  ".join(f"{key.display} {key.description}" for key in keys)
        self._show_empty()
        for reader in (self.body.conversation, self.body.mask_view):
            self.watch(reader, "show_vertical_scrollbar", self._show_hints, init=False)

    def on_unmount(self) -> None:
        """Close the dataset."""
        self.session.close()

    def on_resize(self, event: events.Resize) -> None:
        """Place the row to the right of the list if it fits."""
        self.body.set_class(event.size.width >= BESIDE_WIDTH, "-beside")
        self._refresh_status()

    async def on_key(self, event: events.Key) -> None:
        """Clear the message at the next key, unless it is about work in progress.

        The empty state handles its own keys, some of which belong to other panes.
        """
        is_busy = self._is_searching or self.opener.opening is not None or bool(self.browser.display)
        if self._status and not is_busy and not self.ask_bar.is_asking:
            self._say("")
        if self._empty.display and self._empty.has_focus:
            await self._empty.take_key(event, "data")

    @property
    def view(self) -> DatasetView | None:
        """The open dataset; None if there is none."""
        return self.session.view

    @property
    def index(self) -> int:
        """The number of the row under the cursor, from 0."""
        return self.body.index

    # Where the user was.

    @property
    def place(self) -> DataPlace | None:
        """The place in the dataset, or the last place in a file that could not be reopened."""
        view, listed = self.view, self.session.filter
        if view is None or self._return.place is not None:
            return self._return.place
        code = listed.code if listed is not None else ""
        return DataPlace(entry_text(view.path), self.index, code, self.body.shows_tokens)

    def return_to(self, place: DataPlace) -> None:
        """Return to a place: its file, row, filter and form, each as soon as possible."""
        path = entry_path(place.path, working_directory())
        if self.opener.is_at(path):
            self._return.begin(place)
            self._go_back()
        else:
            self.show(path)
            self._return.begin(place)

    def go_to_row(self, path: Path, index: int) -> None:
        """Open a file at a row, among all of its rows."""
        if self.view is not None and self.opener.is_at(path):
            self._show_only(self.body)
            self._list(None)
        self.return_to(DataPlace(entry_text(path), index, tokens=self.body.shows_tokens))

    def _go_back(self) -> None:
        """Take the next step of the return to a place."""
        if (place := self._return.place) is None or self.opener.opening is not None or self.view is None:
            return
        if place.tokens != self.body.shows_tokens:
            self.body.toggle_tokens()
        self._go(self._return.step(self.session))

    def seen(self, path: Path) -> SeenRows | None:
        """The known facts about the rows of a file; None if another file is shown."""
        session, view, opening = self.session, self.view, self.opener.opening
        wanted = follow_links(path)
        if opening is not None and follow_links(opening) == wanted:
            return SeenRows(None, None, "opening the file …")
        if view is None or follow_links(view.path) != wanted:
            return None
        count = view.count if session.indexed >= 1 else None
        if (problem := view.failure or view.unknown or view.analysis_error) is not None:
            refusal = "" if isinstance(problem, JobDiedError) else self._explain_problem(problem)
            return SeenRows(count, None, f"✗ {problem}", is_over=True, refusal=refusal)
        if view.analysis is not None:
            return SeenRows(count, view.analysis, is_over=True)
        return SeenRows(count, None, describe_progress(session.indexed, session.progress))

    async def read(self, path: Path) -> SeenRows | None:
        """The known facts about the rows of a file once it has been opened; None if it cannot be."""
        if self._opening is not None:
            with suppress(WorkerError):
                await self._opening.wait()
        return self.seen(path)

    # The configuration: the shown file, and the plan for reading and tokenizing it.

    def follow(self, document: ConfigDocument) -> None:
        """Apply a configuration, and show its training file if that has changed."""
        self.configure(document)
        if (path := self.opener.follow(document)) is not None:
            self.show(path)
        elif self.view is not None and self.opener.forget_failure(document):
            self._say("")
        elif self._empty.display and self.opener.opening is None and self._empty_error is None:
            self._show_empty()
        self._refresh_title()

    def configure(self, document: ConfigDocument) -> None:
        """Apply the data plan of a configuration; nothing changes if the plan is the same."""
        session = self.session
        before, session.plan = session.plan, plan_data(document)
        self._follow_exclusion(document)
        self._read_as_planned()
        if session.plan.tokens != before.tokens or (session.masks is None and not session.is_loading):
            session.masks = None
            self._need_masks()
            # The columns depend on whether tokens are about to be counted.
            self.body.count_again()
        elif session.plan.reading.overlong != before.reading.overlong:
            self.body.count_again()
            self.body.show_tokens()
        if session.plan != before:
            self._look_at_all()
            self._refresh_title()

    def _read_as_planned(self) -> None:
        """Detect the format again if the configuration changed the reading of rows."""
        view = self.view
        if view is not None and (reading := self.session.plan.reading.of(view.path)) != view.reading:
            self.run_worker(self._recognize(view, reading), exclusive=True, group="data-reading")

    async def _recognize(self, view: DatasetView, reading: Reading) -> None:
        recognized = await asyncio.to_thread(view.recognize, reading)
        if view is not self.view or reading != self.session.plan.reading.of(view.path):
            return
        view.read_as(recognized)
        self.body.count_again()
        self.body.show_row()
        self._refresh_title()
        self._look_at_all()

    def _need_masks(self) -> None:
        """Load tokenizer and template if they are not loaded and a dataset is open."""
        if self.session.masks is None and self.view is not None:
            self.session.is_loading = True
            self._load_masks()

    @work(exclusive=True, group="data-masker")
    async def _load_masks(self) -> None:
        if await self.session.load_masks():
            self.body.count_again()
            self.body.show_tokens()
            self._look_at_all()

    # Opening.

    def show(self, path: Path, *, ask: bool = False) -> None:
        """Open a file and show its rows; errors are shown in the pane.

        Args:
            path: The file, directory or entry.
            ask: Whether to offer the download of an entry that is not on this machine.
        """
        self._return.drop()
        self.opener.begin(path)
        self._say(f"opening {path.name} …")
        self._opening = self._open(path, ask)

    @work(exclusive=True, group="data-open")
    async def _open(self, path: Path, ask: bool) -> None:
        try:
            view = await open_dataset(path, self.session.plan.reading.of(path))
        except UserError as error:
            if ask and isinstance(error, NotFetchedError):
                self._ask_to_fetch(path, error)
            self._explain(self.opener.failed(path, error, self.keys))
            return
        self.opener.opening = None
        self.session.open(view)
        self._say("")
        self._need_masks()
        self.body.show_file()
        self._mark("")
        self._show_only(self.body)
        self.prefer_focus(self.body.rows)
        self._refresh_title()
        self.body.show_row()
        # The configuration may have changed meanwhile.
        self._read_as_planned()
        self._go_back()
        self._scan(view)

    def _explain(self, error: UserError) -> None:
        """Show why a file cannot be opened."""
        if self.view is not None:
            self._say(f"✗ {error}")
        else:
            self._say("")
            self._show_empty(error)

    def _ask_to_fetch(self, path: Path, error: NotFetchedError) -> None:
        """Offer the download of an entry, and open it afterwards."""
        from tui.screens.fetch import FetchPage

        self.shell.jobs.open(FetchPage(error.entry, error.message, lambda: self.show(path)))

    @work(exclusive=True, group="data-scan")
    async def _scan(self, view: DatasetView) -> None:
        """Index all rows; closing the dataset ends it."""
        # The callback runs in a thread; call_later posts it to the pane.
        report = paced(lambda done, total: self.call_later(self._scanned, view, done / max(total, 1)))
        try:
            await asyncio.to_thread(view.file.index, report)
        except UserError as error:
            view.failure = error
            self._refresh_status()
            return
        if view.is_guess and not view.is_closed:
            # Long first rows: the detection saw fewer rows than the analysis will, and both must agree.
            await self._recognize(view, view.reading)
        self._scanned(view, 1.0)

    def _scanned(self, view: DatasetView, share: float) -> None:
        if view is not self.view:
            return
        self.session.indexed = share
        if self.session.filter is None:
            self.body.rows.count = view.count
        self._refresh_title()
        self._go_back()
        if view.file.complete:
            self._look_at_all()
            if not self.session.has_looked_up:
                self._seek_losses(view)

    async def action_ask_path(self) -> None:
        """Ask for a path, and open it."""
        await self.ask_bar.converse(self._ask_path())

    async def _ask_path(self) -> None:
        path = await self.ask_bar.ask_path("open", self.opener.start, suffixes=DATA_SUFFIXES)
        if path is not None:
            self.show(path, ask=True)

    def action_reload(self) -> None:
        """Reopen the file, or offer the download of a missing one."""
        if self.opener.missing is not None:
            self.show(self.opener.missing, ask=True)
        elif self.view is not None:
            self.show(self.view.path)

    def action_open_sample(self) -> None:
        """Open the sample tickets."""
        self.show(sample_path())

    async def action_browse(self) -> None:
        """Show the directory tree of the file, or of the working directory."""
        tree = DataTree(self.opener.directory)
        await self.browser.remove_children()
        await self.browser.mount(tree)
        self._show_only(self.browser)
        self._tell_tree()
        tree.focus()

    @on(DataTree.Filtered)
    def _tell_tree(self) -> None:
        """Show the filter of the tree, or its keys."""
        for tree in self.browser.query(DataTree):
            found = "the names with" if tree.root.children else "No name here has"
            keys = " · ".join(tree.KEYS[:4])
            self._say(f"{found} {tree.term} · esc shows all" if tree.term else keys)

    async def _ask_name(self) -> None:
        if (text := await self.ask_bar.ask("name", placeholder="a part of a name in this directory")) is not None:
            for tree in self.browser.query(DataTree):
                await tree.filter_names(text)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Disable the keys of the rows while the directory tree covers them."""
        if self.browser.display and action not in _IN_TREE:
            return False
        return super().check_action(action, parameters)

    def help_screen(self) -> HelpScreen:
        """The help for the rows, or for the tree of the files."""
        from tui.screens.help import HelpScreen

        return (
            HelpScreen("Files", "files", self.keys, "", lambda: DataTree.KEYS)
            if self.browser.display
            else (super().help_screen())
        )

    @on(DirectoryTree.FileSelected)
    async def _picked(self, message: DirectoryTree.FileSelected) -> None:
        message.stop()
        await self._leave_tree()
        self.show(message.path)

    @on(DataTree.Left)
    async def _leave_tree(self) -> None:
        self._say("")
        self._show_only(self.body if self.view is not None else self._empty)
        (self.body.rows if self.view is not None else self._empty).focus()
        await self.browser.remove_children()

    # The whole file.

    def _look_at_all(self) -> None:
        """Start the analysis of all rows if there is no up-to-date one."""
        if (job := self.session.next_job()) is not None:
            self._analyze(job)
        self._refresh_known()

    @work(exclusive=True, group="data-analysis")
    async def _analyze(self, job: AnalysisJob) -> None:
        page, jobs, view = AnalysisPage(self), self.shell.jobs, self.view

        def report(progress: JobProgress) -> None:
            page.job.tell(progress if progress.activity == "reading" else JobProgress(progress.activity))
            jobs.changed(page)
            self.call_later(self._analyzed, job, progress)

        jobs.follow(page)
        try:
            if not await self.session.analyze(job, report):
                return
            if view is not None:
                page.job.end(view.analysis, view.analysis_error)
        finally:
            if not page.job.is_over:
                page.job.end()
            jobs.changed(page)
        if (move := self.session.after_analysis()).relists:
            self._list(move.filter)
            self._say(move.said or "")
        self._go_back()
        self._refresh_known()

    def _analyzed(self, job: AnalysisJob, progress: JobProgress) -> None:
        """Show the progress of an analysis."""
        if job is self.session.job:
            self.session.progress = progress
            self._refresh_status()
            self._refresh_report()

    def _refresh_known(self) -> None:
        """Update the parts that depend on all rows, and pass the analysis to the app."""
        if (view := self.view) is not None:
            told = self._told
            if told is None or told[0] != view.path or told[1] is not view.analysis:
                self._told = view.path, view.analysis
                self.shell.configuration.analyzed(view.path, view.analysis)
        self.body.rows.invalidate()
        self.body.show_problems()
        self._refresh_status()
        self._refresh_report()

    def _refresh_report(self) -> None:
        self.report.show(self.session, self.keys, self.size)

    def action_report(self) -> None:
        """Show the report, or the rows again."""
        if self.shows_report:
            self._show_rows()
        elif self.view is not None:
            self._show_only(self.report)
            self._refresh_report()
            # Unlike focus(), at once: the next key may be waiting.
            self.screen.set_focus(self.report.problems)

    @on(OptionList.OptionSelected, "#data-problems")
    def _problem_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        problems = self.report.problems.problems
        if not self.shows_report or message.option_index >= len(problems):
            return
        problem = problems[message.option_index]
        self._show_rows()
        if problem.indices:
            self._list(RowFilter.of(problem))

    # Losses after a run.

    @work(exclusive=True, group="data-losses")
    async def _seek_losses(self, view: DatasetView) -> None:
        await self._look_up(view)

    async def _look_up(self, view: DatasetView) -> Run | None:
        """Show the losses of the newest run that trained on the file and was measured; returns the newest ended one."""
        shown = self.shell.state.view
        try:
            found = await asyncio.to_thread(look_up, view, shown.run if shown is not None else None)
        except UserError as error:
            view.failure = error
            return None
        if view is not self.view:
            return None
        session = self.session
        session.has_looked_up, session.losses = True, found.found
        self.body.show_columns()
        self.body.show_row()
        self._go_back()
        return found.ended

    async def action_losses(self) -> None:
        """List the rows that the newest run has not learned; they are measured first if need be."""
        if (view := self.view) is None:
            self._say("Open a file first.")
        elif (page := self._measuring) is not None:
            self._say(f"{page.job.title} is on ({page.job.state}); {self.keys['app.jobs'].display} shows it.")
        elif not view.file.complete:
            self._say(self.session.not_known)
        elif (run := await self._look_up(view)) is None:
            if view is self.view:
                self._say("No run that has ended was trained on this file as it is.")
        elif (found := self.session.losses) is not None and found.run.path == run.path:
            current = await asyncio.to_thread(found.losses.is_current, run)
            if current:
                self._list_worst()
            else:
                self._measure(run)
        else:
            self._measure(run)

    def _measure(self, run: Run) -> None:
        """Measure the rows of a run, as a job."""
        page = self._measuring = RowLossesPage(self, run)
        self.shell.jobs.begin(page)
        self._say(f"measuring the rows with run {run.id} · {self.keys['app.jobs'].display} shows it")

    @work(exclusive=True, group="data-losses")
    async def losses_measured(self, page: RowLossesPage) -> None:
        """Show new losses, or the reason why there are none."""
        self._measuring = None
        if page.job.error is not None:
            self._say(f"✗ {page.job.error}")
        elif page.job.result is not None and (view := self.view) is not None:
            await self._look_up(view)
            self._list_worst()

    def _list_worst(self) -> None:
        if (order := self.session.order(WORST)) is not None and order.indices:
            self._show_rows()
            self._list(order)
            self.body.go_to(order.indices[0])

    def _relist(self) -> None:
        """Sort the rows again after a decision about one; the cursor stays at its place in the list."""
        session, place = self.session, self.body.rows.cursor
        order = session.order(session.filter.code) if session.filter is not None else None
        if order is None or not order.indices:
            self.body.show_columns()
            self.body.show_problems()
            return
        session.filter = order
        self.body.show_listed(order.indices[min(place, len(order.indices) - 1)])
        self.body.show_row()

    def _follow_exclusion(self, document: ConfigDocument) -> None:
        """Follow ``data.exclude``; an invalid one leaves nothing out."""
        exclusion = Exclusion(())
        with suppress(UserError):
            exclusion = Exclusion(_excluded(document))
        if exclusion.entries != self.session.exclusion.entries:
            self.session.exclusion = exclusion
            if self.session.losses is not None:
                self._relist()

    def _place(self) -> FileLine | None:
        """File and line of the row under the cursor."""
        view = self.view
        if view is None or self.index >= view.count:
            self._say("Open a file first.")
            return None
        try:
            return view.places(self.index)[0]
        except (UserError, IndexError) as error:
            self._say(f"✗ {error}")
            return None

    async def action_keep(self) -> None:
        """Mark the row as right, or no longer."""
        found = self.session.losses
        if found is None:
            self._say(f"{self.keys['data.losses'].display} measures which rows a run has not learned.")
            return
        if (place := found.places.get(self.index)) is None:
            self._say("The run has not learned from this row.")
            return
        review = read_review(found.run).toggled(place)
        try:
            await asyncio.to_thread(write_review, found.run, review)
        except UserError as error:
            self._say(f"✗ {error}")
            return
        if self.session.losses is not None and self.session.losses.run == found.run:
            self.session.losses = self.session.losses.reviewed(review)
            self._relist()

    def action_exclude(self) -> None:
        """Leave the row out of training, or take it back."""
        document, place = self.shell.state.document, self._place()
        if document is None or place is None or self.view is None:
            return
        file = self.session.path_of(place)
        if _is_held_out(document, Path(file)):
            self._say("✗ Held-out rows are not trained on, so there is nothing to leave out.")
            return
        alike = [path for path in data_paths(document, "train") if path.name == place.file]
        # Files of one name are told apart by their paths.
        name = file if len(alike) > 1 else place.file
        try:
            entries = toggle_left_out(_excluded_beside(document, Path(file)), file, place.line, name)
        except UserError as error:
            self._say(f"✗ {error}")
            return
        row, key = f"{place.file}:{place.line}", self.keys["data.exclude"].display
        is_out = Exclusion(entries).names(file, place.line)
        said = f"{row} is left out of training; {key} takes it back." if is_out else f"{row} is trained on again."
        path = Path(entry_text(self.view.path))
        self.shell.configuration.choose_options({"data.exclude": entries or None}, said, path)

    def action_correct(self) -> None:
        """Ask for the right answer of the row, and for the copy that it goes to."""
        view, place = self.view, self._place()
        if view is None or place is None:
            return
        try:
            example = view.example(self.index)
        except (RowError, UserError) as error:
            self._say(f"✗ {error}")
            return
        from tui.screens.chat import KeepAnswer

        if not example.answer or view.is_entry or view.is_directory:
            self._say("✗ Only answers in a file of their own are corrected here.")
            return
        index, file, document = self.index, Path(entry_text(view.data_path)), self.shell.state.document
        entries = [entry for use in ("train", "eval") for entry in data_paths(document, use)] if document else []
        if is_among(entries, file) and follow_links(file) not in map(str, entries):
            self._say("✗ The configuration reads a whole directory, and would read the copy beside this file too.")
            return

        def answered(kept: KeptAnswer | None) -> None:
            if kept is not None and kept.text != example.answer and view is self.view:
                copy = working_directory() / user_path(kept.file)
                self._correct(view, index, FileLine(str(file), place.line), example, kept.text, copy)

        title = f"Correct {place.file}:{place.line} in a copy, which the configuration then reads"
        question = example.prompt[-1].content if example.prompt else ""
        screen = KeepAnswer(question, example.answer, str(copy_of(file)), title=title, verb="write the copy")
        self.app.push_screen(screen, answered)

    @work(group="data-correct")
    async def _correct(
        self, view: DatasetView, index: int, place: FileLine, example: Example, answer: str, copy: Path
    ) -> None:
        """Write a correction, and have the configuration read the copy."""
        original, found = Path(place.file), self.session.losses
        try:
            if found is not None:
                review = read_review(found.run).with_copy(Path(os.path.realpath(copy)), original.resolve())
                await asyncio.to_thread(write_review, found.run, review)
            await asyncio.to_thread(write_correction, original, copy, place.line, example.answer, answer)
        except UserError as error:
            self._say(f"✗ {error}")
            return
        if view is not self.view:
            return
        listed = self.session.filter
        at = listed.place(index) if listed is not None else None
        # In an order by loss the corrected row moves to the end.
        following = index if listed is None or at is None else listed.indices[min(at + 1, len(listed.indices) - 1)]
        there = DataPlace(
            entry_text(copy), following, listed.code if listed is not None else "", self.body.shows_tokens
        )
        if follow_links(copy) == follow_links(original):
            self.show(copy)
        else:
            self._read_copy(original, copy)
        self.return_to(there)

    def _read_copy(self, original: Path, copy: Path) -> None:
        """Have the configuration read a corrected copy in place of its original; one that it does not read is trained
        on."""
        document = self.shell.state.document
        if document is None:
            return
        use = "eval" if _is_held_out(document, original) else "train"
        entries, paths = document.get(f"data.{use}"), data_paths(document, use)
        values: dict[str, object] = {f"data.{use}": copy}
        if isinstance(entries, list) and is_among(paths, original):
            values[f"data.{use}"] = [
                path_text(document, copy) if follow_links(path) == follow_links(original) else entry
                for entry, path in zip(entries, paths, strict=False)
            ]
        if excluded := _excluded_beside(document, original):
            values["data.exclude"] = moved_to(excluded, original, copy)
        text = f"The correction is in {copy.name}, which the configuration reads now; {original.name} is as it was."
        self.shell.configuration.choose_options(values, text, Path(entry_text(original)))

    # Display.

    @property
    def shows_report(self) -> bool:
        """True if the report is shown instead of the rows."""
        return bool(self.report.display)

    def _show_only(self, shown: Container | Report | FirstSteps) -> None:
        """Show the rows, the report, the tree or the empty state."""
        for part in (self._empty, self.body, self.report, self.browser):
            part.display = part is shown
        self._show_line()
        self._show_hints()

    def _show_hints(self) -> None:
        """Show the most important keys of what is shown."""
        view = self.view
        if self.browser.display:
            self.set_hints(["data.open", "data.sample"])
        elif view is None:
            self.set_hints(["data.open", "data.browse", "data.sample", "config.import"])
        elif self.body.reader.has_focus:
            self.set_hints([*(f"data.{name}" for name in ("page_down", "page_up", "back", "tokens", "search"))])
        else:
            columns = ["data.columns"] if isinstance(view.unknown, UnknownColumnsError) else []
            is_cut = self.body.display and self.body.reader.show_vertical_scrollbar
            read = [(self.keys["data.read"].display, "read on")] if is_cut else []
            self.set_hints([*columns, *self._uses, "data.tokens", "data.report", "data.filter", "data.search"], read)

    def on_descendant_focus(self) -> None:
        """Show the keys of the part with the focus."""
        self._show_hints()

    def _show_line(self) -> None:
        """Show or hide the status line; the report needs none without a message, as it has the same numbers."""
        self._line.display = bool(self._status) or (self.view is not None and not self.shows_report)

    def _show_rows(self) -> None:
        """Show the rows instead of the report."""
        if self.shows_report:
            self._show_only(self.body)
            # At once for the next key, and again after the ask bar has restored the focus.
            self.screen.set_focus(self.body.rows)
            self.body.rows.focus()

    def look_around(self, here: Here) -> None:
        """Show the data files to start from, while no file is open."""
        self._empty.look_around(here)
        if self._empty.display and self.view is None:
            self._explain_empty(self._empty_error)

    def focus_moved(self) -> None:
        """Show the first page unless the Train pane beside it has it, after the panes have been arranged."""
        super().focus_moved()
        if self._empty.display:
            self._explain_empty(self._empty_error)

    def _show_empty(self, error: UserError | None = None) -> None:
        """Show the empty state: ways to start, and the last error."""
        self._explain_empty(error)
        self._show_only(self._empty)
        self.prefer_focus(self._empty)
        self.set_title("1 Data")

    def _explain_empty(self, error: UserError | None) -> None:
        self._empty_error = error
        if self.shell.state.is_opening and error is None:
            self._empty.explain("Opening the last session …", [])
            return
        others = self.screen.query(FirstSteps).exclude("#data-empty")
        if error is None and any(other.offers_files for other in others):
            # The Train pane beside it has the first page.
            self._empty.explain("No data yet.", [Way(self.keys["data.open"], "opens a file")], has_files=False)
            return
        missing = "No data yet." if error is None else "No data is open."
        here, now = self._empty.here, self.shell.clock()
        ways = ways_to_begin(self.keys, here, now, sample="data.sample", sample_text="the support tickets as a sample")
        self._empty.explain(f"{missing} What should the model learn from?", ways, error)

    @on(FirstSteps.Chosen)
    def _file_chosen(self, message: FirstSteps.Chosen) -> None:
        message.stop()
        self.show(message.path)

    def _refresh_title(self) -> None:
        """Update title, key hints and summary."""
        view, listed = self.view, self.session.filter
        if view is None:
            return
        known = counted(view.count, "row") if self.session.indexed >= 1 else f"{format_count(view.count)}+ rows"
        name = view.path.name
        words = (
            (view.format_name, known) if listed is None else (listed.title, f"{format_count(listed.total)} of {known}")
        )
        self.set_title("1 Data", name, *words, shorter=((view.format_name, ""), (name, one_line(name, SHORT_NAME))))
        self._show_hints()
        self._refresh_status()

    @property
    def _uses(self) -> list[str]:
        """The keys for using the file, the most important first; for a training file, the key that goes back."""
        view, trained = self.view, self.session.plan.reading.wanted.train
        if view is not None and is_among(trained, view.path):
            return ["data.former"] if self.shell.state.former else []
        return ["data.train", "data.add"] if trained else ["data.train"]

    @on(DataRows.ProblemsSeen)
    def _refresh_status(self) -> None:
        """Update the summary."""
        session, view = self.session, self.view
        if view is None or self._status:
            return
        width = self.scrollable_content_region.width or None
        if (problem := view.failure or view.unknown or view.analysis_error) is not None:
            self._line.update(Content.styled(one_line(f"✗ {self._explain_problem(problem)}"), "$limit"))
        elif session.filter is not None:
            self._line.update(describe_filter(session.filter, self.keys, width))
        else:
            self._line.update(summarize(view, session.indexed, self.keys, session.progress, width))

    def _explain_problem(self, problem: UserError) -> str:
        """A problem of the file, with the key that helps."""
        columns = self.keys["data.columns"].display
        if isinstance(problem, UnknownColumnsError):
            if problem.columns:
                roles = ", ".join(f"{role} = {one_line(name, 40)}" for role, name in problem.columns.items())
                return f"{problem.message} {columns} offers {roles}."
            # Other hints are about the configuration's file.
            guess = f" {problem.hint}" if problem.hint.startswith("Did you mean") else ""
            return f"{problem.message}{guess} {columns} says which column is the question."
        if self.view is not None and problem is self.view.unknown:
            return str(problem)
        return f"{problem} {self.keys['data.reload'].display} opens it again."

    def _say(self, text: str) -> None:
        """Show a message in place of the summary; an empty text shows the summary again."""
        self._status, self._status_row = one_line(text), self.body.rows.cursor
        self._show_line()
        self._line.update(Content.styled(self._status, "$limit" if text.startswith("✗") else "$foreground"))
        if not text:
            self._refresh_status()

    @on(RowList.Moved)
    def _moved(self) -> None:
        self._return.moved_to(self.index)
        # The cursor's present place, not the event's: several moves may be queued.
        if self._status and self.body.rows.cursor != self._status_row and not self._is_searching:
            self._say("")
        if self.view is not None and self.view.failure is not None:
            self._refresh_status()

    # Moving.

    def action_move(self, rows: int) -> None:
        """Move the cursor, or scroll the row if it has the focus."""
        if self._empty.display:
            self._empty.move(rows)
        else:
            self._mover.move(rows)

    def action_move_page(self, direction: int) -> None:
        """Move the cursor by a page."""
        self._mover.move_page(direction)

    def action_move_end(self, direction: int) -> None:
        """Move the cursor to the first or the last row."""
        self._mover.move(direction * 10**12)

    @property
    def _mover(self) -> RowList | Conversation | MaskView | ProblemList:
        parts = (self.body.reader, self.report.problems)
        return next((part for part in parts if part.has_focus), self.body.rows)

    def action_read_row(self) -> None:
        """Focus the row under the cursor; in the empty state, open the file under the cursor."""
        if self._empty.display:
            self._empty.choose()
        elif self.view is not None:
            self.body.reader.focus()

    def action_toggle_tokens(self) -> None:
        """Switch the row between tokens and conversation."""
        self.body.toggle_tokens()
        self._show_hints()

    def action_back(self) -> None:
        """Go one step back: stop a search, leave the report or the row, clear the highlight or the filter."""
        if self._is_searching:
            self.workers.cancel_group(self, "data-search")
            self._say("Search stopped.")
        elif self.shows_report:
            self._show_rows()
        elif self.body.reader.has_focus:
            self.body.rows.focus()
        elif self.session.term:
            self._mark("")
            self._say("")
        elif self.session.filter is not None:
            self._list(None)

    # Jumps and filters.

    def action_filter(self, step: int = 1) -> None:
        """Filter by the next or previous kind of problem; the cycle includes all rows."""
        self._go(self.session.next_kind(step))

    def action_next_problem(self, step: int = 1) -> None:
        """Go to the next or previous row with a problem; with a filter, to the next of its rows."""
        self._go(self.session.next_problem(self.index, step))

    def action_longest(self) -> None:
        """Go to the row with the most tokens."""
        self._go(self.session.longest_row())

    async def action_ask_row(self) -> None:
        """Ask for a row number, and go there."""
        if self.view is not None:
            await self.ask_bar.converse(self._ask_row(f"1 to {format_count(self.view.count)}"))

    async def _ask_row(self, numbers: str) -> None:
        if (text := await self.ask_bar.ask("row", placeholder=numbers)) is not None:
            self._go(self.session.row_number(text))

    def _go(self, move: Move) -> None:
        """Carry out a move; leaves the report if it shows rows."""
        if move.relists or move.index is not None:
            self._show_rows()
        if move.relists:
            self._list(move.filter)
        if move.index is not None:
            self.body.go_to(move.index, move.landing)
        if move.said is not None:
            self._say(move.said)

    def _list(self, chosen: RowFilter | None) -> None:
        """List the rows of a filter, or all rows; the cursor stays on its row or moves to the next listed row."""
        index = self.index
        self.session.filter = chosen
        self.body.show_listed(index)
        self._say("")
        self._refresh_title()

    # Search.

    @property
    def _is_searching(self) -> bool:
        return any(worker.group == "data-search" and worker.is_running for worker in self.workers)

    async def action_search(self) -> None:
        """Ask for a text, highlight it, and go to the first row that contains it, from the present row on.

        In the directory tree, ask for a part of a name, and show only the names that have it.
        """
        if self.browser.display:
            await self.ask_bar.converse(self._ask_name())
        elif self.view is not None:
            await self.ask_bar.converse(self._ask_text())

    async def _ask_text(self) -> None:
        term = await self.ask_bar.ask("find", self.session.term, placeholder="a text in any column")
        if term is None:
            return
        self._mark(term)
        if term:
            self._find(self.index - 1, 1)

    async def action_search_again(self, step: int) -> None:
        """Go to the next or previous match: within the row if it has the focus, else among the rows."""
        reader = self.body.reader
        if not self.session.term:
            await self.action_search()
        elif reader.has_focus and reader.move_match(step):
            place, count = map(format_count, reader.match_place)
            self._say(f"{self.session.term}: {place} of {count} in row {format_count(self.index + 1)}")
        else:
            self._find(self.index, step)

    def _mark(self, term: str) -> None:
        """Highlight a text in the list and the row; an empty text removes the highlight."""
        self.session.term = term
        self.body.highlight(term)

    def _find(self, index: int, step: int) -> None:
        """Search for the text after a row, or before it."""
        if self.view is not None:
            self._say(f"searching for {self.session.term} … esc stops")
            self._search(index, step)

    @work(exclusive=True, group="data-search")
    async def _search(self, index: int, step: int) -> None:
        say = partial(self.call_later, self._say_searching)
        self._go(await self.session.find(index, step, self.keys, say))

    def _say_searching(self, text: str) -> None:
        if self._is_searching:
            self._say(text)

    # Use of the file.

    def action_use(self, use: Literal["train", "add", "eval"]) -> None:
        """Use the file in the configuration."""
        if self.view is None:
            self._say("Open a file first.")
            return
        self.shell.configuration.use_dataset(Path(entry_text(self.view.path)), use)

    def action_former(self) -> None:
        """Go back to the previous configuration."""
        self.shell.configuration.bring_back()

    def action_form(self, form: Literal["template", "columns"]) -> None:
        """Open the screen of the templates or the columns."""
        self.shell.configuration.open_form(form)


def _excluded(document: ConfigDocument) -> list[str]:
    """The entries of ``data.exclude`` as they are written."""
    value = document.get("data.exclude")
    return [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry]


def _excluded_beside(document: ConfigDocument, path: Path) -> list[str]:
    """The entries of ``data.exclude`` beside a file that is trained on; none for another file, with which a new
    configuration begins."""
    return _excluded(document) if is_among(data_paths(document, "train"), path) else []


def _is_held_out(document: ConfigDocument, path: Path) -> bool:
    """True if a file is in ``data.eval``."""
    return is_among(data_paths(document, "eval"), path)
