"""Comparison of runs: which was better, and what was different about it.

Curves lie over each other by step, by tokens or by time; options and data are told only where they differ; the last
answers to the same question stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.config.compare import differing
from core.errors import UserError
from core.runs.answers import questions_of
from core.runs.catalog import RunCatalog, RunRow
from core.runs.checkpoints import newest_manifest
from core.runs.events import StepEvent
from core.runs.figures import RunFigures, read_figures
from core.runs.history import RunHistory
from core.runs.metrics import METRICS
from core.runs.names import brief_id
from core.runs.series import Series
from core.runs.store import Run
from core.runs.tail import EventTail
from core.text import one_line

#: Most runs that are compared at once: as many as there are colors and glyphs to tell their curves apart.
MOST_RUNS = 6
#: The letters by which runs are told apart.
LETTERS = "ABCDEF"
#: Most questions whose answers are compared, and characters of each text.
MOST_QUESTIONS, TEXT_LIMIT = 20, 4000

Axis = Literal["step", "tokens", "time"]
#: What curves can be laid over, in the order in which a key turns through them.
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
    history: RunHistory = field(default_factory=RunHistory)
    tokens: Series = field(default_factory=Series)
    """Tokens trained on, by step."""
    seconds: Series = field(default_factory=Series)
    """Seconds spent in steps, by step."""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    """What the newest checkpoint says of itself; empty without one."""

    @property
    def run(self) -> Run:
        """The run."""
        return self.row.run

    @property
    def name(self) -> str:
        """What it is called: its display name, else its id without the date."""
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
    """The places of the best values, where one can be better than another."""
    unit: str = ""
    """The unit of the plain values."""


@dataclass(frozen=True)
class Answers:
    """The last answers to one question."""

    prompt: str
    expected: str | None
    texts: tuple[str | None, ...]
    """The answer of each run; None where it was not asked."""
    steps: tuple[int | None, ...]
    right: tuple[bool | None, ...]
    """Whether it is the expected one; None where that is not known."""


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    records: tuple[RunRecord, ...]
    figures: tuple[Fact, ...]
    options: tuple[Fact, ...]
    """Options that are not the same in all runs; those of the data are with the data."""
    data: tuple[Fact, ...]
    """Properties of the data that are not the same in all runs."""
    answers: tuple[Answers, ...]
    verdict: str
    """Which run was better, and what is different about it, in a sentence or two."""

    @property
    def names(self) -> tuple[str, ...]:
        """The runs as they are called in tables: ``A more data``."""
        return tuple(f"{letter} {record.name}" for letter, record in zip(LETTERS, self.records, strict=False))


def read_record(run: Run, row: RunRow | None = None) -> RunRecord:
    """Read a run whole."""
    record = RunRecord(row or RunCatalog().row(run), read_figures(run), run.values(), manifest=newest_manifest(run))
    history = record.history
    for events in EventTail(run.events_path).batches():
        for event in events:
            history.apply(event)
            if isinstance(event, StepEvent):
                record.tokens.append(event.step, float(history.tokens))
                record.seconds.append(event.step, history.step_seconds)
    return record


def compare_runs(records: Sequence[RunRecord]) -> Comparison:
    """Compare runs.

    Raises:
        UserError: If they are fewer than two, or too many.
    """
    if not 2 <= len(records) <= MOST_RUNS:
        count = "One run is" if len(records) == 1 else f"{len(records)} runs are"
        wrong = "too many" if len(records) > MOST_RUNS else "nothing"
        raise UserError(f"{count} {wrong} to compare.", f"Name two to {MOST_RUNS} different ones.")
    figures, options, data = _figures(records), _options(records), _data(records)
    return Comparison(tuple(records), figures, options, data, _answers(records), _verdict(records, options, data))


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


def _figures(records: Sequence[RunRecord]) -> tuple[Fact, ...]:
    from core.units import format_bytes, format_count, format_duration, format_fixed, format_number, format_rate

    def of_figures(name: str) -> list[Any]:
        return [getattr(record.figures, name) for record in records]

    probes = [record.history.probe_loss.last for record in records]
    ends = [record.history.end_reason(record.run.state()) for record in records]
    facts = [
        _fact("state", [record.row.state for record in records], str),
        _fact("steps", [record.row.step for record in records], format_count),
        _fact("best eval loss", of_figures("best_loss"), format_number, "low"),
        _fact("at step", of_figures("best_step"), format_count),
        _fact("last eval loss", of_figures("eval_loss"), format_number, "low"),
        _fact("exact match", of_figures("exact_match"), lambda value: format_fixed(value, 2), "high"),
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
    from core.runs.detail import shown_value

    found = differing([record.values for record in records])
    return tuple(
        Fact(name, tuple(values), tuple(shown_value(name, value) for value in values))
        for name, values in found.items()
        if name not in ("data.train", "data.eval")
    )


def _data(records: Sequence[RunRecord]) -> tuple[Fact, ...]:
    from core.units import format_count

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


def _answers(records: Sequence[RunRecord]) -> tuple[Answers, ...]:
    """The last answers to each question, those first that most runs were asked."""
    asked: dict[tuple[str, str | None], dict[int, tuple[str, int, bool | None]]] = {}
    for place, record in enumerate(records):
        for question in questions_of(record.history.samples):
            last = question.answers[-1]
            right = {"right": True, "wrong": False}.get(last.verdict)
            asked.setdefault((question.prompt, question.expected), {})[place] = (last.text, last.step, right)
    ordered = sorted(asked.items(), key=lambda item: -len(item[1]))[:MOST_QUESTIONS]
    return tuple(
        Answers(
            prompt[:TEXT_LIMIT],
            None if expected is None else expected[:TEXT_LIMIT],
            tuple(given[place][0][:TEXT_LIMIT] if place in given else None for place in range(len(records))),
            tuple(given[place][1] if place in given else None for place in range(len(records))),
            tuple(given[place][2] if place in given else None for place in range(len(records))),
        )
        for (prompt, expected), given in ordered
    )


def _differ_in_held_out(places: Sequence[int], data: Sequence[Fact]) -> bool:
    """Whether the runs at some places have other held-out rows than each other, as far as that is known."""
    held_out = {"held-out files", "SHA-256 of those held out", "rows held out"}
    for fact in data:
        values = {fact.values[place] for place in places} if fact.name in held_out else set()
        # A run without a checkpoint has no hash of its rows; one without files holds out a share of others.
        if len(values if fact.name == "held-out files" else values - {None}) > 1:
            return True
    return False


def _verdict(records: Sequence[RunRecord], options: Sequence[Fact], data: Sequence[Fact]) -> str:
    from core.units import format_number

    losses = [(record.figures.best_loss, place) for place, record in enumerate(records)]
    known = sorted((loss, place) for loss, place in losses if loss is not None)
    if len(known) < 2:
        return "Fewer than two of these runs have an evaluation, so that their losses say nothing of which is better."
    if _differ_in_held_out([place for _, place in known], data):
        return "Their losses were measured on different held-out rows, and do not say which is better."
    if any(fact.name == "train.objective" for fact in options):
        return "They were trained for different objectives, whose losses cannot be compared."
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
    return f"{sentence} What differs: {', '.join(differences[:4])}{more}."
