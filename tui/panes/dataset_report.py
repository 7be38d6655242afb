"""The whole file in the data pane: problems and statistics, found in the background, and ways to their rows."""

from __future__ import annotations

from dataclasses import dataclass

from textual import on, work
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList

from core.data.analysis import Analysis, Progress
from core.data.analyze import AnalysisCancelledError, AnalysisJob
from core.errors import UserError
from core.text import one_line
from tui.panes.dataset_masks import DatasetMasks
from tui.panes.dataset_plan import plan_analysis
from tui.panes.dataset_summary import spaced
from tui.panes.dataset_view import DatasetView
from tui.widgets.histogram import draw_histogram
from tui.widgets.problem_list import ProblemList
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
    """An analysis is done, or cannot be."""

    view: DatasetView
    job: AnalysisJob
    analysis: Analysis | None
    error: UserError | None = None


class DatasetReport(DatasetMasks):
    """Starts the analysis of a file, and shows what it finds."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._job: AnalysisJob | None = None
        self.analysis_progress: Progress | None = None

    def masker_changed(self) -> None:
        """Look at the whole file anew, as the model sees it."""
        self.start_analysis()

    def start_analysis(self) -> None:
        """Begin the analysis of the file that is shown; one under way is ended."""
        self.end_analysis()
        view = self.view
        if view is None or view.detection is None or self._is_loading:
            return
        try:
            request = plan_analysis(view.path, self.reading, self.plan if self.masker is not None else None)
        except UserError:
            # The model has gone since it was read; the next configuration starts over.
            return
        view.analysis = None
        self._job = AnalysisJob(request)
        self._analyze(view, self._job)

    def end_analysis(self) -> None:
        """End the analysis under way, if there is one."""
        self.analysis_progress = None
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
            self.post_message(AnalysisEnded(view, job, None, error))
            return
        self.post_message(AnalysisEnded(view, job, analysis))

    @on(AnalysisProgress)
    def _progressed(self, message: AnalysisProgress) -> None:
        if message.view is self.view and self._job is not None:
            self.analysis_progress = message.progress
            self.refresh_status()

    @on(AnalysisEnded)
    def _ended(self, message: AnalysisEnded) -> None:
        if message.view is not self.view or message.job is not self._job:
            return
        self._job, self.analysis_progress = None, None
        if message.analysis is not None:
            message.view.take(message.analysis)
        elif message.error is not None:
            message.view.analysis_error = message.error
        self.refresh_status()
        self.refresh_report()

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
            head.show(Content(one_line(f"✗ {error}" if error is not None else "Looking at every row …")))
            problems.show(())
            chart.show(Content(""))
            return
        problems.show(analysis.problems)
        head.show(_numbers(analysis))
        width, height = max(20, self.size.width - 4), max(3, min(8, self.size.height // 4))
        lengths = analysis.lengths
        lines = draw_histogram(lengths.buckets, width, height) if lengths is not None else []
        chart.show(Content("\n".join(lines)))

    @on(OptionList.OptionSelected)
    def _problem_chosen(self, message: OptionList.OptionSelected) -> None:
        message.stop()
        problem = self.query_one(ProblemList).problems[message.option_index]
        self.action_report()
        if problem.indices:
            self.rows.cursor = problem.indices[0]
            self.set_status(f"The first of {spaced(problem.count)}: {problem.kind.title}.")

    def action_report(self) -> None:
        """Show problems and statistics of the whole file, or its rows again."""
        raise NotImplementedError

    def action_longest(self) -> None:
        """Go to the row with the most tokens."""
        view = self.view
        if view is None:
            return
        lengths = view.analysis.lengths if view.analysis is not None else None
        if lengths is None:
            self.set_status("The longest row is not known yet." if self._job else "The lengths of rows are not known.")
        else:
            self.rows.cursor = lengths.longest
            self.set_status(f"The longest row: {spaced(lengths.max)} tokens.")


def _numbers(analysis: Analysis) -> Content:
    """Rows used and dropped by reason, and the percentiles."""
    dropped = ", ".join(f"{spaced(count)} {reason}" for reason, count in sorted(analysis.dropped.items()))
    rows = (
        f"{spaced(analysis.rows)} rows: {spaced(analysis.used)} used, {spaced(sum(analysis.dropped.values()))} dropped"
    )
    lines = [rows + (f" ({dropped})" if dropped else "")]
    if (lengths := analysis.lengths) is not None:
        lines.append(
            f"tokens: shortest {spaced(lengths.min)} · half up to {spaced(lengths.p50)} · p95 {spaced(lengths.p95)} · "
            f"longest {spaced(lengths.max)} (row {spaced(lengths.longest + 1)}) "
            f"· learned {lengths.supervised_share:.0%}"
        )
    if analysis.scripts:
        parts = sorted(analysis.scripts.items(), key=lambda item: -item[1])[:4]
        lines.append("scripts: " + ", ".join(f"{one_line(name, 20)} {spaced(count)}" for name, count in parts))
    if not analysis.problems:
        lines.append("No problems.")
    return Content("\n".join(lines))
