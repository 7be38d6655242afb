"""A dataset in one line: how far it has been read, what is wrong with it, and what it was taken for."""

from __future__ import annotations

from textual.content import Content

from core.text import one_line
from tui.panes.dataset_view import DatasetView


def summarize(view: DatasetView, indexed: float, problem_key: str) -> Content:
    """Problems, progress and the reason of the format, with dots between them.

    Args:
        view: The dataset.
        indexed: Share of the file that has been indexed.
        problem_key: The key that goes to the next problem, as it is written.
    """
    count = len(view.problems)
    if indexed < 1:
        progress = f"indexing {indexed:.0%}"
    elif view.checked < view.count:
        progress = f"checking {view.checked / view.count:.0%}"
    else:
        progress = "" if count else "no problems"
    found = f"{counted(count, 'problem')} ({problem_key} shows them)" if count else ""
    reason = view.detection.reason if view.detection is not None else ""
    parts = [(text, style) for text, style in ((found, "$near"), (progress, ""), (reason, "")) if text]
    return Content(" · ").join(Content.styled(one_line(text), style) for text, style in parts)


def spaced(number: int) -> str:
    """A count with its thousands apart: ``1 000 000``."""
    return f"{number:,}".replace(",", " ")


def counted(number: int, noun: str) -> str:
    """A count with its noun: ``1 row``, ``400 rows``."""
    return f"{spaced(number)} {noun}{'' if number == 1 else 's'}"
