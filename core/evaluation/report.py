"""Reports of an evaluation: Markdown for people, JSON lines for programs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.atomic import write_atomic
from core.errors import UserError
from core.evaluation.flips import Flips, chance_line, flips_line
from core.evaluation.record import EvaluationRecord, Metric
from core.evaluation.table import TITLES, Comparison, EvaluationTable
from core.paths import user_path
from core.text import one_line
from core.units import format_fixed

#: Most rows won, and lost, in the Markdown; the JSON lines have all.
MOST_ROWS = 50
#: Most flipped answers each way on a terminal.
MOST_LISTED = 20
#: Permissions of a file that the user asks for, as an editor would set them.
_MODE = 0o644
_CUT = 400
#: Least width of a column, in characters: that of a number.
_NARROWEST = 8


def summary_lines(record: EvaluationRecord, table: EvaluationTable, width: int | None = None) -> list[str]:
    """The table as text for a terminal: a column per model, a line per score, then the comparisons.

    Args:
        record: The evaluation.
        table: Its figures.
        width: Most columns of a line of the table; longer names are shortened at their beginning. None for any width.
    """
    lines = [["answers", *(str(table.answered[name]) for name in record.targets)]]
    for metric in table.metrics:
        lines.append([TITLES[metric], *_means(record, table, metric)])
    heads = ["", *map(_short, record.targets)]
    if width is not None:
        room = max((width - max(len(line[0]) for line in lines)) // max(len(record.targets), 1) - 2, _NARROWEST)
        # Names differ at their end: the step, the type of a file's weights.
        heads = [head if len(head) <= room else f"…{head[1 - room :]}" for head in heads]
    widths = [max(len(line[column]) for line in (heads, *lines)) for column in range(len(heads))]
    told = [
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]).rstrip()
        for first, *others in (heads, *lines)
    ]
    return [*told, *(comparison_line(table, comparison) for comparison in table.comparisons)]


def _means(record: EvaluationRecord, table: EvaluationTable, metric: Metric) -> list[str]:
    """The means of the models, in words."""
    cells = [table.means[name].get(metric) for name in record.targets]
    return ["–" if cell is None else format_fixed(cell, 3) for cell in cells]


def comparison_line(table: EvaluationTable, comparison: Comparison) -> str:
    """A comparison in words: ``against base: exact match +0.350 (95 % between +0.220 and +0.480), 21 won, 0 lost``."""
    if table.deciding is None or table.deciding not in comparison.differences:
        return f"against {_short(comparison.against)}: nothing to score, as no answer is expected"
    difference = comparison.differences[table.deciding]
    interval = comparison.intervals[table.deciding]
    sure = (
        f"95 % between {interval.low:+.3f} and {interval.high:+.3f}"
        if interval is not None
        else f"too few for an interval: {comparison.pairs}"
    )
    same = comparison.pairs - len(comparison.won) - len(comparison.lost)
    return (
        f"against {_short(comparison.against)}: {TITLES[table.deciding]} {difference:+.3f} ({sure}), "
        f"{len(comparison.won)} won, {len(comparison.lost)} lost, {same} the same"
    )


def _short(name: str) -> str:
    return one_line(name, 48)


def to_markdown(record: EvaluationRecord, table: EvaluationTable) -> str:
    """The evaluation as Markdown: the table, the comparisons, and rows won and lost. Answers stand in fences that are
    longer than any in them, so that nothing in an answer is markup."""
    names = [escaped(name) for name in record.targets]
    lines = [
        f"# {escaped(record.prompts)}",
        "",
        f"{len(record.items)} prompts, greedy answers of at most {record.settings['max_new_tokens']} tokens."
        + ("" if record.state == "done" else f" Unfinished: {record.done} of {record.total} answers."),
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---:|' * len(names)}",
    ]
    for metric in table.metrics:
        lines.append(f"| {TITLES[metric]} | {' | '.join(_means(record, table, metric))} |")
    for comparison in table.comparisons:
        lines += ["", f"**{escaped(record.targets[0])}** {escaped(comparison_line(table, comparison))}"]
    lines += ["", "Intervals: paired bootstrap over the prompts, 95 %, percentiles."]
    for comparison in table.comparisons:
        for title, places in (("Won", comparison.won), ("Lost", comparison.lost)):
            if places:
                lines += ["", f"## {title} against {escaped(comparison.against)}"]
                for place in places[:MOST_ROWS]:
                    lines += _row(record, place, (record.targets[0], comparison.against))
                if len(places) > MOST_ROWS:
                    lines += ["", f"… and {len(places) - MOST_ROWS} more."]
    return "\n".join(lines) + "\n"


def flips_to_markdown(record: EvaluationRecord, flips: Sequence[Flips]) -> str:
    """Flipped answers as a section of Markdown, at most :data:`MOST_ROWS` each way, right → wrong first."""
    lines = ["## Flipped answers"]
    for each in flips:
        told = (flips_line(each), chance_line(each), *each.notes)
        lines += ["", *(escaped(text) for text in told if text)]
        for title, places in _ways(each):
            if places:
                lines += ["", f"### {title}, {escaped(each.before)} → {escaped(each.after)}"]
                for place in places[:MOST_ROWS]:
                    lines += _row(record, place, (each.before, each.after), level=4)
                if len(places) > MOST_ROWS:
                    lines += ["", f"… and {len(places) - MOST_ROWS} more."]
    return "\n".join(lines) + "\n"


def flip_lines(record: EvaluationRecord, flips: Flips, *, most: int = MOST_LISTED) -> list[str]:
    """Flipped answers for a terminal: counts, how often chance splits so unevenly, and both answers to each question.

    Args:
        record: The evaluation.
        flips: The flips between two of its models.
        most: Most questions listed each way.
    """
    lines = [text for text in (flips_line(flips), chance_line(flips), *flips.notes) if text]
    for title, places in _ways(flips):
        if not places:
            continue
        lines += ["", title]
        for place in places[:most]:
            item = record.items[place]
            lines.append(f"  {one_line(item.id, 24)}  {one_line(item.question, 100)}")
            told = [("expected", item.expected)] if item.expected is not None else []
            told += [(name, _text(record, name, place)) for name in (flips.before, flips.after)]
            width = max(len(_short(name)) for name, _ in told)
            lines += [f"    {_short(name):<{width}}  {one_line(text or '', 100) or '–'}" for name, text in told]
        if len(places) > most:
            lines.append(f"  … and {len(places) - most} more; --json has all of them.")
    return lines


def flips_to_json(record: EvaluationRecord, flips: Flips) -> dict[str, Any]:
    """Flipped answers as ``--json`` prints them.

    Returns:
        ``before`` and ``after`` (the models), ``metric``, ``compared`` (questions), ``right`` (in both), ``chance``,
        ``notes``, and ``right_to_wrong`` and ``wrong_to_right``, each a list of ``id``, ``question``, ``expected``,
        ``before`` and ``after`` (the answers).
    """

    def told(places: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                "id": (item := record.items[place]).id,
                "question": item.question,
                "expected": item.expected,
                "before": _text(record, flips.before, place),
                "after": _text(record, flips.after, place),
            }
            for place in places
        ]

    return {
        "before": flips.before,
        "after": flips.after,
        "metric": flips.metric,
        "compared": flips.compared,
        "right": flips.right,
        "chance": flips.chance,
        "notes": list(flips.notes),
        "right_to_wrong": told(flips.broken),
        "wrong_to_right": told(flips.mended),
    }


def _ways(flips: Flips) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return (("right → wrong", flips.broken), ("wrong → right", flips.mended))


def _text(record: EvaluationRecord, name: str, place: int) -> str:
    answer = record.answers[name][place]
    return answer.text if answer is not None else ""


def _row(record: EvaluationRecord, place: int, names: Sequence[str], *, level: int = 3) -> list[str]:
    item = record.items[place]
    lines = ["", f"{'#' * level} {escaped(item.id)}", "", *_fenced(item.question)]
    if item.expected is not None:
        lines += ["", "expected", "", *_fenced(item.expected)]
    for name in names:
        lines += ["", escaped(name), "", *_fenced(_text(record, name, place))]
    return lines


def _fenced(text: str) -> list[str]:
    shown = text if len(text) <= _CUT else text[: _CUT - 1] + "…"
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", shown, fence]


def escaped(text: str) -> str:
    """A text on a single line, with Markdown's special characters in tables and headings escaped."""
    return one_line(text, 200).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def to_jsonl(record: EvaluationRecord, table: EvaluationTable) -> str:
    """A line for each question: ``id``, ``messages``, ``expected``, ``answers`` by model (``text``, ``tokens``,
    ``seconds``, ``finish``, ``scores``) and ``outcomes`` by the model that is compared (``won``, ``lost``, ``same``).
    """
    lines = []
    for place, item in enumerate(record.items):
        answers = {name: record.answers[name][place] for name in record.targets}
        lines.append(
            json.dumps(
                {
                    "id": item.id,
                    "messages": [dict(message) for message in item.messages],
                    "expected": item.expected,
                    "answers": {name: None if found is None else asdict(found) for name, found in answers.items()},
                    "outcomes": {one.against: one.outcome(place) for one in table.comparisons},
                },
                ensure_ascii=True,
            )
        )
    return "".join(line + "\n" for line in lines)


def report_path(reference: str) -> Path:
    """The path of a new report.

    Raises:
        UserError: If the file exists already.
    """
    path = user_path(reference).absolute()
    if os.path.lexists(path):
        raise UserError(f"{one_line(str(path))} is there already.", "Name another file, or delete it.")
    return path


def write_report(record: EvaluationRecord, table: EvaluationTable, reference: str) -> Path:
    """Write an evaluation to a file: JSON lines if it ends in ``.jsonl``, else Markdown. An existing file is not
    replaced.

    Raises:
        UserError: If it exists already, or cannot be written.
    """
    path = report_path(reference)
    text = to_jsonl(record, table) if path.suffix.lower() == ".jsonl" else to_markdown(record, table)
    try:
        write_atomic(path, text, mode=_MODE)
    except OSError as error:
        raise UserError(
            f"{one_line(str(path))} cannot be written: {error.strerror or error}.", "Name another place."
        ) from error
    return path
