"""Session of the Data pane, without widgets: the open file, its filter and search, and cursor moves."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from core.analysis.job import AnalysisJob, analysis_job
from core.analysis.problems import FileLine
from core.analysis.result import Analysis, AnalysisRequest
from core.config.document import ConfigDocument
from core.data.exclusion import Exclusion
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import is_hub_entry
from core.jobs.job import JobCancelledError, JobProgress
from core.path_kind import path_kind
from core.paths import working_directory
from core.template.sandboxed import RowMasks
from core.text import one_line
from core.units import format_count
from tui.datasets.losses import BY_LOSS, WORST, FileLosses
from tui.datasets.marks import RowFilter, RowMarks, RowOrder, next_filter
from tui.datasets.plan import TokenPlan, plan_data
from tui.datasets.view import DatasetView, Match, Turn, paced
from tui.files import data_paths, entry_text, follow_links
from tui.keys import KeyTable
from tui.session import DataPlace


@dataclass(frozen=True)
class Move:
    """Result of a key that moves the cursor or changes the filter."""

    index: int | None = None
    """The row to move to, which is listed; None to stay."""
    said: str | None = None
    """A message in place of the summary; empty to show the summary again, None for no change."""
    relists: bool = False
    """True to set ``filter`` first."""
    filter: RowFilter | None = None
    """The new filter; None for all rows."""
    landing: int = 0
    """1 to scroll the row to its first match, -1 to its last, 0 for neither."""


class DatasetSession:
    """Open dataset, with rows numbered from 0, and a list of all rows or of the filtered ones."""

    def __init__(self) -> None:
        self.plan = plan_data(ConfigDocument())
        """The configuration's plan for reading and tokenizing rows."""
        self.view: DatasetView | None = None
        """The open dataset."""
        self.indexed = 1.0
        """The indexed share of the file."""
        self.filter: RowFilter | None = None
        """The filter of the list; None for all rows."""
        self.masks: RowMasks | None = None
        """Tokenizer and template, once they have been loaded."""
        self.masker_error: UserError | None = None
        """The error that prevents loading them."""
        self.is_loading = False
        """True while they are being loaded."""
        self.job: AnalysisJob | None = None
        """The running analysis."""
        self.progress: JobProgress | None = None
        """The progress of the analysis."""
        self.term = ""
        """The last searched text, which is highlighted."""
        self.losses: FileLosses | None = None
        """The losses of the rows after a run; None if no run that trained on the file was measured."""
        self.has_looked_up = False
        """True once the losses of the open file have been looked up."""
        self.exclusion = Exclusion(())
        """``data.exclude`` of the configuration."""
        self.loss_hint = ""
        """The keys for rows that are not learned, with their actions."""
        self._request: AnalysisRequest | None = None

    def open(self, view: DatasetView) -> None:
        """Show another dataset with all of its rows."""
        self.close()
        self.view, self.filter, self.indexed = view, None, 1.0
        self.losses, self.has_looked_up = None, False

    def close(self) -> None:
        """Close the dataset, which ends its scans."""
        self.end_analysis()
        if self.view is not None:
            self.view.close()

    # The list.

    @property
    def listed(self) -> Sequence[int]:
        """The numbers of the listed rows."""
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
        """True if the list has token columns; they stay while another tokenizer is loaded."""
        known = self.view is not None and self.view.detection is not None
        return known and (self.masks is not None or (self.is_loading and self.masker_error is None))

    @property
    def columns(self) -> tuple[str, ...]:
        """The headings of the list."""
        if self.view is None:
            return ()
        counts = ("tok", "learned") if self.has_counts else ()
        return (*counts, *(("loss",) if self.losses is not None else ()), *self.view.columns)

    # Losses after a run.

    def path_of(self, place: FileLine) -> str:
        """Path of the file of a row."""
        if self.view is None:
            return place.file
        path = self.view.data_path
        return str(path / place.file if self.view.is_directory else path)

    def is_out(self, place: FileLine) -> bool:
        """True if ``data.exclude`` leaves a row out."""
        return self.exclusion.names(self.path_of(place), place.line)

    def loss_word(self, index: int) -> str:
        """Cell of a row in the column of losses."""
        return "" if self.losses is None else self.losses.word(index, self.is_out)

    def order(self, code: str) -> RowOrder | None:
        """An order by loss; None without losses, or for another code."""
        if self.losses is None or code not in (WORST, BY_LOSS):
            return None
        return self.losses.order(code, self.is_out, self.loss_hint)

    def turns(self, index: int) -> list[Turn]:
        """The turns of a row, then the model's own answer if its loss is among the highest."""
        own = self.losses.turns(index) if self.losses is not None else ()
        return [*(self.view.turns(index) if self.view is not None else ()), *own]

    async def load_masks(self) -> bool:
        """Load tokenizer and template; returns True if the plan is still the same."""
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
        """The analysis to start; None if it is done, is running, or cannot start yet.

        It starts once the file is indexed, so that it is not read twice at a time, the format is known, and the
        tokenizer has been loaded or has failed to load. An outdated result is dropped.
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
        """Run an analysis; returns True if it ended with a result or an error, False if it is outdated.

        Args:
            job: The job from :meth:`next_job`.
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
        """Drop the result of the analysis; a running analysis is ended."""
        self.end_analysis()
        if self.view is not None:
            self.view.forget()

    def end_analysis(self) -> None:
        """End a running analysis."""
        self.progress = self._request = None
        if self.job is not None:
            self.job.close()
            self.job = None

    @property
    def not_known(self) -> str:
        """The message for facts about all rows that are not known yet."""
        error = self.view.analysis_error or self.view.unknown if self.view is not None else None
        if error is not None:
            return f"✗ {error}"
        share = ""
        if (progress := self.progress) is not None and progress.activity == "reading" and progress.total:
            share = f" ({progress.share:.0%} so far)"
        return f"Every row must be looked at first{share}."

    # Moves.

    async def find(self, index: int, step: int, keys: KeyTable, say: Callable[[str], object]) -> Move:
        """Search the listed rows for the text.

        Args:
            index: The row before the first searched one, in search direction.
            step: 1 downwards, -1 upwards.
            keys: The key table with the user's changes.
            say: Called in a thread with a progress message.
        """
        view = self.view
        if view is None:
            return Move()
        among: Sequence[int] | None = self.filter.indices if self.filter is not None else None
        if among is not None and isinstance(self.filter, RowOrder):
            # In the order of their numbers, as the search goes.
            among = sorted(among)
        total, given_up = format_count(len(self.listed)), threading.Event()

        def report(seen: int) -> None:
            say(f"searching for {self.term}: {format_count(seen)} of {total} rows · esc stops")

        try:
            search = asyncio.to_thread(view.search, self.term, index, step, given_up.is_set, paced(report), among)
            match = await search
        except UserError as error:
            view.failure = error
            match = None
        finally:
            given_up.set()
        return self._found(match, step, keys) if view is self.view else Move()

    def _found(self, match: Match | None, step: int, keys: KeyTable) -> Move:
        if match is None:
            rows = "None of these rows" if self.filter is not None else "No row"
            return Move(said=f"{rows} has “{one_line(self.term, 60)}” in it.")
        if self.place_of(match.index) is None:
            # The list has changed meanwhile.
            return Move(said="")
        return Move(
            match.index,
            f"{self.term}: row {format_count(match.index + 1)}"
            + (", from the other end" if match.wrapped else "")
            + f" · {keys['data.next'].display} next  {keys['data.previous'].display} previous",
            landing=step,
        )

    def row_number(self, text: str) -> Move:
        """The row with a typed number, from 1; with a filter, the nearest listed row."""
        digits = text.replace(" ", "").replace(",", "").replace("_", "")
        if not digits or self.view is None:
            return Move()
        last = self.view.count
        # int() is slow for very long numbers.
        if not digits.isdecimal() or len(digits) > 20 or not 1 <= int(digits) <= last:
            return Move(said=f"✗ There is no row {one_line(text, 40)}; rows go from 1 to {format_count(last)}.")
        index, listed = int(digits) - 1, self.filter
        if listed is None or listed.place(index) is not None:
            return Move(index)
        near = listed.indices[listed.nearest(index)]
        none = f"Row {format_count(index + 1)} is not “{listed.title}”"
        return Move(near, f"{none}; the nearest that is, is row {format_count(near + 1)}.")

    def next_kind(self, step: int) -> Move:
        """Filter by the next or previous kind of problem; the cycle includes all rows."""
        if self.view is None:
            return Move()
        if self.view.analysis is None and self.losses is None:
            return Move(said=self.not_known)
        problems = self.view.analysis.problems if self.view.analysis is not None else ()
        orders = [order for code in (WORST, BY_LOSS) if (order := self.order(code)) is not None]
        chosen = next_filter(problems, self.filter.code if self.filter else None, step, orders)
        if chosen is None and self.filter is None:
            return Move(said="No problems, so there is nothing to filter by.")
        return Move(said="", relists=True, filter=chosen)

    def next_problem(self, index: int, step: int) -> Move:
        """The next or previous row with a problem; with a filter, of its rows."""
        view = self.view
        if view is None or view.unknown is not None:
            # For an unknown format, the line above the rows shows the remedy.
            return Move()
        if self.filter is not None:
            rows = self.filter.indices
            return Move(rows[(self.filter.nearest(index) + step) % len(rows)])
        found = view.marks.after(index) if step > 0 else view.marks.before(index)
        if found is not None:
            return Move(found)
        return Move(said="No problems." if view.analysis is not None else self.not_known)

    def longest_row(self) -> Move:
        """The row with the most tokens; clears a filter that excludes it."""
        if self.view is None:
            return Move()
        if self.view.analysis is None:
            return Move(said=self.not_known)
        lengths = self.view.analysis.lengths
        if lengths is None:
            why = f": {self.masker_error.message}" if self.masker_error is not None else "."
            return Move(said=f"The lengths of rows are not known{why}")
        said = f"The longest row: {format_count(lengths.max)} tokens."
        if self.filter is None or self.place_of(lengths.longest) is not None:
            return Move(lengths.longest, said)
        return Move(lengths.longest, f"{said} It is not “{self.filter.title}”; all rows are shown again.", relists=True)

    def after_analysis(self) -> Move:
        """The filter after a new analysis; all rows if its problem is gone."""
        analysis = self.view.analysis if self.view is not None else None
        if self.filter is None or analysis is None or isinstance(self.filter, RowOrder):
            return Move()
        code = self.filter.code
        problem = analysis.problem(code)
        if problem is not None and problem.indices:
            return Move(said="", relists=True, filter=RowFilter.of(problem))
        return Move(said=f"No row is “{self.filter.title}” any more; all are shown.", relists=True)


def _load_masks(plan: TokenPlan) -> RowMasks:
    masks = RowMasks(plan.mask_settings())
    masks.check()
    return masks


def _analyze(job: AnalysisJob, report: Callable[[JobProgress], None]) -> tuple[Analysis, RowMarks]:
    analysis = job.run(report)
    return analysis, RowMarks.of(analysis)


class Return:
    """Return to a place of the last session, step by step; canceled if the user moves elsewhere."""

    def __init__(self) -> None:
        self.place: DataPlace | None = None
        """The place, until it is reached; it stays while its file cannot be opened."""
        self._is_at_row = False

    def begin(self, place: DataPlace) -> None:
        """Start returning to a place."""
        self.place, self._is_at_row = place, False

    def drop(self) -> None:
        """Cancel, as another file is opened."""
        self.place = None

    def moved_to(self, index: int) -> None:
        """Note the cursor's row; cancel if the user moved it elsewhere."""
        if self.place is not None and index not in ((self.place.row,) if self._is_at_row else (0, self.place.row)):
            self.place = None

    def step(self, session: DatasetSession) -> Move:
        """The next possible step in the open file."""
        place, view = self.place, session.view
        if place is None or view is None:
            return Move()
        is_whole = view.file.complete or view.failure is not None
        if not self._is_at_row and (place.row < view.count or is_whole):
            self._is_at_row = True
            if not place.filter:
                self.place = None
            return Move(min(place.row, max(view.count - 1, 0)))
        if self._is_at_row and place.filter in (WORST, BY_LOSS):
            if not session.has_looked_up:
                return Move()
            self.place = None
            order = session.order(place.filter)
            return Move() if order is None else Move(relists=True, filter=order)
        if self._is_at_row and (view.analysis is not None or view.analysis_error is not None):
            self.place = None
            problem = view.analysis.problem(place.filter) if view.analysis is not None else None
            if problem is not None and problem.indices:
                return Move(relists=True, filter=RowFilter.of(problem))
        return Move()


def sample_path() -> Path:
    """The path of the sample tickets."""
    return Path(str(files("sample_data").joinpath("tickets_train.jsonl")))


class Opener:
    """State of opening files: the file that is being opened, or is missing.

    Args:
        session: The session with the shown file.
    """

    def __init__(self, session: DatasetSession) -> None:
        self._session = session
        self.opening: Path | None = None
        """The file being opened."""
        self.missing: Path | None = None
        """The requested file that is not on this machine."""
        self.failure: Path | None = None
        """The file that could not be opened, while its error is shown."""
        self._followed: Path | None = None

    def begin(self, path: Path) -> None:
        """Note that a file is being opened."""
        self.opening, self.missing, self.failure = path, None, None

    def follow(self, document: ConfigDocument) -> Path | None:
        """The training file of a configuration, if it has changed and is not shown yet."""
        path = next(iter(data_paths(document, "train")), None)
        before, self._followed = self._followed, path
        if path is None or path == before:
            return None
        return path if not self.is_at(path) else None

    def is_at(self, path: Path) -> bool:
        """True if a file is being opened, or is shown while none is being opened."""
        shown = self.opening or self._shown
        return shown is not None and follow_links(shown) == follow_links(path)

    def forget_failure(self, document: ConfigDocument) -> bool:
        """Forget a failed file that is no longer configured; returns True if there was one."""
        if self.failure is None or self.failure in data_paths(document, "train"):
            return False
        self.failure = None
        return True

    def failed(self, path: Path, error: UserError, keys: KeyTable) -> UserError:
        """Note a failure to open a file; returns the error with a remedy."""
        self.opening, self.failure = None, path
        if not isinstance(error, NotFetchedError):
            if path_kind(path) == "config":
                # A short message, as the line is short.
                name = one_line(path.name, 40)
                hint = f"{keys['config.open'].display} in the Config pane opens it."
                return UserError(f"{name} is a configuration, not data.", hint)
            return error
        self.missing = path
        hint = f"{keys['data.reload'].display} asks whether to download it; outside the app, {error.hint}"
        return UserError(error.message, hint)

    @property
    def start(self) -> str:
        """The initial text when a path is asked for."""
        if (path := self._shown) is None:
            return ""
        return entry_text(path) if is_hub_entry(path) else f"{path.parent}/"

    @property
    def directory(self) -> Path:
        """The directory to browse: the shown file's, else the working directory."""
        path = self._shown
        return working_directory() if path is None or is_hub_entry(path) else path.parent

    @property
    def _shown(self) -> Path | None:
        view = self._session.view
        return view.path if view is not None else None
