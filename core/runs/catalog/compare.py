"""A comparison of runs as Markdown, CSV and JSON, and as lines for a terminal."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from core.config.compare import differing
from core.errors import UserError
from core.runs.catalog.answers import questions_of
from core.runs.catalog.learning_curve import LearningCurve
from core.runs.catalog.result import shown_value
from core.runs.catalog.rows import RunCatalog, RunFigures, RunRow
from core.runs.catalog.trained import newest_manifest
from core.runs.record.events import StepEvent
from core.runs.record.history import RunHistory
from core.runs.record.sentences import brief_id
from core.runs.record.series import METRICS, Series
from core.runs.record.state import EventTail
from core.runs.record.store import Run
from core.text import one_line, sanitize
from core.units import format_bytes, format_count, format_duration, format_fixed, format_number, format_rate

#: Most runs that are compared at once: there are as many colors and glyphs for curves.
MOST_RUNS = 6
#: Letters of the runs in tables.
LETTERS = "ABCDEF"
#: Most questions whose answers are compared, and characters of each text.
MOST_QUESTIONS, TEXT_LIMIT = 20, 4000

Axis = Literal["step", "tokens", "time"]
#: Axes of curves, in the order in which a key turns through them.
AXES: tuple[Axis, ...] = ("step", "tokens", "time")
#: Values of the axis of time in a second.
PER_SECOND = 1000

Better = Literal["low", "high", ""]


@dataclass
class RunRecord:
    """A run, read whole."""

    row: RunRow
    figures: RunFigures
    values: Mapping[str, Any]
    """Its configuration, ``section.key`` to value."""
    history: RunHistory
    tokens: Series
    """Tokens trained on, by step."""
    seconds: Series
    """Seconds spent in steps, by step."""
    manifest: Mapping[str, Any]
    """Manifest of the newest checkpoint; empty without one."""

    @property
    def run(self) -> Run:
        """The run."""
        return self.row.run

    @property
    def name(self) -> str:
        """Display name, else the id without the date."""
        return self.row.labels.name or brief_id(self.run.id)

    def curve(self, metric: str, axis: Axis = "step") -> Series:
        """A curve of the run over an axis, whose values are whole: steps, tokens, or thousandths of a second."""
        series = METRICS[metric].read(self.history)
        if axis == "step":
            return series
        places, scale = (self.tokens, 1) if axis == "tokens" else (self.seconds, PER_SECOND)
        found = Series()
        for step, value in zip(series.steps, series.values, strict=True):
            place = round((places.at(step) or 0.0) * scale)
            # Two steps at one place would replace each other.
            found.append(place if found.last_step is None else max(place, found.last_step + 1), value)
        return found


@dataclass(frozen=True)
class Fact:
    """A line of the table: a figure, an option or a property of the data, in every run."""

    name: str
    values: tuple[Any, ...]
    """Plain values, for JSON and CSV; None where unknown."""
    words: tuple[str, ...]
    """The same as they are shown, with their units."""
    best: tuple[int, ...] = ()
    """The places of the best values, if values can be better than others."""
    unit: str = ""
    """The unit of the plain values."""


@dataclass(frozen=True)
class ComparedAnswers:
    """The last answers to one question."""

    prompt: str
    expected: str | None
    texts: tuple[str | None, ...]
    """The answer of each run; None if it was not asked."""
    steps: tuple[int | None, ...]
    right: tuple[bool | None, ...]
    """True for the expected answer, False for a wrong one, None if unknown."""


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side."""

    records: tuple[RunRecord, ...]
    figures: tuple[Fact, ...]
    options: tuple[Fact, ...]
    """Options that differ between runs, without the options of the data."""
    data: tuple[Fact, ...]
    """Properties of the data that are not the same in all runs."""
    answers: tuple[ComparedAnswers, ...]
    verdict: str
    """Verdict in a sentence or two: the better run, and its differences."""
    curve: LearningCurve | None = None
    """Held-out loss by the number of rows, for runs that differ in nothing else."""

    @property
    def names(self) -> tuple[str, ...]:
        """The runs as they are called in tables: ``A more data``."""
        return tuple(f"{letter} {record.name}" for letter, record in zip(LETTERS, self.records, strict=False))


def read_record(run: Run, row: RunRow | None = None) -> RunRecord:
    """Read a run whole."""
    history, tokens, seconds = RunHistory(), Series(), Series()
    for events in EventTail(run.events_path).batches():
        for event in events:
            history.apply(event)
            if isinstance(event, StepEvent):
                tokens.append(event.step, float(history.tokens))
                seconds.append(event.step, history.step_seconds)
    return RunRecord(
        row or RunCatalog().row(run),
        RunFigures.of(run, history.totals),
        run.values(),
        history,
        tokens,
        seconds,
        newest_manifest(run),
    )


def compare_runs(records: Sequence[RunRecord]) -> RunComparison:
    """Compare runs.

    Raises:
        UserError: If they are fewer than two, or too many.
    """
    if not 2 <= len(records) <= MOST_RUNS:
        count = "One run is" if len(records) == 1 else f"{len(records)} runs are"
        wrong = "too many" if len(records) > MOST_RUNS else "nothing"
        raise UserError(f"{count} {wrong} to compare.", f"Name two to {MOST_RUNS} different ones.")
    options, data = _options(records), _data(records)
    doubt = _doubt(records, options)
    figures, verdict = _figures(records, doubt), doubt or _verdict(records, options, data)
    curve = None if doubt else LearningCurve.of(records)
    return RunComparison(tuple(records), figures, options, data, _answers(records), verdict, curve)


def _fact(name: str, values: Sequence[Any], words: Callable[[Any], str], better: Better = "", unit: str = "") -> Fact:
    """A fact; the best values are marked where there are at least two, and not all are alike."""
    numbers = [(value, place) for place, value in enumerate(values) if _is_number(value)]
    best: tuple[int, ...] = ()
    if better and len(numbers) > 1 and len({value for value, _ in numbers}) > 1:
        chosen = (min if better == "low" else max)(value for value, _ in numbers)
        best = tuple(place for value, place in numbers if value == chosen)
    return Fact(name, tuple(values), tuple("–" if value is None else words(value) for value in values), best, unit)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _figures(records: Sequence[RunRecord], doubt: str) -> tuple[Fact, ...]:
    # No mark at figures that do not compare.
    low: Better = "" if doubt else "low"

    def of_figures(name: str) -> list[Any]:
        return [getattr(record.figures, name) for record in records]

    probes = [record.history.probe_loss.last for record in records]
    ends = [record.history.end_reason(record.run.state()) for record in records]
    facts = [
        _fact("state", [record.row.state for record in records], str),
        _fact("steps", [record.row.step for record in records], format_count),
        _fact("best eval loss", of_figures("best_loss"), format_number, low),
        _fact("at step", of_figures("best_step"), format_count),
        _fact("last eval loss", of_figures("eval_loss"), format_number, low),
        _fact("exact match", of_figures("exact_match"), lambda value: format_fixed(value, 2), low and "high"),
        _fact("probe loss", probes, format_number, "low"),
        _fact("training loss", [record.row.loss for record in records], format_number),
        _fact("tokens", of_figures("tokens"), format_count),
        _fact("speed", of_figures("tokens_per_second"), format_rate, "high", "tokens/s"),
        _fact("time of work", of_figures("working_seconds"), format_duration, "low", "s"),
        _fact("energy", of_figures("energy_wh"), lambda value: f"{format_fixed(value, 1)} Wh", "low", "Wh"),
        _fact("size", of_figures("size"), format_bytes, unit="bytes"),
        _fact("reason", [one_line(end, 200) or None for end in ends], str),
        _fact("tags", [" ".join(record.row.labels.tags) or None for record in records], str),
        _fact("note", [record.row.labels.note or None for record in records], lambda text: one_line(text, 200)),
    ]
    return tuple(fact for fact in facts if any(value is not None for value in fact.values))


def _options(records: Sequence[RunRecord]) -> tuple[Fact, ...]:
    found = differing([record.values for record in records])
    return tuple(
        Fact(name, tuple(values), tuple(shown_value(name, value) for value in values))
        for name, values in found.items()
        if name not in ("data.train", "data.eval")
    )


def _data(records: Sequence[RunRecord]) -> tuple[Fact, ...]:
    def of_event(name: str) -> list[Any]:
        return [getattr(record.history.data, name, None) for record in records]

    def paths(name: str) -> list[Any]:
        return [_paths(record.values.get(name)) for record in records]

    def hashes(name: str) -> list[Any]:
        found = [record.manifest.get(name) for record in records]
        return [value if isinstance(value, str) else None for value in found]

    def short(digest: str) -> str:
        return one_line(digest, 12).rstrip("…")

    facts = [
        _fact("training files", paths("data.train"), lambda text: one_line(text, 400)),
        _fact("held-out files", paths("data.eval"), lambda text: one_line(text, 400)),
        _fact("SHA-256 of the rows", hashes("data_sha256"), short),
        _fact("SHA-256 of those held out", hashes("held_out_sha256"), short),
        _fact("rows", of_event("rows"), format_count),
        _fact("rows used", of_event("used"), format_count),
        _fact("rows held out", of_event("held_out_rows"), format_count),
        _fact("tokens in the data", of_event("tokens"), format_count),
        _fact("learned tokens", of_event("supervised_tokens"), format_count),
        _fact("longest row in tokens", of_event("longest"), format_count),
    ]
    return tuple(fact for fact in facts if len(set(fact.values)) > 1)


def _paths(value: object) -> str | None:
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return ", ".join(item for item in values if isinstance(item, str)) or None


def _answers(records: Sequence[RunRecord]) -> tuple[ComparedAnswers, ...]:
    """The last answers to each question; questions that most runs were asked come first."""
    asked: dict[tuple[str, str | None], dict[int, tuple[str, int, bool | None]]] = {}
    for place, record in enumerate(records):
        for question in questions_of(record.history.samples):
            last = question.answers[-1]
            right = {"right": True, "wrong": False}.get(last.verdict)
            told = last.text[:TEXT_LIMIT], last.step, right
            asked.setdefault((question.prompt, question.expected), {})[place] = told
    ordered = sorted(asked.items(), key=lambda item: -len(item[1]))[:MOST_QUESTIONS]
    found = []
    for (prompt, expected), given in ordered:
        columns = zip(*(given.get(place, (None, None, None)) for place in range(len(records))), strict=True)
        found.append(ComparedAnswers(prompt[:TEXT_LIMIT], expected and expected[:TEXT_LIMIT], *columns))
    return tuple(found)


def _differ_in_held_out(records: Sequence[RunRecord], facts: Sequence[Fact]) -> bool | None:
    """True if runs have different held-out rows, None if they may; ``facts`` are those that differ between them."""
    held_out = {"held-out files", "SHA-256 of those held out", "rows held out"}
    for fact in facts:
        values = set(fact.values) if fact.name in held_out else set()
        # A run without a checkpoint has no hash of its rows; a run without files holds out a share of its data.
        if len(values if fact.name == "held-out files" else values - {None}) > 1:
            return True
    is_known = all(isinstance(record.manifest.get("held_out_sha256"), str) for record in records)
    if is_known or any(record.values.get("data.eval") for record in records):
        return False
    # Of a share without a hash, only what it is taken from can be compared.
    taken_from = {"training files", "SHA-256 of the rows", "rows", "data.eval_share", "train.seed"}
    return None if any(fact.name in taken_from and len(set(fact.values) - {None}) > 1 for fact in facts) else False


def _losses(records: Sequence[RunRecord]) -> list[tuple[float, int]]:
    """The best eval losses with the places of their runs, the lowest first."""
    losses = [(record.figures.best_loss, place) for place, record in enumerate(records)]
    return sorted((loss, place) for loss, place in losses if loss is not None)


def _doubt(records: Sequence[RunRecord], options: Sequence[Fact]) -> str:
    """The reason why the eval losses do not compare; empty if they do."""
    known = _losses(records)
    if len(known) < 2:
        return "Fewer than two of these runs have an evaluation, so their losses cannot be compared."
    measured = [records[place] for _, place in known]
    if (differ := _differ_in_held_out(measured, [*_data(measured), *_options(measured)])) is not False:
        verb = "are" if differ else "may be"
        return f"Their eval losses {verb} on different held-out rows, so they cannot be compared."
    if any(fact.name == "train.objective" for fact in options):
        return "They were trained for different objectives, so their losses cannot be compared."
    return ""


def _verdict(records: Sequence[RunRecord], options: Sequence[Fact], data: Sequence[Fact]) -> str:
    known = _losses(records)
    (best, place), (second, other) = known[0], known[1]
    if best == second:
        return f"{LETTERS[place]} and {LETTERS[other]} have the same best eval loss, {format_number(best)}."
    sentence = (
        f"{LETTERS[place]} was better on held-out rows: eval loss {format_number(best)} "
        f"at step {records[place].figures.best_step}, {LETTERS[other]} {format_number(second)}."
    )
    differences = [fact.name for fact in (*data[:1], *options)]
    if not differences:
        return f"{sentence} Their options and data are the same."
    more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
    return f"{sentence} They differ in {', '.join(differences[:4])}{more}."


#: Most values of a curve in the file of curves, a run and metric.
CURVE_POINTS = 2000
#: Beginnings of a cell that a spreadsheet takes for a formula.
_FORMULA = re.compile(r"^[=+@\t\r]|^-(?![\d.])")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~])")


def to_markdown(comparison: RunComparison) -> str:
    """A report: the verdict, tables of figures, data and options, and the last answers."""
    names = [f"{letter} · {_escaped(record.name)}" for letter, record in _lettered(comparison)]
    lines = ["# Runs compared", "", _escaped(comparison.verdict), ""]
    for letter, record in _lettered(comparison):
        lines.append(f"- **{letter}**: {_escaped(record.run.id)}, {_escaped(record.row.model)}")
    for title, facts in _groups(comparison):
        if facts:
            lines += ["", f"## {title}", "", *_markdown_table(names, facts)]
    if comparison.curve is not None:
        lines += ["", "## Learning curve", "", *(f"- {_escaped(line.strip())}" for line in comparison.curve.lines())]
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


def _groups(comparison: RunComparison) -> tuple[tuple[str, Sequence[Fact]], ...]:
    """The tables, each with its title."""
    return (
        ("Figures", comparison.figures),
        ("Data that differ", comparison.data),
        ("Options that differ", comparison.options),
    )


def _lettered(comparison: RunComparison) -> list[tuple[str, Any]]:
    return list(zip(LETTERS, comparison.records, strict=False))


def _markdown_table(names: Sequence[str], facts: Sequence[Fact]) -> Iterator[str]:
    yield f"| | {' | '.join(names)} |"
    yield f"|---{'|---:' * len(names)}|"
    for fact in facts:
        told = [_escaped(words) for words in fact.words]
        cells = [f"**{words}**" if place in fact.best else words for place, words in enumerate(told)]
        yield f"| {_escaped(fact.name)} | {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", sanitize(text).replace("\n", " "))


def to_csv(comparison: RunComparison) -> str:
    """A row per run: its figures, and the data and options that differ. A text that a spreadsheet would take for a
    formula begins with an apostrophe."""
    facts = [*comparison.figures, *comparison.data, *comparison.options]
    found = io.StringIO()
    writer = csv.writer(found, lineterminator="\n")
    writer.writerow(["run", "name", *(f"{fact.name} ({fact.unit})" if fact.unit else fact.name for fact in facts)])
    for place, record in enumerate(comparison.records):
        cells = [record.run.id, record.row.labels.name, *(fact.values[place] for fact in facts)]
        writer.writerow([_cell(value) for value in cells])
    return found.getvalue()


def to_curves_csv(comparison: RunComparison) -> str:
    """A row per value of a curve: ``run``, ``metric``, ``step``, ``tokens``, ``seconds``, ``value``.

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


def to_json(comparison: RunComparison) -> dict[str, Any]:
    """The comparison as one object.

    Returns:
        ``verdict``; ``runs`` (``letter``, ``run``, ``name``); ``figures``, ``data`` and ``options``, each a list of
        ``name``, ``unit``, ``values`` (one for each run, None where unknown) and ``best`` (places of the best values);
        ``answers``, a list of ``prompt``, ``expected``, ``texts``, ``steps`` and ``right``; ``learning_curve``, a
        :class:`~core.runs.catalog.learning_curve.LearningCurve` or None.
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
        "answers": [asdict(answers) for answers in comparison.answers],
        "learning_curve": comparison.curve.to_dict() if comparison.curve is not None else None,
    }


def text_lines(comparison: RunComparison) -> list[str]:
    """The verdict and the tables as lines; ``*`` marks the best value of a figure."""
    lines = [comparison.verdict]
    facts = [*comparison.figures, *comparison.data, *comparison.options]
    widths = [
        max(len(one_line(name, 40)), *(len(_marked(fact, place)) for fact in facts))
        for place, name in enumerate(comparison.names)
    ]
    left = max(len(fact.name) for fact in facts)
    head = [one_line(name, 40).rjust(width) for name, width in zip(comparison.names, widths, strict=True)]
    for title, group in _groups(comparison):
        if not group:
            continue
        lines += ["", f"{title.lower():<{left}}  {'  '.join(head)}".rstrip()]
        for fact in group:
            cells = [_marked(fact, place).rjust(width) for place, width in enumerate(widths)]
            lines.append(f"{fact.name:<{left}}  {'  '.join(cells)}".rstrip())
    if comparison.curve is not None:
        lines += ["", "learning curve", *comparison.curve.lines()]
    return lines


def _marked(fact: Fact, place: int) -> str:
    return f"{one_line(fact.words[place], 60)}{' *' if place in fact.best else '  ' if fact.best else ''}"
