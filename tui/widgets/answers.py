"""The answers of a run over time: each beside its former self, or all to a question below each other."""

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
from tui.widgets.text_block import TextBlock

if TYPE_CHECKING:
    from tui.state import RunView

#: Most lines of a text, tried one after the other until all lines fit; what is longer is cut.
MOST_LINES = (8, 3, 1)
#: Most characters of a text that are shown whole, and of one that is cut after some lines anyway.
MOST_CHARACTERS, _CUT_CHARACTERS = 32_000, 4_000
#: Changed words are told by their underline; color adds nothing to it.
CHANGED: Final = "underline"
_MARKS = {"right": ("✓", "$ok"), "wrong": ("✗", "$limit"), "": (" ", "")}
#: A number of lines that no text reaches.
_WHOLE = 1 << 30


def question_lines(question: Question, width: int, height: int) -> list[Content]:
    """All answers to a question, its labels in a column of their own; of each, the words are marked that the one before
    it does not have.

    Args:
        question: The question with its answers.
        width: Cells of a line.
        height: Lines in view; texts are cut so that all answers are, as far as that goes.
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
    """The columns of the labels."""
    return max(map(len, ("wanted", *map(label, question.answers)))) + 2


def head_lines(question: Question, width: int, most: int, column: int, *, wanted: bool = True) -> list[Content]:
    """The lines of what is asked and of what is wanted, each cut after ``most`` lines."""
    ask = Content.styled(safe(question.prompt, _CUT_CHARACTERS), "bold")
    lines = hung(Content.styled("ask".ljust(column), "$muted"), ask, width, most)
    if question.expected is not None and wanted:
        text = Content(safe(question.expected, _CUT_CHARACTERS))
        lines += hung(Content.styled("wanted".ljust(column), "$muted"), text, width, most)
    return lines


def label(answer: SampleAnswer) -> str:
    """The name of an answer."""
    return f"step {answer.step}"


def mark(question: Question, answer: SampleAnswer) -> Content:
    """Whether an answer is right, and whether it is JSON where it should be; a gap where other answers have a mark."""
    sign, color = _MARKS[answer.verdict]
    is_marked = any(other.verdict for other in question.answers)
    return Content.assemble(
        (f"{sign} " if is_marked else "", color), ("no JSON  " if answer.is_broken_json else "", "$near")
    )


def safe(text: str, limit: int = MOST_CHARACTERS) -> str:
    """Text from outside, made safe to show; what is longer than ``limit`` characters is cut, and says so."""
    text = text.strip()
    shown = steady(sanitize(text[:limit]).expandtabs(4), whole=True)
    return shown if len(text) <= limit else f"{shown}\n… {format_count(len(text) - limit)} more characters"


def said(text: str, changed: Sequence[Span] = (), style: str = "") -> Content:
    """A safe text with its changed words marked; words where it is empty."""
    if not text:
        return Content.styled("no answer", "$muted italic")
    content = Content.styled(text, style)
    for start, end in changed:
        for line_start, line_end in _parts(text, start, end):
            content = content.stylize(CHANGED, line_start, line_end)
    return content


def _parts(text: str, start: int, end: int) -> list[Span]:
    """The parts of a range in each line, without the spaces around them, which are no words."""
    parts: list[Span] = []
    for line in text[start:end].splitlines(keepends=True):
        if line.strip():
            first = start + len(line) - len(line.lstrip())
            parts.append((first, first + len(line.strip())))
        start += len(line)
    return parts


def hung(head: Content, text: Content, width: int, most: int = _WHOLE) -> list[Content]:
    """A head, and beside it a text, wrapped and cut after ``most`` lines."""
    indent = head.cell_length
    wrapped = text.wrap(max(width - indent, 8))
    if len(wrapped) > most:
        last = wrapped[most - 1].rstrip()
        wrapped = [*wrapped[: most - 1], last.truncate(max(width - indent - 2, 7)) + Content.styled(" …", "$muted")]
    return [(head if number == 0 else Content(" " * indent)) + line for number, line in enumerate(wrapped)]


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


#: Columns of an answer from which two stand side by side, and those between them.
BESIDE = 44
_GAP = " │ "
_SIGNS = {"right": "✓", "wrong": "✗", "": ""}


def walk_lines(walk: AnswerWalk, width: int, height: int) -> list[Content]:
    """The question that is looked at, whole, and the ones after it as far as they fit whole.

    Args:
        walk: The question and the evaluation, and what its answers stand beside.
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
    """A question with its answer at the evaluation that is looked at, and the one that it stands beside.

    Args:
        question: The question.
        walk: The evaluation, and what its answers stand beside.
        width: Cells of a line.
        height: Lines in view, of which question and wanted answer take some at most; answers are never cut to them.
    """
    column = label_width(question)
    now, other, note = _sides(question, walk)
    lines = head_lines(question, width, max(height // 6, 2), column, wanted=other.name != "wanted")
    if len(question.answers) > 1:
        lines.append(_course(question, walk, other.name, width, column, note))
    # An only answer needs no words about the one before.
    sides = [now, other] if other.text is not None or len(question.answers) > 1 else [now]
    stacked = [_stacked(side, width, column) for side in sides]
    # Of two lines, one above the other is the easiest to compare.
    if other.text is None or width < 2 * BESIDE + len(_GAP) or max(map(len, stacked)) == 1:
        return [*lines, *itertools.chain(*stacked)]
    return [*lines, *_beside(other, now, width)]


@dataclass(frozen=True)
class _Side:
    """One of two answers."""

    name: str
    mark: Content
    text: str | None
    """None where there is no answer, and then ``instead`` says so."""
    changed: tuple[Span, ...] = ()
    instead: str = ""
    style: str = ""

    @property
    def shown(self) -> Content:
        if self.instead or self.text is None:
            return Content.styled(self.instead, "$muted italic")
        return said(self.text, self.changed, self.style)


def _sides(question: Question, walk: AnswerWalk) -> tuple[_Side, _Side, str]:
    """The answer that is looked at, the one beside it, and why there are no marks where that does not show."""
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


def _stacked(side: _Side, width: int, column: int) -> list[Content]:
    return hung(Content.assemble((side.name.ljust(column), "$muted"), side.mark), side.shown, width)


def _beside(left: _Side, right: _Side, width: int) -> list[Content]:
    """Two answers in columns, each below its name."""
    room = (width - len(_GAP)) // 2
    columns = [
        [Content.assemble((side.name, "$muted"), "  ", side.mark), *side.shown.wrap(room)] for side in (left, right)
    ]
    rows = []
    for number in range(max(map(len, columns))):
        cells = [lines[number] if number < len(lines) else Content("") for lines in columns]
        gap = Content.styled(_GAP, "$muted")
        rows.append(cells[0].truncate(room, pad=True) + gap + cells[1].rstrip().truncate(room))
    return rows


def _course(question: Question, walk: AnswerWalk, other: str, width: int, column: int, note: str) -> Content:
    """The evaluations in a line, each with what became of it there: those that are looked at stand in brackets.

    ``=`` is the answer of the evaluation before.
    """
    repeats = question.repeats
    entries: list[str] = []
    here = 0
    for answer in question.answers:
        signs = [_SIGNS[answer.verdict], "=" if answer.step in repeats else ""]
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
    """The entries around one that fit, earlier ones first: the place of the first, and the one after the last."""
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
