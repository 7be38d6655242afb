"""A dataset in one line: how far it has been read, what is wrong with it, and what it was taken for."""

from __future__ import annotations

from textual.content import Content

from core.data.analysis import Analysis, Progress
from core.text import one_line
from tui.panes.dataset_view import DatasetView


def summarize(view: DatasetView, indexed: float, problem_key: str, progress_of: Progress | None = None) -> Content:
    """Problems, progress and the reason of the format, with dots between them.

    Args:
        view: The dataset.
        indexed: Share of the file that has been indexed.
        problem_key: The key that goes to the next problem, as it is written.
        progress_of: How far the analysis is, while it is under way.
    """
    count = len(view.problems)
    if view.analysis is not None:
        return _analyzed(view.analysis, count, problem_key)
    if indexed < 1:
        progress = f"indexing {indexed:.0%}"
    elif view.checked < view.count:
        progress = f"checking {view.checked / view.count:.0%}"
    elif progress_of is not None:
        share = f" {progress_of.done / progress_of.total:.0%}" if progress_of.total else ""
        progress = f"{progress_of.stage}{share}"
    else:
        progress = "" if count else "no problems"
    found = f"{counted(count, 'problem')} ({problem_key} shows them)" if count else ""
    reason = view.detection.reason if view.detection is not None else ""
    parts = [(text, style) for text, style in ((found, "$near"), (progress, ""), (reason, "")) if text]
    return Content(" · ").join(Content.styled(one_line(text), style) for text, style in parts)


def _analyzed(analysis: Analysis, count: int, problem_key: str) -> Content:
    """``412 used · 0 dropped · longest 212 · p95 131 · sup 33 % · no problems``."""
    dropped = sum(analysis.dropped.values())
    parts = [(f"{spaced(analysis.used)} used", ""), (f"{spaced(dropped)} dropped", "$near" if dropped else "")]
    if (lengths := analysis.lengths) is not None:
        parts += [(f"longest {spaced(lengths.max)}", ""), (f"p95 {spaced(lengths.p95)}", "")]
        parts.append((f"sup {lengths.supervised_share * 100:.0f} %", ""))
    parts.append((f"{counted(count, 'problem')} ({problem_key} shows them)", "$near") if count else ("no problems", ""))
    return Content(" · ").join(Content.styled(text, style) for text, style in parts)


def spaced(number: int) -> str:
    """A count with its thousands apart: ``1 000 000``."""
    return f"{number:,}".replace(",", " ")


def counted(number: int, noun: str) -> str:
    """A count with its noun: ``1 row``, ``400 rows``."""
    return f"{spaced(number)} {noun}{'' if number == 1 else 's'}"
