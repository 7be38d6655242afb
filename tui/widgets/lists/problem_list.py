"""A list of the kinds of problems of a dataset: the number of rows with each, and a remedy."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.analysis.problems import Problem
from core.text import one_line
from core.units import format_count

_MARKS = {"drop": ("✗", "$limit"), "warn": ("!", "$near"), "note": ("·", "$muted")}
_WORDS = {"drop": "not used", "warn": "look", "note": "note"}


class ProblemList(OptionList):
    """A list with an entry for each problem; ``enter`` selects the rows that have it."""

    DEFAULT_CSS = """
    ProblemList {
        height: auto;
        max-height: 50%;
        border: none;
        padding: 0;
        background: transparent;
        &:focus { border: none; background: transparent; }
    }
    """

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
