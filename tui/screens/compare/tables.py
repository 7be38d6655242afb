"""The tables of a comparison, and the last answers side by side, as text for a number of columns."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from textual.content import Content

from core.runs.catalog.compare import LETTERS, ComparedAnswers, Fact, RunComparison
from core.text import one_line, sanitize, steady

#: Columns of the names of facts, and least columns of a value.
_NAME_WIDTH, _LEAST = 24, 7
#: Columns of an answer from which answers stand side by side, and most lines of one.
_BESIDE, _ANSWER_LINES = 36, 12


def curve_style(place: int) -> str:
    """The color of a run, as in the chart."""
    return f"$curve-{place + 1}"


def fact_tables(comparison: RunComparison, width: int) -> Content:
    """Figures, and what differs in data and options; the best value of a figure is bold and has a star."""
    count = len(comparison.records)
    name_width = min(_NAME_WIDTH, max(width // 3, 10))
    column = max(min((width - name_width) // count - 2, 30), _LEAST)
    lines: list[Content] = []
    groups = (
        ("", comparison.figures),
        ("data that differ", comparison.data),
        ("options that differ", comparison.options),
    )
    for title, facts in groups:
        if facts:
            lines += (
                [Content(""), _head(comparison, title, name_width, column)]
                if lines
                else [_head(comparison, title, name_width, column)]
            )
            lines += [_fact_line(fact, name_width, column) for fact in facts]
    if not comparison.data and not comparison.options:
        lines += [Content(""), Content.styled("Options and data are the same.", "$muted")]
    return Content("\n").join(lines)


def _head(comparison: RunComparison, title: str, name_width: int, column: int) -> Content:
    parts: list[Content | tuple[str, str]] = [(_fit(title, name_width), "$muted bold")]
    for place, record in enumerate(comparison.records):
        name = f"{LETTERS[place]} {steady(one_line(record.name, 40))} "
        parts.append((f"  {_fit(name, column, right=True)}", f"{curve_style(place)} bold"))
    return Content.assemble(*parts)


def _fact_line(fact: Fact, name_width: int, column: int) -> Content:
    parts: list[Content | tuple[str, str]] = [(_fit(fact.name, name_width), "$muted")]
    for place, words in enumerate(fact.words):
        is_best = place in fact.best
        # The star keeps its column, so that digits stay below each other.
        text = steady(one_line(words, 100)) + ("*" if is_best else " ")
        parts.append((f"  {_fit(text, column, right=True)}", "bold" if is_best else ""))
    return Content.assemble(*parts)


def answer_lines(comparison: RunComparison, width: int) -> Content:
    """The last answers to each question: side by side where there is room, else below each other."""
    if not comparison.answers:
        return Content.styled("None of these runs has sample answers.", "$muted")
    lines: list[Content] = []
    for answers in comparison.answers:
        lines += [Content("")] if lines else []
        lines.append(Content.styled(one_line(answers.prompt.strip(), max(width, 20)), "bold"))
        if answers.expected is not None:
            lines += Content.assemble(("wanted  ", "$muted"), one_line(answers.expected.strip(), 600)).wrap(width)
        lines += _beside(answers, width) if width // len(answers.texts) >= _BESIDE else _below(answers, width)
    return Content("\n").join(line.rstrip() for line in lines)


def _answer(answers: ComparedAnswers, place: int, width: int) -> list[Content]:
    """One answer below its letter, the step and whether it is right."""
    text = answers.texts[place]
    if text is None:
        return [Content.assemble((LETTERS[place], f"{curve_style(place)} bold"), ("  not asked", "$muted"))]
    mark = {True: "✓ right", False: "✗ wrong", None: ""}[answers.right[place]]
    head = Content.assemble(
        (LETTERS[place], f"{curve_style(place)} bold"), (f"  step {answers.steps[place]}  ", "$muted"), mark
    )
    body = Content(steady(sanitize(text.strip()), whole=True)).wrap(max(width, 1))
    more = [Content.styled("…", "$muted")] if len(body) > _ANSWER_LINES else []
    return [head, *body[:_ANSWER_LINES], *more]


def _beside(answers: ComparedAnswers, width: int) -> list[Content]:
    count = len(answers.texts)
    column = width // count - 2
    columns = [_answer(answers, place, column) for place in range(count)]
    height = max(map(len, columns))
    rows = []
    for y in range(height):
        cells = [lines[y] if y < len(lines) else Content("") for lines in columns]
        rows.append(Content("  ").join(cell.truncate(column, pad=True) for cell in cells))
    return rows


def _below(answers: ComparedAnswers, width: int) -> list[Content]:
    return [line for place in range(len(answers.texts)) for line in _answer(answers, place, width)]


def _fit(text: str, width: int, *, right: bool = False) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - cell_len(text)) + text if right else set_cell_size(text, width)
