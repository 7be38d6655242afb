"""The session of the data pane: the file that is shown, how it is read, and what is known of its rows; no widget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.analysis.job import AnalysisCancelledError, AnalysisJob
from core.analysis.result import Analysis, AnalysisRequest, Progress
from core.config.document import ConfigDocument
from core.errors import UserError
from core.template.sandboxed import RowMasks
from tui.datasets.marks import RowFilter, RowMarks
from tui.datasets.plan import TokenPlan, plan_data
from tui.datasets.view import DatasetView


@dataclass(frozen=True)
class Move:
    """Where a key leads."""

    index: int | None = None
    """A row, which is listed; None for where the cursor is."""
    said: str | None = None
    """A sentence in place of the summary; empty for the summary again, None for what is there."""
    relists: bool = False
    """Whether other rows are listed before."""
    filter: RowFilter | None = None
    """Which ones, then; None for all."""
    landing: int = 0
    """Whether the row is scrolled to the first text that is marked (1), or to the last (-1)."""


class DatasetSession:
    """A file of rows, numbered from 0; the list has all of them, or those that a filter leaves."""

    def __init__(self) -> None:
        self.plan = plan_data(ConfigDocument())
        """How the configuration has rows read, and made into tokens."""
        self.view: DatasetView | None = None
        """The file."""
        self.indexed = 1.0
        """Share of the file that has been indexed."""
        self.filter: RowFilter | None = None
        """Which of its rows are listed; None for all."""
        self.masks: RowMasks | None = None
        """Tokenizer and template, once they have been read."""
        self.masker_error: UserError | None = None
        """Why they cannot be."""
        self.is_loading = False
        """Whether they are being read."""
        self.job: AnalysisJob | None = None
        """The analysis under way."""
        self.progress: Progress | None = None
        """How far it is."""
        self._request: AnalysisRequest | None = None

    def open(self, view: DatasetView) -> None:
        """Show another file, all of its rows."""
        self.close()
        self.view, self.filter, self.indexed = view, None, 1.0

    def close(self) -> None:
        """Give the file back; that ends the scans too."""
        self.end_analysis()
        if self.view is not None:
            self.view.close()

    # The list.

    @property
    def listed(self) -> Sequence[int]:
        """The rows of the list."""
        if self.filter is not None:
            return self.filter.indices
        return range(self.view.count if self.view is not None else 0)

    def index_at(self, place: int) -> int:
        """The number of the row at a place of the list."""
        if self.filter is None:
            return place
        return self.filter.indices[place] if place < len(self.filter.indices) else 0

    def place_of(self, index: int) -> int | None:
        """The place of a row in the list; None if a filter leaves it out."""
        return index if self.filter is None else self.filter.place(index)

    @property
    def has_counts(self) -> bool:
        """Whether the list has columns for tokens; they stay while another tokenizer is read."""
        known = self.view is not None and self.view.detection is not None
        return known and (self.masks is not None or (self.is_loading and self.masker_error is None))

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the list; lengths only where a tokenizer is there to tell them."""
        if self.view is None:
            return ()
        return (*(("tok", "sup") if self.has_counts else ()), *self.view.columns)

    async def load_masks(self) -> bool:
        """Read tokenizer and template; whether they are, or why they cannot be, those of the present plan."""
        plan, masks, error = self.plan.tokens, None, None
        try:
            masks = await asyncio.to_thread(_load_masks, plan)
        except UserError as failed:
            error = failed
        if plan != self.plan.tokens:
            return False
        self.is_loading, self.masks, self.masker_error = False, masks, error
        return True

    # Every row.

    def next_job(self) -> AnalysisJob | None:
        """The analysis that is to be begun; None if it has been done, is under way, or cannot begin yet.

        It waits until all rows have been found, so that the file is not read through twice, until it is known how they
        are read, and until there is a tokenizer or none can be had. What was found and no longer holds is forgotten.
        """
        view = self.view
        if view is None:
            return None
        try:
            request = self.plan.request(view.path, with_tokens=self.masks is not None)
            before = self._request
            if before is not None and before != self.plan.request(view.path, with_tokens=before.masks is not None):
                self.forget_analysis()
        except UserError as error:
            # The model has gone since it was read.
            self.forget_analysis()
            view.analysis_error = error
            return None
        is_read = view.detection is not None and view.reading == self.plan.reading.of(view.path)
        if not is_read or not view.file.complete or view.failure or self.is_loading or request == self._request:
            return None
        self.forget_analysis()
        self._request, self.job = request, AnalysisJob(request)
        return self.job

    async def analyze(self, job: AnalysisJob, report: Callable[[Progress], None]) -> bool:
        """Look at every row; whether there is a result, or a reason why there is none.

        Args:
            job: From :meth:`next_job`.
            report: Told in a thread how far it is.
        """
        view, analysis, marks, error = self.view, None, RowMarks(), None
        try:
            analysis, marks = await asyncio.to_thread(_analyze, job, report)
        except AnalysisCancelledError:
            return False
        except UserError as failed:
            error = failed
        if job is not self.job or view is None:
            return False
        self.job = self.progress = None
        if analysis is not None:
            view.take(analysis, marks)
        else:
            view.analysis_error = error
        return True

    def forget_analysis(self) -> None:
        """What was found no longer holds; an analysis under way is ended."""
        self.end_analysis()
        if self.view is not None:
            self.view.forget()

    def end_analysis(self) -> None:
        """End the analysis under way, if there is one."""
        self.progress = self._request = None
        if self.job is not None:
            self.job.close()
            self.job = None

    @property
    def not_known(self) -> str:
        """Why what hangs on every row is not known."""
        error = self.view.analysis_error or self.view.unknown if self.view is not None else None
        if error is not None:
            return f"✗ {error}"
        share = ""
        if (progress := self.progress) is not None and progress.stage == "reading" and progress.total:
            share = f" ({progress.done / progress.total:.0%} so far)"
        return f"Every row must be looked at first{share}."


def _load_masks(plan: TokenPlan) -> RowMasks:
    masks = RowMasks(plan.mask_settings())
    masks.check()
    return masks


def _analyze(job: AnalysisJob, report: Callable[[Progress], None]) -> tuple[Analysis, RowMarks]:
    analysis = job.run(report)
    return analysis, RowMarks.of(analysis)
