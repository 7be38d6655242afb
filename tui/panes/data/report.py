"""Report of the Data pane: problems and statistics of the whole file."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Size
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.analysis.division import HELD_OUT
from core.analysis.problems import Problem
from core.analysis.result import Analysis
from core.errors import UserError
from core.text import one_line
from core.units import format_count
from tui.datasets.summary import counted, describe_dropped, summarize
from tui.keys import KeyTable
from tui.panes.data.session import DatasetSession
from tui.widgets.charts.bars import draw_histogram
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

_MARKS = {"drop": ("✗", "$limit"), "warn": ("!", "$near"), "note": ("·", "$muted")}
_WORDS = {"drop": "not used", "warn": "check", "note": "note"}


class ProblemList(OptionList):
    """List of problems; ``enter`` lists the rows with a problem."""

    DEFAULT_CSS = style_of("ProblemList")

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self.problems: tuple[Problem, ...] = ()

    def show(self, problems: Sequence[Problem]) -> None:
        """Show the problems of another dataset or analysis."""
        self.problems = tuple(problems)
        self.clear_options()
        self.add_options([Option(_entry(problem)) for problem in problems])
        if problems:
            self.highlighted = 0

    def move(self, rows: int) -> None:
        """Move the cursor by a number of entries."""
        if self.problems:
            self.highlighted = max(0, min((self.highlighted or 0) + rows, len(self.problems) - 1))

    def move_page(self, direction: int) -> None:
        """Move the cursor by a screenful."""
        self.move(direction * max(1, self.size.height // 2))


def _entry(problem: Problem) -> Content:
    mark, color = _MARKS[problem.kind.level]
    count = format_count(problem.count)
    noun = "row" if problem.count == 1 else "rows"
    return Content.assemble(
        (f"{mark} {count} {noun}", f"{color} bold"),
        f"  {problem.kind.title}",
        (f"  ({_WORDS[problem.kind.level]})", "$muted"),
        "\n",
        (f"    {one_line(problem.detail or problem.hint, 300)}", "$muted"),
        ("\n    → " + one_line(problem.hint, 200) if problem.detail else "", "$muted"),
    )


class Report(Vertical):
    """Problems and token lengths of all rows."""

    DEFAULT_CSS = style_of("Report")

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
        self._numbers.show(_numbers(analysis, session.masker_error, view.file.note))
        width, height = max(20, size.width - 4), max(3, min(8, size.height // 4))
        lines = draw_histogram(analysis.lengths.buckets, width, height) if analysis.lengths is not None else []
        self._histogram.show(Content("\n".join(lines)))


def _numbers(analysis: Analysis, uncounted: UserError | None, note: str) -> Content:
    """Used rows, dropped rows by reason, and token statistics, or why there are none."""
    dropped = describe_dropped({reason: count for reason, count in analysis.dropped.items() if reason != HELD_OUT})
    held_out = f" · {format_count(kept_out)} held out" if (kept_out := analysis.dropped.get(HELD_OUT, 0)) else ""
    lines = [f"{counted(analysis.rows, 'row')} read · {format_count(analysis.used)} used{held_out} · {dropped}"]
    lines += [one_line(note, 200)] if note else []
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
