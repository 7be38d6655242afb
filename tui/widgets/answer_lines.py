"""A question of the evaluations in lines: what is asked, what is wanted, and what the model said at each step."""

from __future__ import annotations

from textual.content import Content

from core.runs.answers import Question, SampleAnswer
from core.text import sanitize, steady

#: Most lines of a text, tried one after the other until all lines fit; what is longer is cut.
MOST_LINES = (8, 3, 1)
#: Most characters looked at, so that a text of any length is cut in no time.
_MOST_CHARACTERS = 4000
_MARKS = {"right": ("✓", "$ok"), "wrong": ("✗", "$limit"), "": (" ", "")}


def question_lines(question: Question, width: int, height: int) -> list[Content]:
    """The lines of a question, its labels in a column of their own.

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
    labels = [_label(answer) for answer in question.answers]
    column = max(map(len, ("wanted", *labels))) + 2
    lines = _hung(Content.styled("ask".ljust(column), "$muted"), _text(question.prompt, "bold"), width, max(most, 2))
    if question.expected is not None:
        wanted = Content.styled("wanted".ljust(column), "$muted")
        lines += _hung(wanted, _text(question.expected), width, max(most, 2))
    is_marked = any(answer.verdict for answer in question.answers)
    for label, answer in zip(labels, question.answers, strict=True):
        mark, color = _MARKS[answer.verdict]
        head = Content.assemble((label.ljust(column), "$muted"), (f"{mark} " if is_marked else "", color))
        shown = _text(answer.text) if answer.text.strip() else Content.styled("no answer", "$muted italic")
        if answer.is_broken_json:
            head = Content.assemble(head, ("no JSON  ", "$near"))
        lines += _hung(head, shown, width, most)
    return lines


def _label(answer: SampleAnswer) -> str:
    return f"step {answer.step}"


def _text(text: str, style: str = "") -> Content:
    """Text from outside, made safe to show."""
    cut = text.strip()[:_MOST_CHARACTERS]
    return Content.styled(steady(sanitize(cut).expandtabs(4), whole=True), style)


def _hung(head: Content, text: Content, width: int, most: int) -> list[Content]:
    """A head, and beside it the text, wrapped and cut."""
    indent = head.cell_length
    wrapped = text.wrap(max(width - indent, 8))
    if len(wrapped) > most:
        last = wrapped[most - 1].rstrip()
        wrapped = [*wrapped[: most - 1], last.truncate(max(width - indent - 2, 7)) + Content.styled(" …", "$muted")]
    return [(head if number == 0 else Content(" " * indent)) + line for number, line in enumerate(wrapped)]
