"""Sample answers of a run over time: each beside an earlier answer, or all answers to a question."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from core.runs.catalog.answers import Against, Question, SampleAnswer, Span, WordDiff, steps_of, word_diff
from core.text import sanitize, steady
from core.units import format_count
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock, side_by_side

if TYPE_CHECKING:
    from tui.state import RunView

#: Maximum numbers of lines of a text, tried in order until everything fits; longer texts are cut.
MOST_LINES = (8, 3, 1)
#: Maximum characters of a text shown whole, and of a text cut after a few lines anyway.
MOST_CHARACTERS, _CUT_CHARACTERS = 32_000, 4_000
#: Style of changed words, independent of color.
CHANGED: Final = "underline"
_MARKS = {"right": ("✓", "$ok"), "wrong": ("✗", "$limit"), "": (" ", "")}
#: More lines than any text has.
_WHOLE = 1 << 30


def question_lines(question: Question, width: int, height: int) -> list[Content]:
    """All answers to a question below their labels, with the words marked that are new since the answer before.

    Args:
        question: The question with its answers.
        width: Cells of a line.
        height: Lines in view; texts are cut to show all answers, as far as possible.
    """
    for most in MOST_LINES:
        lines = _lines(question, width, most)
        if len(lines) <= height:
            break
    return lines


def _lines(question: Question, width: int, most: int) -> list[Content]:
    column = label_width(question)
    lines = head_lines(question, width, max(most, 2), column)
    former: str | None = None
    for answer in question.answers:
        text = safe(answer.text, _CUT_CHARACTERS)
        shown = said(text, word_diff(former, text).after if former is not None else ())
        lines += hung(
            Content.assemble((label(answer).ljust(column), "$muted"), mark(question, answer)), shown, width, most
        )
        former = text
    return lines


def label_width(question: Question) -> int:
    """Columns of the labels."""
    return max(map(len, ("wanted", *map(label, question.answers)))) + 2


def head_lines(question: Question, width: int, most: int, column: int, *, wanted: bool = True) -> list[Content]:
    """Lines of the question and of the wanted answer, each cut after ``most`` lines."""
    ask = Content.styled(safe(question.prompt, _CUT_CHARACTERS), "bold")
    lines = hung(Content.styled("ask".ljust(column), "$muted"), ask, width, most)
    if question.expected is not None and wanted:
        text = Content(safe(question.expected, _CUT_CHARACTERS))
        lines += hung(Content.styled("wanted".ljust(column), "$muted"), text, width, most)
    return lines


def label(answer: SampleAnswer) -> str:
    """Label of an answer."""
    return f"step {answer.step}"


def mark(question: Question, answer: SampleAnswer) -> Content:
    """Grade of an answer, with a warning for invalid JSON; blank if only other answers are graded."""
    sign, color = _MARKS[answer.verdict]
    is_marked = any(other.verdict for other in question.answers)
    return Content.assemble(
        (f"{sign} " if is_marked else "", color), ("no JSON  " if answer.is_broken_json else "", "$near")
    )


def safe(text: str, limit: int = MOST_CHARACTERS) -> str:
    """Sanitize an external text; a text of more than ``limit`` characters is cut, with a note."""
    text = text.strip()
    shown = steady(sanitize(text[:limit]).expandtabs(4), whole=True)
    return shown if len(text) <= limit else f"{shown}\n… {format_count(len(text) - limit)} more characters"


def said(text: str, changed: Sequence[Span] = (), style: str = "") -> Content:
    """A safe text with its changed words marked, or a note if it is empty."""
    if not text:
        return Content.styled("no answer", "$muted italic")
    content = Content.styled(text, style)
    for start, end in changed:
        for line_start, line_end in _parts(text, start, end):
            content = content.stylize(CHANGED, line_start, line_end)
    return content


def _parts(text: str, start: int, end: int) -> list[Span]:
    """Split a range by lines, without surrounding spaces."""
    parts: list[Span] = []
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            first = start + len(line) - len(line.lstrip())
            parts.append((first, first + len(line.strip())))
        start += len(line)
    return parts


def hung(head: Content, text: Content, width: int, most: int = _WHOLE) -> list[Content]:
    """Text wrapped beside a heading, and cut after ``most`` lines."""
    indent = head.cell_length
    wrapped = text.wrap(max(width - indent, 8))
    if len(wrapped) > most:
        last = wrapped[most - 1].rstrip()
        wrapped = [*wrapped[: most - 1], last.truncate(max(width - indent - 2, 7)) + Content.styled(" …", "$muted")]
    return [(head if number == 0 else Content(" " * indent)) + line for number, line in enumerate(wrapped)]


#: Layout of a question: an answer beside another answer, or all answers.
Layout = Literal["former", "first", "wanted", "all"]
#: Layouts in the order of their key, with their names in hints.
LAYOUT_WORDS: dict[Layout, str] = {
    "former": "beside the previous",
    "first": "beside the first",
    "wanted": "beside the wanted",
    "all": "all answers",
}


class AnswerWalk:
    """Position in the answers of a run. It follows the newest evaluation until it is moved away."""

    def __init__(self) -> None:
        self.questions: Sequence[Question] = ()
        self.steps: list[int] = []
        """Steps of the evaluations with answers, in ascending order."""
        self.place = 0
        """Index of the current question."""
        self.layout: Layout = "former"
        self._step: int | None = None

    def show(self, questions: Sequence[Question]) -> None:
        """Set the questions with their answers."""
        self.questions, self.steps = questions, steps_of(questions)
        self.place = min(self.place, max(len(questions) - 1, 0))
        if self._step not in self.steps:
            # The run was rolled back behind that evaluation.
            self._step = None
        if self.layout not in self._layouts:
            self.layout = "former"

    @property
    def step(self) -> int:
        """The step of the current evaluation; 0 if there is none."""
        if self._step is not None:
            return self._step
        return self.steps[-1] if self.steps else 0

    @property
    def against(self) -> Against:
        """The answer to compare with."""
        return "former" if self.layout == "all" else self.layout

    @property
    def in_turn(self) -> list[Question]:
        """All questions, starting at the current question and wrapping around."""
        return [*self.questions[self.place :], *self.questions[: self.place]]

    def turn(self, by: int) -> None:
        """Go to the next or previous question, wrapping around."""
        if self.questions:
            self.place = (self.place + by) % len(self.questions)

    def walk(self, by: int) -> None:
        """Go to a later or earlier evaluation; at the newest, new evaluations are followed again."""
        if not self.steps:
            return
        place = min(max(bisect_left(self.steps, self.step) + by, 0), len(self.steps) - 1)
        self._step = None if place == len(self.steps) - 1 else self.steps[place]
        if self.layout == "all":
            self.layout = "former"

    @property
    def next_layout(self) -> Layout:
        """The next layout."""
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
    """The reason why a run has no answers."""
    schedule = view.schedule
    if view.is_partial:
        return "Its answers are being read."
    if schedule is not None and not schedule.answers and not schedule.samples:
        rows = "eval.samples is 0" if schedule.measures else "it holds no rows out (data.eval, data.eval_share)"
        return f"This run asks the model nothing: {rows}, and there is no file of prompts (eval.prompts)."
    if view.is_live:
        return "No answers yet: the questions are asked at each evaluation."
    return "No answers: the run ended before it was evaluated."


#: Minimum columns of an answer for two side by side, and the gap between them.
BESIDE = 44
_GAP = " │ "


def walk_lines(walk: AnswerWalk, width: int, height: int) -> list[Content]:
    """The current question in full, then the next questions that fit in full.

    Args:
        walk: The position, with its layout.
        width: Cells of a line.
        height: Lines in view.
    """
    lines: list[Content] = []
    for question in walk.in_turn:
        gap = [Content("")] if lines else []
        room = height - len(lines) - len(gap)
        block = (
            question_lines(question, width, room) if walk.layout == "all" else pair_lines(question, walk, width, height)
        )
        if lines and len(block) > room:
            break
        lines += gap + block
    return lines


def pair_lines(question: Question, walk: AnswerWalk, width: int, height: int) -> list[Content]:
    """A question with its answer at the current evaluation, and the answer to compare with.

    Args:
        question: The question.
        walk: The position, with its layout.
        width: Cells of a line.
        height: Lines in view; question and wanted answer take a part of them, and answers are never cut.
    """
    column = label_width(question)
    now, other, note = _sides(question, walk)
    lines = head_lines(question, width, max(height // 6, 2), column, wanted=other.name != "wanted")
    if len(question.answers) > 1:
        lines.append(_course(question, walk, other.name, width, column, note))
    # A single answer needs no note about a missing earlier one.
    sides = [now, other] if other.text is not None or len(question.answers) > 1 else [now]
    stacked = [
        hung(Content.assemble((side.name.ljust(column), "$muted"), side.mark), side.shown, width) for side in sides
    ]
    # Single lines are easiest to compare when stacked.
    if other.text is None or width < 2 * BESIDE + len(_GAP) or max(map(len, stacked)) == 1:
        return [*lines, *itertools.chain(*stacked)]
    return [*lines, *_beside(other, now, width)]


@dataclass(frozen=True)
class _Side:
    """A side of a comparison."""

    name: str
    mark: Content
    text: str | None
    """The answer; None if there is none, as ``instead`` explains."""
    changed: tuple[Span, ...] = ()
    instead: str = ""
    style: str = ""

    @property
    def shown(self) -> Content:
        if self.instead or self.text is None:
            return Content.styled(self.instead, "$muted italic")
        return said(self.text, self.changed, self.style)


def _sides(question: Question, walk: AnswerWalk) -> tuple[_Side, _Side, str]:
    """The current answer, the answer to compare with, and a note if they differ too much for marks."""
    answer, former = question.at(walk.step), question.beside(walk.step, walk.against)
    is_wanted = walk.against == "wanted" and question.expected is not None
    text = safe(answer.text) if answer is not None else None
    wanted = question.expected if is_wanted else former.text if former is not None else None
    beside = safe(wanted) if wanted is not None else None
    diff = word_diff(beside, text) if beside is not None and text is not None else WordDiff("same")
    now = _Side(
        f"step {walk.step}",
        mark(question, answer) if answer is not None else Content(""),
        text,
        diff.after,
        "" if answer is not None else "not answered",
    )
    if is_wanted or former is None:
        name, sign = ("wanted" if is_wanted else "before"), Content("")
    else:
        name, sign = label(former), mark(question, former)
    instead = "no earlier answer" if beside is None else "the same" if beside == text else ""
    note = "rewritten" if diff.kind == "rewritten" else ""
    return now, _Side(name, sign, beside, diff.before, instead, "$muted"), note


def _beside(left: _Side, right: _Side, width: int) -> list[Content]:
    """Two answers in columns below their names."""
    room = (width - len(_GAP)) // 2
    columns = [
        [Content.assemble((side.name, "$muted"), "  ", side.mark), *side.shown.wrap(room)] for side in (left, right)
    ]
    return side_by_side(columns, room, Content.styled(_GAP, "$muted"))


def _course(question: Question, walk: AnswerWalk, other: str, width: int, column: int, note: str) -> Content:
    """A line of the evaluations with their grades; the two in view are in brackets.

    ``=`` marks an answer unchanged since the evaluation before.
    """
    repeats = question.repeats
    entries: list[str] = []
    here = 0
    for answer in question.answers:
        signs = [_MARKS[answer.verdict][0].strip(), "=" if answer.step in repeats else ""]
        text = " ".join([str(answer.step), *filter(None, signs)])
        if answer.step <= walk.step:
            here = len(entries)
        opening, closing = "[]" if answer.step == walk.step else "()" if label(answer) == other else "  "
        entries.append(f"{opening}{text}{closing}")
    first, last = _window(entries, here, width - column - cell_len(note) - 4)
    shown = [(entry, "bold" if entry.startswith("[") else "$muted") for entry in entries[first:last]]
    before, after = ("…" if first else ""), ("…" if last < len(entries) else "")
    line = Content.assemble((f"{'steps'.ljust(column - 1)}{before}", "$muted"), *shown, (f"{after}  {note}", "$muted"))
    return line.rstrip().truncate(max(width, 1))


def _window(entries: list[str], here: int, room: int) -> tuple[int, int]:
    """Range of the entries around ``here`` that fit, preferring earlier ones."""
    first, last = here, here + 1
    room -= cell_len(entries[here])
    while True:
        if first and cell_len(entries[first - 1]) <= room:
            first -= 1
            room -= cell_len(entries[first])
        elif last < len(entries) and cell_len(entries[last]) <= room:
            room -= cell_len(entries[last])
            last += 1
        else:
            return first, last


class AnswersView(VerticalScroll, can_focus=False):
    """View of questions, wanted answers, and the model's answers."""

    DEFAULT_CSS = style_of("AnswersView")

    def __init__(self) -> None:
        super().__init__()
        self.walk = AnswerWalk()
        self._without = ""

    def compose(self) -> ComposeResult:
        """The text."""
        yield TextBlock()

    def show(self, questions: Sequence[Question], without: str = "") -> None:
        """Show questions with their answers, or the text ``without`` if there are none."""
        self._without = without
        self.walk.show(questions)
        self._draw()

    def reset(self) -> None:
        """Start over for another run."""
        self.walk = AnswerWalk()
        self.scroll_home(animate=False)

    def turn(self, by: int) -> None:
        """Show the next or previous question, wrapping around."""
        self.walk.turn(by)
        self._go_to_top()

    def walk_by(self, by: int) -> None:
        """Show the answers of a later or earlier evaluation."""
        self.walk.walk(by)
        self._draw()

    def turn_layout(self) -> None:
        """Switch to the next layout."""
        self.walk.turn_layout()
        self._go_to_top()

    def on_resize(self) -> None:
        """Wrap the texts for the new width."""
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
