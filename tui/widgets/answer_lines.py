"""A question of the evaluations in lines: what is asked, what is wanted, and what the model said at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from textual.content import Content

from core.runs.catalog.answers import Question, SampleAnswer, Span, word_diff
from core.text import sanitize, steady
from core.units import format_count

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
