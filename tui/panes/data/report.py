"""The report of the data pane: problems and statistics of the whole file."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size

from core.analysis.division import HELD_OUT
from core.analysis.result import Analysis
from core.errors import UserError
from core.text import one_line
from core.units import format_count
from tui.datasets.summary import counted, describe_dropped, summarize
from tui.keys import KeyTable
from tui.panes.data.session import DatasetSession
from tui.widgets.charts.histogram import draw_histogram
from tui.widgets.lists.problem_list import ProblemList
from tui.widgets.text_block import TextBlock


class Report(Vertical):
    """Problems and lengths of every row."""

    DEFAULT_CSS = """
    Report {
        height: 1fr;
        overflow-y: auto;
        & #data-problems { margin: 1 0; }
        & #data-histogram { color: $primary; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.problems = ProblemList(id="data-problems")
        self._numbers = TextBlock(id="data-numbers")
        self._histogram = TextBlock(id="data-histogram")

    def compose(self) -> ComposeResult:
        """The numbers, the problems and the histogram of lengths."""
        yield self._numbers
        yield self.problems
        yield self._histogram

    def show(self, session: DatasetSession, keys: KeyTable, size: Size) -> None:
        """Show the analysis of all rows, or its progress.

        Args:
            session: The file.
            keys: The key table with the user's changes.
            size: The available size.
        """
        view = session.view
        if view is None or not self.display:
            return
        analysis = view.analysis
        if analysis is None:
            error = view.analysis_error or view.unknown
            progress = summarize(view, session.indexed, keys, session.progress)
            self._numbers.show(Content.styled(one_line(f"✗ {error}"), "$limit") if error is not None else progress)
            self.problems.show(())
            self._histogram.show(Content(""))
            return
        self.problems.show(analysis.problems)
        self._numbers.show(_numbers(analysis, session.masker_error))
        width, height = max(20, size.width - 4), max(3, min(8, size.height // 4))
        lines = draw_histogram(analysis.lengths.buckets, width, height) if analysis.lengths is not None else []
        self._histogram.show(Content("\n".join(lines)))


def _numbers(analysis: Analysis, uncounted: UserError | None) -> Content:
    """Rows used and dropped by reason, and the percentiles, or the reason why there are none."""
    dropped = describe_dropped({reason: count for reason, count in analysis.dropped.items() if reason != HELD_OUT})
    held_out = f" · {format_count(kept_out)} held out" if (kept_out := analysis.dropped.get(HELD_OUT, 0)) else ""
    lines = [f"{counted(analysis.rows, 'row')} read · {format_count(analysis.used)} used{held_out} · {dropped}"]
    if (lengths := analysis.lengths) is not None:
        low, middle, high, most = map(format_count, (lengths.min, lengths.p50, lengths.p95, lengths.max))
        lines.append(
            f"tokens: shortest {low} · half up to {middle} · p95 {high} · longest {most} "
            f"(row {format_count(lengths.longest + 1)}) · learned {lengths.supervised_share:.0%}"
        )
    elif uncounted is not None:
        lines.append(one_line(f"tokens are not counted: {uncounted}", 400))
    if analysis.scripts:
        parts = sorted(analysis.scripts.items(), key=lambda item: -item[1])[:4]
        lines.append("scripts: " + ", ".join(f"{one_line(name, 20)} {format_count(count)}" for name, count in parts))
    if not analysis.problems:
        lines.append("No problems.")
    return Content("\n".join(lines))
