"""The whole file in the data pane: problems and statistics, found in the background, and ways to their rows."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on, work
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList

from core.analysis.job import AnalysisCancelledError, AnalysisJob
from core.analysis.result import Analysis, AnalysisRequest, Progress
from core.errors import UserError
from core.text import one_line
from tui.datasets.marks import RowFilter, RowMarks
from tui.datasets.summary import counted, describe_dropped, spaced, summarize
from tui.datasets.view import DatasetView
from tui.panes.data.tokens import DatasetMasks
from tui.widgets.charts.histogram import draw_histogram
from tui.widgets.lists.problem_list import ProblemList
from tui.widgets.text_block import TextBlock


@dataclass
class AnalysisProgress(Message):
    """An analysis has come further."""

    view: DatasetView
    progress: Progress

    def can_replace(self, message: Message) -> bool:
        """Only the newest one matters."""
        return isinstance(message, AnalysisProgress)


@dataclass
class AnalysisEnded(Message):
    """An analysis is done, with the marks that follow from it, or cannot be."""

    view: DatasetView
    job: AnalysisJob
    analysis: Analysis | None
    marks: RowMarks | None = None
    error: UserError | None = None


class DatasetReport(DatasetMasks):
    """Starts the analysis of a file, and shows what it finds."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._job: AnalysisJob | None = None
        self._request: AnalysisRequest | None = None
        self.analysis_progress: Progress | None = None

    def plan_changed(self) -> None:
        """Look at the whole file anew, if that could find anything else than it has."""
        self.start_analysis()

    def start_analysis(self) -> None:
        """Begin the analysis of the file that is shown, unless it has been done, or is under way, just so.

        It waits until all rows have been found, so that the file is not read through twice, until it is known how they
        are read, and until there is a tokenizer or none can be had.
        """
        view = self.view
        if view is None:
            return
        try:
            request = self.plan.request(view.path, with_tokens=self.masks is not None)
            before = self._request
            if before is not None and before != self.plan.request(view.path, with_tokens=before.model is not None):
                self.forget_analysis()
        except UserError as error:
            # The model has gone since it was read.
            self.forget_analysis()
            view.analysis_error = error
            self.refresh_status()
            return
        is_read = view.detection is not None and view.reading == self.plan.reading.of(view.path)
        if not is_read or not view.file.complete or view.failure or self._is_loading or request == self._request:
            return
        self.forget_analysis()
        self._request, self._job = request, AnalysisJob(request)
        self._analyze(view, self._job)

    def forget_analysis(self) -> None:
        """What was found no longer holds; an analysis under way is ended."""
        self.end_analysis()
        if self.view is not None:
            self.view.forget()
            self.rows.invalidate()
            self.refresh_status()
            self.refresh_report()

    def end_analysis(self) -> None:
        """End the analysis under way, if there is one."""
        self.analysis_progress = self._request = None
        if self._job is not None:
            self._job.close()
            self._job = None

    @work(thread=True, group="data-analysis")
    def _analyze(self, view: DatasetView, job: AnalysisJob) -> None:
        def report(progress: Progress) -> None:
            self.post_message(AnalysisProgress(view, progress))

        try:
            analysis = job.run(report)
        except AnalysisCancelledError:
            return
        except UserError as error:
            self.post_message(AnalysisEnded(view, job, None, error=error))
            return
        self.post_message(AnalysisEnded(view, job, analysis, RowMarks.of(analysis)))

    @on(AnalysisProgress)
    def _progressed(self, message: AnalysisProgress) -> None:
        if message.view is self.view and self._job is not None:
            self.analysis_progress = message.progress
            self.refresh_status()
            self.refresh_report()

    @on(AnalysisEnded)
    def _ended(self, message: AnalysisEnded) -> None:
        if message.view is not self.view or message.job is not self._job:
            return
        self._job, self.analysis_progress = None, None
        if message.analysis is not None and message.marks is not None:
            message.view.take(message.analysis, message.marks)
            self.rows.invalidate()
            self.analysis_taken(message.analysis)
        else:
            message.view.analysis_error = message.error
        self.refresh_status()
        self.refresh_report()

    def analysis_taken(self, analysis: Analysis) -> None:
        """Called when it is known what every row is."""

    # What is shown.

    @property
    def shows_report(self) -> bool:
        """Whether the whole file is shown instead of its rows."""
        return bool(self.query_one("#data-report").display)

    def refresh_report(self) -> None:
        """Bring problems and histogram up to the analysis."""
        view = self.view
        if view is None or not self.shows_report:
            return
        analysis = view.analysis
        head, chart = self.query_one("#data-numbers", TextBlock), self.query_one("#data-histogram", TextBlock)
        problems = self.query_one(ProblemList)
        if analysis is None:
            error = view.analysis_error or view.unknown
            progress = summarize(view, self.indexed, self.keys, self.analysis_progress)
            head.show(Content.styled(one_line(f"✗ {error}"), "$limit") if error is not None else progress)
            problems.show(())
            chart.show(Content(""))
            return
        problems.show(analysis.problems)
        head.show(_numbers(analysis, self.masker_error))
        width, height = max(20, self.size.width - 4), max(3, min(8, self.size.height // 4))
        lengths = analysis.lengths
        lines = draw_histogram(lengths.buckets, width, height) if lengths is not None else []
        chart.show(Content("\n".join(lines)))

    @on(OptionList.OptionSelected)
    def _problem_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        problems = self.query_one(ProblemList).problems
        if not self.shows_report or message.option_index >= len(problems):
            return
        problem = problems[message.option_index]
        self.show_rows()
        if problem.indices:
            self.show_filtered(RowFilter.of(problem))

    def action_report(self) -> None:
        """Show problems and statistics of the whole file, or its rows again."""
        if self.view is None:
            return
        if self.shows_report:
            self.show_rows()
            return
        self.show_only("data-report")
        self.refresh_report()
        # At once, where focus() would do it later: the next key may be there already.
        self.screen.set_focus(self.query_one(ProblemList))

    def show_rows(self) -> None:
        """Show the rows, if the report is shown in their place."""
        if self.shows_report:
            self.show_only("data-body")
            # At once for the next key, and again after the ask bar, which is about to give the focus back.
            self.screen.set_focus(self.rows)
            self.rows.focus()

    def show_filtered(self, chosen: RowFilter | None) -> None:
        """List only some rows, or all again."""
        raise NotImplementedError


def _numbers(analysis: Analysis, uncounted: UserError | None) -> Content:
    """Rows used and dropped by reason, and the percentiles, or why there are none."""
    dropped = describe_dropped(analysis.dropped)
    lines = [f"{counted(analysis.rows, 'row')} read · {spaced(analysis.used)} used · {dropped}"]
    if (lengths := analysis.lengths) is not None:
        lines.append(
            f"tokens: shortest {spaced(lengths.min)} · half up to {spaced(lengths.p50)} · p95 {spaced(lengths.p95)} · "
            f"longest {spaced(lengths.max)} (row {spaced(lengths.longest + 1)}) "
            f"· learned {lengths.supervised_share:.0%}"
        )
    elif uncounted is not None:
        lines.append(one_line(f"tokens are not counted: {uncounted}", 400))
    if analysis.scripts:
        parts = sorted(analysis.scripts.items(), key=lambda item: -item[1])[:4]
        lines.append("scripts: " + ", ".join(f"{one_line(name, 20)} {spaced(count)}" for name, count in parts))
    if not analysis.problems:
        lines.append("No problems.")
    return Content("\n".join(lines))
