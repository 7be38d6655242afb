"""A walk through the answers of a run: the question and the evaluation looked at, and what they stand beside."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from core.runs.catalog.answers import Against, Question, steps_of

if TYPE_CHECKING:
    from tui.state import RunView

#: What of a question is shown: an answer beside another one, or all its answers below each other.
Layout = Literal["former", "first", "wanted", "all"]
#: The layouts in the order of their key, each with what a hint calls it.
LAYOUT_WORDS: dict[Layout, str] = {
    "former": "beside the one before",
    "first": "beside the first",
    "wanted": "beside the wanted",
    "all": "all answers",
}


class AnswerWalk:
    """The place in the answers of a run. It stays at the newest evaluation until it is led away from it."""

    def __init__(self) -> None:
        self.questions: Sequence[Question] = ()
        self.steps: list[int] = []
        """The steps of the evaluations that have answers, rising."""
        self.place = 0
        """The question looked at, from 0."""
        self.layout: Layout = "former"
        self._step: int | None = None

    def show(self, questions: Sequence[Question]) -> None:
        """Take other questions, or more answers to them."""
        self.questions, self.steps = questions, steps_of(questions)
        self.place = min(self.place, max(len(questions) - 1, 0))
        if self._step not in self.steps:
            # A run that went back has taken it away.
            self._step = None
        if self.layout not in self._layouts:
            self.layout = "former"

    @property
    def step(self) -> int:
        """The step of the evaluation looked at; 0 where there is none."""
        if self._step is not None:
            return self._step
        return self.steps[-1] if self.steps else 0

    @property
    def against(self) -> Against:
        """What an answer stands beside."""
        return "former" if self.layout == "all" else self.layout

    @property
    def in_turn(self) -> list[Question]:
        """All questions, from the one looked at on around to the one before it."""
        return [*self.questions[self.place :], *self.questions[: self.place]]

    def turn(self, by: int) -> None:
        """Look at the next question, or the one before; after the last comes the first."""
        if self.questions:
            self.place = (self.place + by) % len(self.questions)

    def leads(self, by: int) -> bool:
        """Whether there is a later evaluation, or an earlier one."""
        return bool(self.steps) and (self.step > self.steps[0] if by < 0 else self.step < self.steps[-1])

    def walk(self, by: int) -> None:
        """Look at a later evaluation, or an earlier one; at the newest one, newer ones are followed again."""
        if not self.steps:
            return
        place = min(max(bisect_left(self.steps, self.step) + by, 0), len(self.steps) - 1)
        self._step = None if place == len(self.steps) - 1 else self.steps[place]
        if self.layout == "all":
            self.layout = "former"

    @property
    def next_layout(self) -> Layout:
        """The layout after this one."""
        layouts = self._layouts
        return layouts[(layouts.index(self.layout) + 1) % len(layouts)]

    def turn_layout(self) -> None:
        """Show the next layout."""
        self.layout = self.next_layout

    @property
    def _layouts(self) -> tuple[Layout, ...]:
        is_known = any(question.expected is not None for question in self.questions)
        return tuple(layout for layout in LAYOUT_WORDS if is_known or layout != "wanted")


def without_answers(view: RunView) -> str:
    """Why a run has no answers."""
    schedule = view.schedule
    if view.is_partial:
        return "Its answers are being read."
    if schedule is not None and not schedule.answers and not schedule.samples:
        rows = "eval.samples is 0" if schedule.measures else "it holds no rows out (data.eval, data.eval_share)"
        return f"This run asks the model nothing: {rows}, and there is no file of prompts (eval.prompts)."
    if view.is_live:
        return "No answers yet: the questions are asked at each evaluation."
    return "No answers: the run ended before it was evaluated."
