"""Ways to the rows that matter: those with a problem alone, the next of them, the longest."""

from __future__ import annotations

from core.analysis.result import Analysis
from tui.datasets.marks import RowFilter, next_filter
from tui.datasets.summary import spaced
from tui.datasets.view import DatasetView
from tui.panes.data.report import DatasetReport


class DatasetFilters(DatasetReport):
    """Lists the rows that have one problem, under their own numbers, and goes from problem to problem."""

    def show_filtered(self, chosen: RowFilter | None) -> None:
        """List only some rows, or all again; the cursor stays on its row, or goes to the next one that is listed."""
        if self.view is not None:
            self.show_rows()
            self._list(self.view, chosen)

    def _list(self, view: DatasetView, chosen: RowFilter | None) -> None:
        index = self.index
        self.filter = chosen
        if chosen is None:
            self.rows.show_part(view.count, index)
        else:
            self.rows.show_part(len(chosen.indices), chosen.nearest(index), view.count)
        self.set_status("")
        self.refresh_title()

    def analysis_taken(self, analysis: Analysis) -> None:
        """The filter goes on with what is known now; where its problem is gone, all rows are listed."""
        if self.filter is None or self.view is None:
            return
        code = self.filter.code
        problem = analysis.problem(code)
        still = RowFilter.of(problem) if problem is not None and problem.indices else None
        self._list(self.view, still)
        if still is None:
            self.set_status(f"No row has the problem {code} any more; all are shown.")

    def action_filter(self, step: int = 1) -> None:
        """The rows of the next kind of problem, or of the one before; all rows between the last and the first."""
        view = self.view
        if view is None:
            return
        if view.analysis is None:
            self.set_status(self._not_known)
            return
        chosen = next_filter(view.analysis.problems, self.filter.code if self.filter else None, step)
        if chosen is None and self.filter is None:
            self.set_status("No problems, so there is nothing to filter by.")
        else:
            self.show_filtered(chosen)

    def action_next_problem(self, step: int = 1) -> None:
        """Go to the next row with a problem, or to the one before; in a filter, to the next of its rows."""
        view = self.view
        if view is None:
            return
        if self.filter is not None:
            self.show_rows()
            self.rows.cursor = (self.rows.cursor + step) % len(self.filter.indices)
            return
        found = view.marks.after(self.index) if step > 0 else view.marks.before(self.index)
        if found is not None:
            self.go_to(found)
        else:
            self.set_status("No problems." if view.analysis is not None else self._not_known)

    def action_longest(self) -> None:
        """Go to the row with the most tokens."""
        view = self.view
        if view is None:
            return
        if view.analysis is None:
            self.set_status(self._not_known)
            return
        lengths = view.analysis.lengths
        if lengths is None:
            why = f": {self.masker_error.message}" if self.masker_error is not None else "."
            self.set_status(f"The lengths of rows are not known{why}")
            return
        said = f"The longest row: {spaced(lengths.max)} tokens."
        if not self.go_to(lengths.longest):
            said += f" It has no {self.filter.code if self.filter else 'problem'}; all rows are shown again."
            self.show_filtered(None)
            self.go_to(lengths.longest)
        self.set_status(said)

    @property
    def _not_known(self) -> str:
        """Why what hangs on every row is not known."""
        error = self.view.analysis_error or self.view.unknown if self.view is not None else None
        if error is not None:
            return f"✗ {error}"
        share = ""
        if (progress := self.analysis_progress) is not None and progress.stage == "reading" and progress.total:
            share = f" ({progress.done / progress.total:.0%} so far)"
        return f"Every row must be looked at first{share}."
