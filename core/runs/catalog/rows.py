"""Rows of the list of runs, cheap to read repeatedly; their order and filter, and the account of one run."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from core.config.schema import WEIGHT_METHODS
from core.runs.catalog.figures import RunCache, RunFigures, modified
from core.runs.outlook.energy import NO_TARIFF, Tariff
from core.runs.outlook.time_left import Eta, Schedule, estimate
from core.runs.record.events import Event
from core.runs.record.history import RunHistory, last_evaluation, last_step, read_glimpse, read_history
from core.runs.record.series import Series
from core.runs.record.state import Rank, RunState, StepProgress, read_ranks
from core.runs.record.store import CONFIG_NAME, EVENTS_NAME, LABELS_NAME, NO_LABELS, Labels, Run, list_runs, read_labels
from core.runs.record.tail import last_events
from core.text import one_line
from core.units import exact_number

#: Most names of data files that are shown.
MOST_FILES = 4
#: Greatest plausible value of an option.
_GREATEST = 1e9


@dataclass(frozen=True)
class RunRow:
    """Row of the list of runs.

    Args:
        run: The run.
        state: Its state, inferred if its process is gone.
        model: The base model's name and the method, for display; empty if the configuration cannot be read.
        step: Optimizer steps done.
        total_steps: Optimizer steps of the whole run; 0 while unknown.
        loss: Loss of the last step; None before the first one.
        started: Time of creation, in Unix seconds.
        seconds: Duration from start to end, or until now while it lives.
        reason: Reason for its state; may be empty.
        base: ``model.base`` of the run; None if the configuration cannot be read.
        updated: Time of the last state update, in Unix seconds; 0 if unknown.
        learning_rate: ``train.learning_rate``; None if the configuration cannot be read, as the next two.
        rank: ``method.rank``; None for a run that trains no adapter.
        batch_size: ``train.batch_size``.
        pending: Requests that wait for the end of its step.
        progress: Progress within its present step or evaluation; None between them.
    """

    run: Run
    state: str
    model: str
    step: int
    total_steps: int
    loss: float | None
    started: float
    seconds: float | None
    reason: str = ""
    base: str | None = None
    updated: float = 0.0
    learning_rate: float | None = None
    rank: int | None = None
    batch_size: int | None = None
    pending: tuple[str, ...] = ()
    progress: StepProgress | None = None
    refused: str = ""
    """Missed bars of ``eval.gate``."""
    word: str = ""
    """The state as it is shown."""
    method: str = ""
    """``method.name``; empty if the configuration cannot be read."""
    data: tuple[str, ...] = ()
    """Names of the files that it is trained on, without their directories."""
    labels: Labels = NO_LABELS
    tariff: Tariff = NO_TARIFF
    """Price of its energy, by its configuration."""

    @property
    def name(self) -> str:
        """Display name, else the id."""
        return self.labels.name or one_line(self.run.id, 64)

    @property
    def base_name(self) -> str:
        """The base model's name without its directory; empty if unknown."""
        return _name_of(self.base) if self.base is not None else ""

    @property
    def method_words(self) -> str:
        """The method, and the rank of its adapter: ``qlora r16``; empty if unknown."""
        return f"{self.method} r{self.rank}" if self.method and self.rank is not None else self.method


@dataclass(frozen=True)
class _Facts:
    """Facts of a run by its configuration and its newest step."""

    base: str | None = None
    model: str = ""
    step: int = 0
    loss: float | None = None
    learning_rate: float | None = None
    rank: int | None = None
    batch_size: int | None = None
    method: str = ""
    data: tuple[str, ...] = ()
    per_kwh: float | None = None
    currency: str = ""

    @classmethod
    def read(cls, run: Run) -> _Facts:
        """Facts of a run from its files."""
        values = run.values()
        method, tariff = values.get("method.name"), Tariff.of(values)
        return cls(
            _base(values),
            _model_label(values),
            learning_rate=_positive(values.get("train.learning_rate")),
            rank=_count(values.get("method.rank")) if method not in WEIGHT_METHODS else None,
            batch_size=_count(values.get("train.batch_size")),
            method=one_line(method, 20) if isinstance(method, str) else "",
            data=tuple(file_names(values.get("data.train"))[:MOST_FILES]),
            per_kwh=tariff.per_kwh,
            currency=one_line(tariff.currency, 20),
        ).advanced(run)

    def advanced(self, run: Run) -> _Facts:
        """The same with the newest step of the run."""
        last = last_step(run)
        return self if last is None else replace(self, step=last.step, loss=last.loss)


_UNKNOWN = _Facts()


class RunCatalog:
    """Reads all runs into rows; belongs to one thread.

    Args:
        is_cached: Whether facts of ended runs outlive the process.
    """

    def __init__(self, *, is_cached: bool = False) -> None:
        self._cache = RunCache(_Facts, "run-facts" if is_cached else "")
        self._labels: dict[str, tuple[int, Labels]] = {}
        self._started: dict[str, float] = {}
        self._seconds_left = math.inf
        self.is_whole = True
        """True if the last list had the facts of every run."""

    def rows(self, seconds: float = math.inf) -> list[RunRow]:
        """Rows of all runs as they are now, newest first.

        Args:
            seconds: Time for reading the facts of runs that are not known yet: model, loss and the like. Rows for
                which there is no time are without them, until the next call.
        """
        runs = list_runs()
        self.is_whole, self._seconds_left = True, seconds
        found = [self.row(run) for run in runs]
        self._seconds_left = math.inf
        if self.is_whole:
            self._cache.keep_only({run.id for run in runs})
            self._cache.save()
        return found

    def row(self, run: Run) -> RunRow:
        """Row of one run as it is now."""
        state = run.state()
        facts = self._read_facts(run, is_over=state.is_over)
        started = self._started.get(run.id)
        if started is None:
            started = self._started[run.id] = started_at(run)
        ended = time.time() if not state.is_over else max(state.updated, started)
        return RunRow(
            run=run,
            state=state.state,
            model=facts.model,
            step=state.step or facts.step,
            total_steps=state.total_steps,
            loss=facts.loss,
            started=started,
            seconds=max(ended - started, 0.0),
            reason=state.reason,
            base=facts.base,
            updated=state.updated,
            learning_rate=facts.learning_rate,
            rank=facts.rank,
            batch_size=facts.batch_size,
            pending=state.pending if not state.is_over else (),
            progress=state.progress if not state.is_over else None,
            refused=state.refused,
            word=state.word,
            method=facts.method,
            data=facts.data,
            tariff=Tariff(facts.per_kwh, facts.currency),
            labels=self._read_labels(run),
        )

    def _read_facts(self, run: Run, *, is_over: bool) -> _Facts:
        """Facts of a run, read where its files have changed and there is time for it."""
        # As text: of a thousand runs, making paths would take longer than all else.
        place = os.fspath(run.path)
        stamp = (modified(f"{place}/{CONFIG_NAME}"), modified(f"{place}/{EVENTS_NAME}"))
        before, facts = self._cache.get(run.id) or ((), _UNKNOWN)
        if before == stamp:
            return facts
        if self._seconds_left <= 0:
            self.is_whole = False
            return facts
        begun = time.monotonic()
        facts = facts.advanced(run) if before[:1] == stamp[:1] else _Facts.read(run)
        self._cache.put(run.id, stamp, facts, is_over=is_over)
        self._seconds_left -= time.monotonic() - begun
        return facts

    def _read_labels(self, run: Run) -> Labels:
        """Labels of a run; read again where their file has changed."""
        stamp = modified(f"{os.fspath(run.path)}/{LABELS_NAME}")
        before = self._labels.get(run.id)
        if before is None or before[0] != stamp:
            before = self._labels[run.id] = stamp, read_labels(run.path) if stamp else NO_LABELS
        return before[1]


def started_at(run: Run) -> float:
    """Creation time of a run in Unix seconds: from its id, else from its directory."""
    return run.created.timestamp() if run.created is not None else modified(run.path) / 1e9


def read_model(run: Run) -> str:
    """Base model's name and method of a run; empty if its configuration cannot be read."""
    return _model_label(run.values())


def _positive(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < _GREATEST else None


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 < value < 1 << 31 else None


def _base(values: Mapping[str, Any]) -> str | None:
    base = values.get("model.base")
    return base if isinstance(base, str) else None


def _name_of(base: str) -> str:
    return one_line(Path(base).name or base, 60).removesuffix(".gguf")


def file_names(value: object) -> list[str]:
    """Names of the files that an option names, without their directories."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [one_line(os.path.basename(item.rstrip("/")), 60) for item in values if isinstance(item, str)]


def _model_label(values: Mapping[str, Any]) -> str:
    base, kind, rank = _base(values), values.get("method.name"), values.get("method.rank")
    if base is None:
        return ""
    name = _name_of(base)
    is_known = isinstance(kind, str) and type(rank) is int and 0 < rank < 1 << 31
    return f"{name} · {one_line(str(kind), 20)} r{rank}" if is_known else name


#: A value to sort by; None where it is unknown.
_Value: TypeAlias = float | str | None


@dataclass(frozen=True)
class SortColumn:
    """A column that the table can be sorted by."""

    name: str
    value: Callable[[RunRow, RunFigures | None], _Value]
    descending: bool = False
    """True if its greatest values come first by default."""
    needs_figures: bool = False
    """True if its values are known only once the records of all runs have been read."""


def _figure(name: str) -> Callable[[RunRow, RunFigures | None], _Value]:
    return lambda _row, figures: getattr(figures, name) if figures is not None else None


#: By name, in the order in which a key turns through them; the first one is the default.
SORT_COLUMNS: Mapping[str, SortColumn] = {
    column.name: column
    for column in (
        SortColumn("started", lambda row, _: row.started, descending=True),
        SortColumn("best", _figure("best_loss"), needs_figures=True),
        SortColumn("loss", lambda row, _: row.loss),
        SortColumn("speed", _figure("tokens_per_second"), descending=True, needs_figures=True),
        SortColumn("energy", _figure("energy_wh"), descending=True, needs_figures=True),
        SortColumn("took", _figure("working_seconds"), descending=True, needs_figures=True),
        SortColumn("size", _figure("size"), descending=True, needs_figures=True),
        SortColumn("step", lambda row, _: row.step, descending=True),
        SortColumn("state", lambda row, _: row.state),
        SortColumn("name", lambda row, _: row.name.lower()),
        SortColumn("model", lambda row, _: row.base_name.lower() or None),
        SortColumn("method", lambda row, _: row.method_words or None),
        SortColumn("data", lambda row, _: ", ".join(row.data).lower() or None),
    )
}
DEFAULT_SORT = next(iter(SORT_COLUMNS))


def sort_rows(
    rows: Iterable[RunRow], figures: Mapping[str, RunFigures], by: str = DEFAULT_SORT, *, reverse: bool = False
) -> list[RunRow]:
    """Rows in the order of a column; those without a value come last either way, and equal ones newest first.

    Args:
        rows: The rows.
        figures: Figures by run id, as far as they are known.
        by: A name of :data:`SORT_COLUMNS`.
        reverse: Whether to turn the column's usual direction around.
    """
    column = SORT_COLUMNS[by]
    known: list[tuple[float | str, RunRow]] = []
    unknown: list[RunRow] = []
    for row in sorted(rows, key=lambda row: row.run.id, reverse=True):
        value = column.value(row, figures.get(row.run.id))
        if value is None or (isinstance(value, float) and math.isnan(value)):
            unknown.append(row)
        else:
            known.append((value, row))
    # Sorting is stable either way.
    known.sort(key=lambda pair: pair[0], reverse=column.descending != reverse)
    return [row for _, row in known] + unknown


def select_rows(rows: Iterable[RunRow], text: str = "", *, archived: bool = False) -> list[RunRow]:
    """The rows that a text selects, in their order.

    Each word of the text must be somewhere in the row: id, name, state, model, method, data, tags, note.
    ``#good`` is a tag; ``state:``, ``model:``, ``method:``, ``data:``, ``name:`` and ``note:`` say where to look.

    Args:
        rows: The rows.
        text: The words.
        archived: Whether archived runs are selected too.
    """
    words = text.lower().split()
    return [row for row in rows if (archived or not row.labels.archived) and _matches(row, words)]


def _matches(row: RunRow, words: Sequence[str]) -> bool:
    if not words:
        return True
    fields = {
        "name": f"{row.labels.name} {row.run.id}",
        "state": f"{row.state}{' refused' if row.refused else ''}{' archived' if row.labels.archived else ''}",
        "model": row.base_name,
        "method": row.method_words,
        "data": " ".join(row.data),
        "tag": " ".join(row.labels.tags),
        "note": row.labels.note,
    }
    lowered = {name: text.lower() for name, text in fields.items()}
    tags = {tag.lower() for tag in row.labels.tags}
    return all(_has(lowered, tags, word) for word in words)


def _has(fields: Mapping[str, str], tags: set[str], word: str) -> bool:
    if word.startswith("#") and len(word) > 1:
        return any(tag.startswith(word[1:]) for tag in tags)
    name, separator, rest = word.partition(":")
    if separator and name in fields:
        return rest in fields[name]
    return any(word in text for text in fields.values())


@dataclass(frozen=True)
class Change:
    """An option whose value differs between two runs; the values as they are written, without directories."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class RunDetail:
    """An account of one run.

    Args:
        run: The run.
        loss: The loss by step.
        evals: Loss of the first and of the last evaluation; empty before one.
        exact_matches: Share of exact answers in them, likewise.
        reason: Why it ended, and a hint; may be empty.
        data: Names of the files it was trained on.
        before: The run that it is compared with; None for the first one.
        changes: Options that differ from that run's.
    """

    run: Run
    loss: Series
    evals: tuple[float, ...]
    exact_matches: tuple[float, ...]
    reason: str
    data: str
    before: Run | None
    changes: tuple[Change, ...]


def read_detail(run: Run, before: Run | None) -> RunDetail:
    """The account of a run, compared with another one."""
    state, values = run.state(), run.values()
    history = read_glimpse(run) or read_history(run)
    reason = history.end_reason(state)
    if state.refused:
        reason = f"{reason.rstrip('.')}. Refused by eval.gate: {state.refused}".lstrip(". ")
    # Of a run that has done all it should, it is the command that talks to it.
    is_wanted = state.is_over and state.state != "finished"
    hint = history.end.hint if history.end is not None and is_wanted else ""
    ends = [history.evals[0], history.evals[-1]] if history.evals else []
    matches = [event.exact_match for event in ends if event.exact_match is not None]
    return RunDetail(
        run=run,
        loss=history.loss,
        evals=tuple(event.loss for event in ends),
        exact_matches=tuple(matches),
        reason=" ".join(f"{text.rstrip('.')}." for text in (one_line(reason, 300), one_line(hint, 300)) if text),
        data=", ".join(file_names(values.get("data.train"))[:MOST_FILES]),
        before=before,
        changes=tuple(_option_changes(before.values(), values)) if before is not None else (),
    )


def _option_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    from core.config.compare import differences

    if not before or not after:
        return []
    return [
        Change(name, shown_value(name, value), shown_value(name, after.get(name)))
        for name, value in differences(after, before).items()
    ]


def shown_value(name: str, value: Any) -> str:
    """A value of an option for a narrow column: the end of a path, a float without noise, ``–`` for none."""
    from core.config.explain import shown
    from core.config.schema import find_option

    if value is None and (option := find_option(name)) is not None:
        value = option.default
    if value is None:
        return "–"
    if name.startswith("data.") and (names := file_names(value)):
        return ", ".join(names[:MOST_FILES])
    if type(value) is float:
        return exact_number(float(f"{value:.6g}"))
    # A path in full has no room; its end says which one it is.
    return Path(value).name or value if isinstance(value, str) and value.startswith("/") else shown(value).strip('"')


#: Bytes at the end of a record that are read: some hundred steps.
TAIL_BYTES = 256 << 10


@dataclass(frozen=True)
class RunStatus:
    """The present of a run."""

    run: Run
    state: RunState
    row: RunRow
    recent: RunHistory
    """Its newest events only, folded: step, devices, energy since its worker has started, phase."""
    eval_loss: float | None
    """Loss of the last evaluation; None before one."""
    eta: Eta | None
    """The time left, by the pace of the newest steps; None while it is unknown."""
    ranks: tuple[Rank, ...] = ()
    """Its processes with their signs of life; empty for a run of one."""


def read_status(run: Run, now: float) -> RunStatus:
    """The present of a run.

    Args:
        run: The run.
        now: Unix seconds.
    """
    events: list[Event] = list(last_events(run.events_path, limit=TAIL_BYTES))
    recent, state = RunHistory(), run.state()
    for event in reversed(events):
        recent.apply(event)
    evaluated = recent.evals[-1] if recent.evals else last_evaluation(run)
    schedule = Schedule.of(run.values()).changed(recent.settings)
    eta = None if state.is_over else estimate(recent.timings, schedule, state.total_steps, now)
    loss = evaluated.loss if evaluated is not None else None
    return RunStatus(run, state, RunCatalog().row(run), recent, loss, eta, read_ranks(run.path))


def live_runs() -> list[Run]:
    """The runs that have not ended, newest first."""
    return [run for run in list_runs() if not run.state().is_over]


def newest_live(runs: Sequence[Run]) -> Run | None:
    """The run that is going on: the first of some that has a process, else the first that waits for one.

    Args:
        runs: The runs, newest first.
    """
    waiting = None
    for run in runs:
        state = run.state()
        if state.pid is not None and not state.is_over:
            return run
        if waiting is None and not state.is_over:
            waiting = run
    return waiting
