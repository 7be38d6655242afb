"""A dataset in one line: how far it has been read, what becomes of its rows, and what it was taken for."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content

from core.data.analysis import Analysis, Progress
from core.text import one_line
from tui.keys import KeyTable
from tui.panes.dataset_marks import OF_THE_WHOLE, RowFilter
from tui.panes.dataset_view import DatasetView

#: Reasons that are named one by one; the rows of the others are counted together.
_REASONS = 4


def summarize(view: DatasetView, indexed: float, keys: KeyTable, progress_of: Progress | None = None) -> Content:
    """What becomes of the rows once that is known; until then problems seen, progress and the reason of the format.

    Args:
        view: The dataset.
        indexed: Share of the file that has been indexed.
        keys: The keys as the user has them.
        progress_of: How far the analysis is, while it is under way.
    """
    count = view.marks.count
    if view.analysis is not None:
        return _analyzed(view.analysis, count, keys)
    if indexed < 1:
        progress = f"indexing {indexed:.0%}"
    elif progress_of is not None:
        share = f" {progress_of.done / progress_of.total:.0%}" if progress_of.total else ""
        progress = f"{progress_of.stage}{share}"
    else:
        progress = "looking at every row"
    found = f"{counted(count, 'problem')} seen ({keys['data.problem'].display} shows them)" if count else ""
    reason = view.detection.reason if view.detection is not None else ""
    return _line([(found, "$near"), (progress, ""), (reason, "")])


def describe_filter(chosen: RowFilter, keys: KeyTable) -> Content:
    """What the rows that are listed have in common, what to do about it, and the keys that list others."""
    first = f"the first {spaced(len(chosen.indices))} are listed" if len(chosen.indices) < chosen.total else ""
    ways = f"{keys['data.filter'].display} next filter  {keys['data.back'].display} all rows"
    return _line([(chosen.title, "$near"), (first, ""), (chosen.hint, ""), (ways, "")])


def describe_dropped(dropped: Mapping[str, int], most: int | None = None) -> str:
    """``12 dropped: 10 overlong, 2 not_json``; ``most`` reasons by name, the rows of the others together."""
    reasons = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{spaced(count)} {one_line(reason, 40)}" for reason, count in reasons[:most]]
    if most is not None and (others := reasons[most:]):
        named.append(f"{spaced(sum(count for _, count in others))} for other reasons")
    total = f"{spaced(sum(dropped.values()))} dropped"
    return f"{total}: {', '.join(named)}" if named else total


def _analyzed(analysis: Analysis, count: int, keys: KeyTable) -> Content:
    """``400 used · 12 dropped: 10 overlong, 2 not_json · longest 212 · p95 131 · sup 33 % · 12 problems``."""
    dropped = describe_dropped(analysis.dropped, _REASONS)
    parts = [(f"{spaced(analysis.used)} used", ""), (dropped, "$near" if analysis.dropped else "")]
    if (lengths := analysis.lengths) is not None:
        parts += [(f"longest {spaced(lengths.max)}", ""), (f"p95 {spaced(lengths.p95)}", "")]
        parts.append((f"sup {lengths.supervised_share * 100:.0f} %", ""))
    elif analysis.stop_learned is None:
        parts.append((f"tokens not counted ({keys['data.tokens'].display} says why)", ""))
    whole = [problem.kind.title for problem in analysis.problems if problem.code in OF_THE_WHOLE]
    parts += [(title, "$near") for title in whole]
    if count:
        parts.append((f"{counted(count, 'problem')} ({keys['data.problem'].display} shows them)", "$near"))
    elif not whole:
        parts.append(("no problems", ""))
    return _line(parts)


def _line(parts: list[tuple[str, str]]) -> Content:
    """Parts with dots between them, empty ones left out."""
    return Content(" · ").join(Content.styled(one_line(text), style) for text, style in parts if text)


def spaced(number: int) -> str:
    """A count with its thousands apart: ``1 000 000``."""
    return f"{number:,}".replace(",", " ")


def counted(number: int, noun: str) -> str:
    """A count with its noun: ``1 row``, ``400 rows``."""
    return f"{spaced(number)} {noun}{'' if number == 1 else 's'}"
