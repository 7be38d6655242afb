"""The answers of a run over time, one question at a time."""

from __future__ import annotations

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from core.runs.answers import Question
from tui.widgets.answer_lines import question_lines
from tui.widgets.text_block import TextBlock


class AnswersView(VerticalScroll, can_focus=False):
    """A question, the wanted answer and the model's answers, from the untouched model's to the newest."""

    DEFAULT_CSS = """
    AnswersView { height: 1fr; width: 1fr; scrollbar-size-vertical: 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._questions: Sequence[Question] = ()
        self.place = 0
        """The question shown, from 0."""

    def compose(self) -> ComposeResult:
        """The lines."""
        yield TextBlock()

    @property
    def count(self) -> int:
        """Number of questions."""
        return len(self._questions)

    def show(self, questions: Sequence[Question]) -> None:
        """Show other questions, or more answers to them."""
        self._questions = questions
        self.place = min(self.place, max(len(questions) - 1, 0))
        self._draw()

    def turn(self, step: int) -> None:
        """Show the next question, or the one before; after the last comes the first."""
        if self._questions:
            self.place = (self.place + step) % len(self._questions)
            self.scroll_home(animate=False)
            self._draw()

    def on_resize(self) -> None:
        """Wrap the texts anew."""
        self._draw()

    def _draw(self) -> None:
        width = self.size.width - 1
        if self._questions and width > 0:
            lines = question_lines(self._questions[self.place], width, self.size.height)
            self.query_one(TextBlock).show(Content("\n").join(lines))
