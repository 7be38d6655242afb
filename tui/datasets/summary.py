"""Summary of a dataset in a line: progress, use of its rows, and detected format."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content

from core.analysis.division import HELD_OUT
from core.analysis.problems import COLUMNS_NOT_READ, KINDS
from core.analysis.result import Analysis
from core.data.exclusion import EXCLUDED
from core.jobs.job import JobProgress
from core.text import one_line
from core.units import format_count
from tui.datasets.marks import OF_THE_WHOLE, RowFilter
from tui.datasets.view import DatasetView
from tui.keys import KeyTable

#: Reasons whose titles name a thing, which has a plural; the others describe rows.
_THINGS = frozenset({"bad_role", "bad_tool_call", "empty_answer"})
#: Maximum number of named reasons.
_REASONS = 4
#: Maximum characters for the names of unread columns; the report has all of them.
_NAMES = 40
#: Maximum number of lines of a summary.
LINES = 2

_Parts = list[tuple[str, str]]


def summarize(
    view: DatasetView, indexed: float, keys: KeyTable, progress_of: JobProgress | None = None, width: int | None = None
) -> Content:
    """The use of the rows if it is known; else rows and problems so far, the progress and the reason for the format.

    Args:
        view: The dataset.
        indexed: The indexed share of the file.
        keys: The key table with the user's changes.
        progress_of: The progress of a running analysis.
        width: Columns; the least important parts that do not fit in two lines are dropped. None for no limit.
    """
    count = view.marks.count
    if view.analysis is not None:
        # Rows that the user leaves out are marked, and are no problem.
        count -= view.analysis.dropped.get(EXCLUDED, 0)
        return summarize_analysis(view.analysis, count, keys, width, note=view.file.note)
    progress = describe_progress(indexed, progress_of)
    found = f"{counted(count, 'problem')} so far ({keys['data.problem'].display} shows them)" if count else ""
    rows = f"{counted(view.count, 'row')} so far" if indexed < 1 else counted(view.count, "row")
    reason = view.detection.reason if view.detection is not None else ""
    return _fitted([(rows, ""), (found, "$near"), (progress, ""), (reason, "")], width, keys)


def describe_progress(indexed: float, progress: JobProgress | None) -> str:
    """The progress of an analysis in a few words.

    Args:
        indexed: The indexed share of the file.
        progress: The progress of the running analysis; None before its first report.
    """
    if indexed < 1:
        return f"indexing {indexed:.0%}"
    if progress is None:
        return "checking every row"
    return f"{progress.activity} {progress.share:.0%}" if progress.share is not None else progress.activity


def describe_filter(chosen: RowFilter, keys: KeyTable, width: int | None = None) -> Content:
    """A filter in words: the problem of its rows, the keys that change the filter, and a remedy."""
    first = f"the first {format_count(len(chosen.indices))} are listed" if len(chosen.indices) < chosen.total else ""
    ways = f"{keys['data.filter'].display} next filter  {keys['data.back'].display} all rows"
    return _fitted([(chosen.title, "$near"), (ways, ""), (chosen.hint, ""), (first, "")], width, keys)


def describe_dropped(dropped: Mapping[str, int], most: int | None = None) -> str:
    """Dropped rows by reason, with at most ``most`` reasons: ``12 dropped: 2 no JSON``."""
    reasons = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    named = [_told(reason, count) for reason, count in reasons[:most]]
    if most is not None and (others := len(reasons) - len(named)):
        named.append(f"… {others} more" if named else f"… {counted(others, 'reason')}")
    total = f"{format_count(sum(dropped.values()))} dropped"
    return f"{total}: {', '.join(named)}" if named else total


def summarize_analysis(
    analysis: Analysis, count: int, keys: KeyTable, width: int | None = None, *, note: str = ""
) -> Content:
    """``400 used · 2 dropped: 2 no JSON · 12 problems · longest 212 tokens · p95 131 · learned 33 %``.

    Args:
        analysis: The result of the analysis.
        count: Rows with a problem.
        keys: The key table with the user's changes.
        width: As in :func:`summarize`. Reasons for dropped rows go first, as the report has all of them.
        note: A sentence on the file's encoding; empty for UTF-8.
    """
    for most in range(_REASONS, -1, -1):
        parts = _analyzed(analysis, count, keys, most, note)
        if width is None or len(_line(parts).wrap(width)) <= LINES:
            return _line(parts)
    return _fitted(_analyzed(analysis, count, keys, 1, note), width, keys)


def _analyzed(analysis: Analysis, count: int, keys: KeyTable, most: int, note: str) -> _Parts:
    """Parts of the summary, the most important first."""
    reasons = {reason: count for reason, count in analysis.dropped.items() if reason != HELD_OUT}
    held_out = analysis.dropped.get(HELD_OUT, 0)
    parts = [
        (f"{format_count(analysis.used)} used", ""),
        (f"{format_count(held_out)} held out" if held_out else "", ""),
        (describe_dropped(reasons, most), "$near" if reasons else ""),
    ]
    whole = [problem.kind.title for problem in analysis.problems if problem.code in OF_THE_WHOLE]
    parts += [(title, "$near") for title in whole]
    if count:
        parts.append((f"{counted(count, 'problem')} ({keys['data.problem'].display} shows them)", "$near"))
    elif not whole:
        parts.append(("no problems", ""))
    parts.append((note.rstrip("."), ""))
    unread = [problem.detail for problem in analysis.problems if problem.code == COLUMNS_NOT_READ]
    parts += [(f"columns not read: {one_line(names, _NAMES)}", "") for names in unread[:1]]
    if (lengths := analysis.lengths) is not None:
        parts += [(f"longest {format_count(lengths.max)} tokens", ""), (f"p95 {format_count(lengths.p95)}", "")]
        parts.append((f"learned {lengths.supervised_share:.0%}", ""))
    elif analysis.stop_learned is None:
        parts.append((f"tokens not counted ({keys['data.tokens'].display} says why)", ""))
    return parts


def _told(reason: str, count: int) -> str:
    """Rows dropped for a reason, in words; its code if it is unknown, as from a newer version."""
    kind = KINDS.get(reason)
    title = one_line(kind.title if kind is not None else reason, 60)
    return counted(count, title) if reason in _THINGS else f"{format_count(count)} {title}"


def _fitted(parts: _Parts, width: int | None, keys: KeyTable) -> Content:
    """The parts that fit, and the number of the others, which are in the report."""
    parts = [part for part in parts if part[0]]
    for kept in range(len(parts), 0, -1):
        more = f"… {len(parts) - kept} more ({keys['data.report'].display})"
        shown = _line([*parts[:kept], *([(more, "")] if kept < len(parts) else [])])
        if width is None or len(shown.wrap(width)) <= LINES:
            return shown
    return _line(parts[:1])


def _line(parts: _Parts) -> Content:
    """The nonempty parts, joined by dots."""
    return Content(" · ").join(Content.styled(one_line(text), style) for text, style in parts if text)


def counted(number: int, noun: str) -> str:
    """A count with its noun: ``1 row``, ``400 rows``."""
    return f"{format_count(number)} {noun}{'' if number == 1 else 's'}"
