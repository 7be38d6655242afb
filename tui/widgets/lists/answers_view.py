"""The answers of a run over time: each beside its former self, or all to a question below each other."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from core.runs.catalog.answers import Question
from tui.widgets.answer_pairs import walk_lines
from tui.widgets.answer_walk import AnswerWalk
from tui.widgets.text_block import TextBlock


class AnswersView(VerticalScroll, can_focus=False):
    """Questions, wanted answers and the model's answers, as far as a walk through them has come."""

    DEFAULT_CSS = """
    AnswersView { height: 1fr; width: 1fr; scrollbar-size-vertical: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.walk = AnswerWalk()
        self._without = ""

    def compose(self) -> ComposeResult:
        """The lines."""
        yield TextBlock()

    def show(self, questions: Sequence[Question], without: str = "") -> None:
        """Show other questions, or more answers to them; where there are none, the words ``without`` instead."""
        self._without = without
        self.walk.show(questions)
        self._draw()

    def reset(self) -> None:
        """Begin anew, for another run."""
        self.walk = AnswerWalk()
        self.scroll_home(animate=False)

    def turn(self, by: int) -> None:
        """Show the next question, or the one before; after the last comes the first."""
        self.walk.turn(by)
        self._go_to_top()

    def walk_by(self, by: int) -> None:
        """Show the answers of a later evaluation, or of an earlier one."""
        self.walk.walk(by)
        self._draw()

    def turn_layout(self) -> None:
        """Put the answers beside something else, or show all of them."""
        self.walk.turn_layout()
        self._go_to_top()

    def on_resize(self) -> None:
        """Wrap the texts anew."""
        self._draw()

    def _go_to_top(self) -> None:
        self.scroll_home(animate=False)
        self._draw()

    def _draw(self) -> None:
        width = self.size.width - 1
        if width <= 0:
            return
        if self.walk.questions:
            lines = walk_lines(self.walk, width, self.size.height)
            self.query_one(TextBlock).show(Content("\n").join(lines))
        else:
            self.query_one(TextBlock).show(Content.styled(self._without, "$muted"))
