"""Answers beside their former selves, in lines: in columns where there is room, else the newer above the older."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from rich.cells import cell_len
from textual.content import Content

from core.runs.catalog.answers import Question, Span, WordDiff, word_diff
from tui.widgets.answer_lines import head_lines, hung, label, label_width, mark, question_lines, safe, said
from tui.widgets.answer_walk import AnswerWalk

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
