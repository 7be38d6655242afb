"""Filters and jumps to the rows that matter: those with one problem alone, the next of them, the longest."""

from __future__ import annotations

from core.units import format_count
from tui.datasets.marks import RowFilter, next_filter
from tui.panes.data.session import DatasetSession, Move


def next_kind(session: DatasetSession, step: int) -> Move:
    """The filter for the next kind of problem, or for the one before; all rows between the last and the first."""
    if session.view is None:
        return Move()
    if session.view.analysis is None:
        return Move(said=session.not_known)
    chosen = next_filter(session.view.analysis.problems, session.filter.code if session.filter else None, step)
    if chosen is None and session.filter is None:
        return Move(said="No problems, so there is nothing to filter by.")
    return Move(said="", relists=True, filter=chosen)


def next_problem(session: DatasetSession, index: int, step: int) -> Move:
    """The next row with a problem, or the one before; with a filter, the next of its rows."""
    view = session.view
    if view is None or view.unknown is not None:
        # Of a format that is not known the line above the rows says what helps.
        return Move()
    if session.filter is not None:
        rows = session.filter.indices
        return Move(rows[(session.filter.nearest(index) + step) % len(rows)])
    found = view.marks.after(index) if step > 0 else view.marks.before(index)
    if found is not None:
        return Move(found)
    return Move(said="No problems." if view.analysis is not None else session.not_known)


def longest_row(session: DatasetSession) -> Move:
    """The row with the most tokens; all rows are listed where a filter leaves it out."""
    if session.view is None:
        return Move()
    if session.view.analysis is None:
        return Move(said=session.not_known)
    lengths = session.view.analysis.lengths
    if lengths is None:
        why = f": {session.masker_error.message}" if session.masker_error is not None else "."
        return Move(said=f"The lengths of rows are not known{why}")
    said = f"The longest row: {format_count(lengths.max)} tokens."
    if session.filter is None or session.place_of(lengths.longest) is not None:
        return Move(lengths.longest, said)
    return Move(lengths.longest, f"{said} It is not “{session.filter.title}”; all rows are shown again.", relists=True)


def after_analysis(session: DatasetSession) -> Move:
    """The filter updated by an analysis; all rows where its problem is gone."""
    analysis = session.view.analysis if session.view is not None else None
    if session.filter is None or analysis is None:
        return Move()
    code = session.filter.code
    problem = analysis.problem(code)
    if problem is not None and problem.indices:
        return Move(said="", relists=True, filter=RowFilter.of(problem))
    return Move(said=f"No row is “{session.filter.title}” any more; all are shown.", relists=True)
