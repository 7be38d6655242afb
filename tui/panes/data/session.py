"""The session of the data pane: the open file, its reading, and the facts about its rows; no widget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.analysis.job import AnalysisJob, analysis_job
from core.analysis.result import Analysis, AnalysisRequest
from core.config.document import ConfigDocument
from core.errors import UserError
from core.jobs.job import JobCancelledError, JobProgress
from core.template.sandboxed import RowMasks
from tui.datasets.marks import RowFilter, RowMarks
from tui.datasets.plan import TokenPlan, plan_data
from tui.datasets.view import DatasetView


@dataclass(frozen=True)
class Move:
    """A move: the result of a key that goes to a row."""

    index: int | None = None
    """A row, which is listed; None to stay at the cursor."""
    said: str | None = None
    """A message in place of the summary; empty for the summary again, None for no change."""
    relists: bool = False
    """Whether the list is filtered anew first."""
    filter: RowFilter | None = None
    """The new filter, then; None for all rows."""
    landing: int = 0
    """Whether the row is scrolled to its first match (1), or to its last (-1)."""


class DatasetSession:
    """A file of rows, numbered from 0; the list has all of them, or those of a filter."""

    def __init__(self) -> None:
        self.plan = plan_data(ConfigDocument())
        """The data plan of the configuration: how rows are read and tokenized."""
        self.view: DatasetView | None = None
        """The file."""
        self.indexed = 1.0
        """Share of the file that has been indexed."""
        self.filter: RowFilter | None = None
        """The filter of the list; None for all rows."""
        self.masks: RowMasks | None = None
        """Tokenizer and template, once they have been loaded."""
        self.masker_error: UserError | None = None
        """The reason why they cannot be loaded."""
        self.is_loading = False
        """Whether they are being loaded."""
        self.job: AnalysisJob | None = None
        """The running analysis."""
        self.progress: JobProgress | None = None
        """The progress of the analysis."""
        self._request: AnalysisRequest | None = None

    def open(self, view: DatasetView) -> None:
        """Show another file, with all of its rows."""
        self.close()
        self.view, self.filter, self.indexed = view, None, 1.0

    def close(self) -> None:
        """Close the file; that ends its scans too."""
        self.end_analysis()
        if self.view is not None:
            self.view.close()

    # The list.

    @property
    def listed(self) -> Sequence[int]:
        """The rows in the list."""
        if self.filter is not None:
            return self.filter.indices
        return range(self.view.count if self.view is not None else 0)

    def index_at(self, place: int) -> int:
        """The number of the row at a place of the list."""
        if self.filter is None:
            return place
        return self.filter.indices[place] if place < len(self.filter.indices) else 0

    def place_of(self, index: int) -> int | None:
        """The place of a row in the list; None if the filter leaves it out."""
        return index if self.filter is None else self.filter.place(index)

    @property
    def has_counts(self) -> bool:
        """Whether the list has columns for tokens; they stay while another tokenizer is loaded."""
        known = self.view is not None and self.view.detection is not None
        return known and (self.masks is not None or (self.is_loading and self.masker_error is None))

    @property
    def columns(self) -> tuple[str, ...]:
        """Headings of the list; lengths only where there is a tokenizer to count them."""
        if self.view is None:
            return ()
        return (*(("tok", "learned") if self.has_counts else ()), *self.view.columns)

    async def load_masks(self) -> bool:
        """Load tokenizer and template; returns whether the result, or the failure, belongs to the present plan."""
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
        """The analysis to start; None if it has been done, is running, or cannot start yet.

        It waits until all rows have been found, so that the file is not read through twice, until the format is known,
        and until there is a tokenizer or none can be had. An outdated result is dropped.
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
            # The model has been removed since it was loaded.
            self.forget_analysis()
            view.analysis_error = error
            return None
        is_read = view.detection is not None and view.reading == self.plan.reading.of(view.path)
        if not is_read or not view.file.complete or view.failure or self.is_loading or request == self._request:
            return None
        self.forget_analysis()
        self._request, self.job = request, analysis_job(request)
        return self.job

    async def analyze(self, job: AnalysisJob, report: Callable[[JobProgress], None]) -> bool:
        """Analyze every row; returns whether there is a result, or a reason why there is none.

        Args:
            job: From :meth:`next_job`.
            report: Called in a thread with the progress.
        """
        view, analysis, marks, error = self.view, None, RowMarks(), None
        try:
            analysis, marks = await asyncio.to_thread(_analyze, job, report)
        except JobCancelledError:
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
        """Drop an outdated analysis; a running one is ended."""
        self.end_analysis()
        if self.view is not None:
            self.view.forget()

    def end_analysis(self) -> None:
        """End the running analysis, if there is one."""
        self.progress = self._request = None
        if self.job is not None:
            self.job.close()
            self.job = None

    @property
    def not_known(self) -> str:
        """The reason why facts that depend on every row are unknown."""
        error = self.view.analysis_error or self.view.unknown if self.view is not None else None
        if error is not None:
            return f"✗ {error}"
        share = ""
        if (progress := self.progress) is not None and progress.activity == "reading" and progress.total:
            share = f" ({progress.share:.0%} so far)"
        return f"Every row must be looked at first{share}."


def _load_masks(plan: TokenPlan) -> RowMasks:
    masks = RowMasks(plan.mask_settings())
    masks.check()
    return masks


def _analyze(job: AnalysisJob, report: Callable[[JobProgress], None]) -> tuple[Analysis, RowMarks]:
    analysis = job.run(report)
    return analysis, RowMarks.of(analysis)
