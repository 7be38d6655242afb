"""A comparison of runs as Markdown, CSV and JSON, and as lines for a terminal."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from core.runs.compare import LETTERS, PER_SECOND, Comparison, Fact
from core.runs.metrics import METRICS
from core.text import one_line, sanitize

#: Most values of a curve in the file of curves, a run and metric.
CURVE_POINTS = 2000
#: Beginnings of a cell that a spreadsheet takes for a formula.
_FORMULA = re.compile(r"^[=+@\t\r]|^-(?![\d.])")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~])")


def to_markdown(comparison: Comparison) -> str:
    """A report: the verdict, tables of figures, data and options, and the last answers."""
    names = [f"{letter} · {_escaped(record.name)}" for letter, record in _lettered(comparison)]
    lines = ["# Runs compared", "", _escaped(comparison.verdict), ""]
    for letter, record in _lettered(comparison):
        lines.append(f"- **{letter}**: {_escaped(record.run.id)}, {_escaped(record.row.model)}")
    for title, facts in _groups(comparison):
        if facts:
            lines += ["", f"## {title}", "", *_table(names, facts)]
    if comparison.answers:
        lines += ["", "## Last answers"]
    for answers in comparison.answers:
        lines += ["", f"**{_escaped(one_line(answers.prompt.strip(), 400))}**", ""]
        if answers.expected is not None:
            lines += [f"- wanted: {_escaped(one_line(answers.expected.strip(), 1000))}"]
        for (letter, _), text, step, right in zip(
            _lettered(comparison), answers.texts, answers.steps, answers.right, strict=True
        ):
            if text is not None:
                mark = {True: " (right)", False: " (wrong)", None: ""}[right]
                lines += [f"- {letter}, step {step}{mark}: {_escaped(one_line(text.strip(), 1000))}"]
    return "\n".join(lines) + "\n"


def _groups(comparison: Comparison) -> tuple[tuple[str, Sequence[Fact]], ...]:
    """The tables, each with its title."""
    return (
        ("Figures", comparison.figures),
        ("Data that differ", comparison.data),
        ("Options that differ", comparison.options),
    )


def _lettered(comparison: Comparison) -> list[tuple[str, Any]]:
    return list(zip(LETTERS, comparison.records, strict=False))


def _table(names: Sequence[str], facts: Sequence[Fact]) -> Iterator[str]:
    yield f"| | {' | '.join(names)} |"
    yield f"|---{'|---:' * len(names)}|"
    for fact in facts:
        told = [_escaped(words) for words in fact.words]
        cells = [f"**{words}**" if place in fact.best else words for place, words in enumerate(told)]
        yield f"| {_escaped(fact.name)} | {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", sanitize(text).replace("\n", " "))


def to_csv(comparison: Comparison) -> str:
    """A row a run: its figures, and the data and options that differ. Texts that a spreadsheet would take for a formula
    begin with an apostrophe."""
    facts = [*comparison.figures, *comparison.data, *comparison.options]
    found = io.StringIO()
    writer = csv.writer(found, lineterminator="\n")
    writer.writerow(["run", "name", *(f"{fact.name} ({fact.unit})" if fact.unit else fact.name for fact in facts)])
    for place, record in enumerate(comparison.records):
        cells = [record.run.id, record.row.labels.name, *(fact.values[place] for fact in facts)]
        writer.writerow([_cell(value) for value in cells])
    return found.getvalue()


def to_curves_csv(comparison: Comparison) -> str:
    """A row a value of a curve: ``run``, ``metric``, ``step``, ``tokens``, ``seconds``, ``value``.

    A long curve is thinned out.
    """
    found = io.StringIO()
    writer = csv.writer(found, lineterminator="\n")
    writer.writerow(["run", "metric", "step", "tokens", "seconds", "value"])
    for record in comparison.records:
        for name, metric in METRICS.items():
            series = metric.read(record.history)
            stride = max(-(-len(series) // CURVE_POINTS), 1)
            for step, value in list(zip(series.steps, series.values, strict=True))[::stride]:
                tokens, seconds = record.tokens.at(step) or 0, record.seconds.at(step) or 0.0
                place = f"{seconds:.{len(str(PER_SECOND)) - 1}f}"
                writer.writerow([_cell(record.run.id), name, step, f"{tokens:.0f}", place, repr(value)])
    return found.getvalue()


def _cell(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, list):
        value = ", ".join(map(str, value))
    if not isinstance(value, str):
        return value
    text = one_line(value, 4000)
    return f"'{text}" if _FORMULA.match(text) else text


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as one object.

    Returns:
        ``verdict``; ``runs`` (``letter``, ``run``, ``name``); ``figures``, ``data`` and ``options``, each a list of
        ``name``, ``unit``, ``values`` (one for each run, None where unknown) and ``best`` (places of the best values);
        ``answers``, a list of ``prompt``, ``expected``, ``texts``, ``steps`` and ``right``.
    """

    def told(facts: Sequence[Fact]) -> list[dict[str, Any]]:
        return [
            {"name": fact.name, "unit": fact.unit, "values": list(fact.values), "best": list(fact.best)}
            for fact in facts
        ]

    return {
        "verdict": comparison.verdict,
        "runs": [
            {"letter": letter, "run": record.run.id, "name": record.row.labels.name}
            for letter, record in _lettered(comparison)
        ],
        "figures": told(comparison.figures),
        "data": told(comparison.data),
        "options": told(comparison.options),
        "answers": [
            {
                "prompt": answers.prompt,
                "expected": answers.expected,
                "texts": list(answers.texts),
                "steps": list(answers.steps),
                "right": list(answers.right),
            }
            for answers in comparison.answers
        ],
    }


def text_lines(comparison: Comparison) -> list[str]:
    """The verdict and the tables as lines; ``*`` marks the best value of a figure."""
    lines = [comparison.verdict]
    facts = [*comparison.figures, *comparison.data, *comparison.options]
    widths = _widths(comparison, facts)
    left = max(len(fact.name) for fact in facts)
    head = [one_line(name, 40).rjust(width) for name, width in zip(comparison.names, widths, strict=True)]
    for title, group in _groups(comparison):
        if not group:
            continue
        lines += ["", f"{title.lower():<{left}}  {'  '.join(head)}".rstrip()]
        for fact in group:
            cells = [_marked(fact, place).rjust(width) for place, width in enumerate(widths)]
            lines.append(f"{fact.name:<{left}}  {'  '.join(cells)}".rstrip())
    return lines


def _widths(comparison: Comparison, facts: Sequence[Fact]) -> list[int]:
    return [
        max(len(one_line(name, 40)), *(len(_marked(fact, place)) for fact in facts))
        for place, name in enumerate(comparison.names)
    ]


def _marked(fact: Fact, place: int) -> str:
    return f"{one_line(fact.words[place], 60)}{' *' if place in fact.best else '  ' if fact.best else ''}"
