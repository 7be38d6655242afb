"""List of runs: a row for each, cheap to read repeatedly; figures of whole records; and the status of a live run.

Facts and figures of ended runs are cached in files of the home that can be deleted at any time: a stamp in each entry
shows whether it still holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from core import paths
from core.atomic import write_atomic
from core.config.schema import WEIGHT_METHODS
from core.errors import UserError
from core.runs.catalog.removal import directory_size
from core.runs.outlook.energy import Tariff
from core.runs.outlook.time_left import Eta, Schedule, estimate, positive_count, positive_number
from core.runs.record.events import Event, decode_totals
from core.runs.record.history import RunHistory, last_evaluation, last_step
from core.runs.record.sentences import brief_id
from core.runs.record.state import EventTail, Rank, RunState, StepProgress, last_events, read_ranks
from core.runs.record.store import (
    CONFIG_NAME,
    EVENTS_NAME,
    LABELS_NAME,
    NO_LABELS,
    TRACE,
    Labels,
    Run,
    list_runs,
    read_labels,
)
from core.runs.record.timings import RunTotals
from core.small_files import read_json
from core.text import one_line

T = TypeVar("T")

#: Format of a cache file; files of other versions are ignored.
VERSION = 2
#: Largest cache file, in bytes: some hundred for each run.
FILE_LIMIT = 64 << 20
#: Rest after reading a live run, as a multiple of the time that it took.
_REST = 30.0
#: Seconds between two writes of the cache file.
_SAVE_SECONDS = 5.0
#: Types of JSON by annotation of a field.
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "tuple[str, ...]": (list,),
}

#: Times and sizes of the files that facts were read from.
Stamp = tuple[int, ...]
#: Most names of data files that are shown.
MOST_FILES = 4


class RunCache(Generic[T]):
    """Facts of runs by id, each with a stamp of its files; for use by one thread.

    Facts of ended runs outlive the process. Several processes may write the file; the last one wins.

    Args:
        kind: Dataclass of the facts, whose fields are numbers, texts or tuples of texts.
        name: Name of the file; empty for none.
    """

    def __init__(self, kind: type[T], name: str = "") -> None:
        self._make: Callable[..., T] = kind
        self._types = {item.name: _types_of(str(item.type)) for item in dataclasses.fields(cast(Any, kind))}
        self._name = f"{name}.json" if name else ""
        self._known: dict[str, tuple[Stamp, T]] = {}
        self._entries: dict[str, Any] | None = None if name else {}
        self._is_changed = False

    def get(self, run_id: str) -> tuple[Stamp, T] | None:
        """Stamp and facts of a run; None if unknown."""
        if run_id not in self._known and (found := self._decoded(self._read().get(run_id))) is not None:
            self._known[run_id] = found
        return self._known.get(run_id)

    def put(self, run_id: str, stamp: Stamp, facts: T, *, is_over: bool) -> None:
        """Set the facts of a run; :meth:`save` writes them if it is over."""
        self._known[run_id] = stamp, facts
        if is_over and self._name:
            self._read()[run_id] = {"stamp": stamp, "facts": dict(vars(facts))}
            self._is_changed = True

    def keep_only(self, run_ids: Collection[str]) -> None:
        """Drop the facts of all other runs."""
        entries = self._read()
        for run_id in entries.keys() - set(run_ids):
            del entries[run_id]
            self._is_changed = True
        self._known = {run_id: known for run_id, known in self._known.items() if run_id in run_ids}

    def save(self) -> None:
        """Write the file if it has changed; on a full disk nothing is saved."""
        if not self._is_changed:
            return
        self._is_changed = False
        with suppress(OSError, UserError, ValueError):
            directory = paths.make_private_dir(paths.cache_dir())
            data = json.dumps({"version": VERSION, "runs": self._entries}, separators=(",", ":"))
            write_atomic(directory / self._name, data, durable=False)

    def _read(self) -> dict[str, Any]:
        if self._entries is None:
            self._entries = {}
            with suppress(OSError, UserError, ValueError):
                data = read_json(paths.cache_dir() / self._name, FILE_LIMIT, finite=False)
                if isinstance(data, dict) and data.get("version") == VERSION and isinstance(data.get("runs"), dict):
                    self._entries = data["runs"]
        return self._entries

    def _decoded(self, entry: Any) -> tuple[Stamp, T] | None:
        """Stamp and facts in an entry of the file; None if it is missing, damaged or of another version."""
        try:
            stamp, values = tuple(map(int, entry["stamp"])), entry["facts"]
            if values.keys() != self._types.keys():
                return None
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return None
        facts = {}
        for name, types in self._types.items():
            value = values[name]
            if type(value) not in types:
                return None
            facts[name] = tuple(map(str, value)) if type(value) is list else value
        return stamp, self._make(**facts)


def _types_of(annotation: str) -> tuple[type, ...]:
    """Types of JSON that a field of this annotation may have."""
    types = _JSON_TYPES[annotation.removesuffix(" | None")]
    return (*types, type(None)) if annotation.endswith(" | None") else types


@dataclass(frozen=True)
class RunFacts:
    """Facts of a run from its configuration and its newest step.

    Args:
        base: ``model.base`` of the run; None if the configuration cannot be read.
        model: The base model's name and the method, for display; empty if the configuration cannot be read.
        step: Optimizer steps done.
        loss: Loss of the last step; None before the first.
        learning_rate: ``train.learning_rate``; None if the configuration cannot be read.
        rank: ``method.rank``; None also for a run that trains no adapter.
        batch_size: ``train.batch_size``; None if the configuration cannot be read.
        method: ``method.name``; empty if the configuration cannot be read.
        data: Names of its training files, without directories.
        per_kwh: Price of its energy, in ``currency``; None if there is none.
        parent: The run whose training it goes on from; empty for none.
        proof_of: The run that it is a proof for, trained without some of its rows; empty for none.
    """

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
    parent: str = ""
    proof_of: str = ""

    @property
    def origin(self) -> str:
        """The run that it comes from, in words: ``further from 203633-faq``; empty for none."""
        if self.parent:
            return f"further from {brief_id(self.parent)}"
        return f"for a proof of {brief_id(self.proof_of)}" if self.proof_of else ""

    @classmethod
    def read(cls, run: Run) -> RunFacts:
        """Facts of a run from its files."""
        values = run.values()
        method, tariff = values.get("method.name"), Tariff.of(values)
        return cls(
            _base(values),
            _model_label(values),
            learning_rate=positive_number(values.get("train.learning_rate")),
            rank=positive_count(values.get("method.rank")) if method not in WEIGHT_METHODS else None,
            batch_size=positive_count(values.get("train.batch_size")),
            method=one_line(method, 20) if isinstance(method, str) else "",
            data=tuple(file_names(values.get("data.train"))[:MOST_FILES]),
            per_kwh=tariff.per_kwh,
            currency=one_line(tariff.currency, 20),
            parent=parent_of(values),
            proof_of=(proof_path(str(values.get("eval.prompts") or "")) or ("",))[0],
        ).advanced(run)

    def advanced(self, run: Run) -> RunFacts:
        """These facts with the newest step of the run."""
        last = last_step(run)
        return self if last is None else replace(self, step=last.step, loss=last.loss)


#: Directory of the proofs of a run: each a JSON file, with its questions beside it.
PROOFS = Path(TRACE, "proofs")


def proof_path(text: str) -> tuple[str, str] | None:
    """Run and id of the proof whose questions a path leads to; None for any other path.

    Args:
        text: The path; it may be the end of a longer text.
    """
    match Path(text).parts:
        case [*_, "runs", name, trace, proofs, file] if (trace, proofs) == PROOFS.parts:
            return one_line(name, 100), one_line(Path(file).stem, 100)
    return None


def parent_of(values: Mapping[str, Any]) -> str:
    """``RUN`` or ``RUN@STEP`` whose training a run goes on from, or the path of a foreign adapter; empty for none.

    Args:
        values: The configuration of the run, ``section.key`` to value.
    """
    path = values.get("model.adapter") or values.get("model.base") or ""
    match Path(str(path)).parts:
        case [*_, "runs", name, "adapter" | "model"]:
            return one_line(name, 100)
        case [*_, "runs", name, "checkpoints", step, "adapter"]:
            return one_line(f"{name}@{step.removeprefix('step-').lstrip('0')}", 120)
    return one_line(str(values.get("model.adapter") or ""), 300)


@dataclass(frozen=True, kw_only=True)
class RunRow(RunFacts):
    """Row of the list of runs.

    Args:
        run: The run.
        state: Its state, inferred if its process is gone.
        total_steps: Optimizer steps of the whole run; 0 while unknown.
        started: Time of creation, in Unix seconds.
        seconds: Duration from start to end, or until now while it lives.
        reason: Reason for its state; may be empty.
        updated: Time of the last state update, in Unix seconds; 0 if unknown.
        pending: Requests that wait for the end of its step.
        progress: Progress within its present step or evaluation; None between them.
        refused: Missed bars of ``eval.gate``.
        word: The state as it is shown.
        labels: Its labels.
    """

    run: Run
    state: str
    total_steps: int = 0
    started: float = 0.0
    seconds: float | None = None
    reason: str = ""
    updated: float = 0.0
    pending: tuple[str, ...] = ()
    progress: StepProgress | None = None
    refused: str = ""
    word: str = ""
    labels: Labels = NO_LABELS

    @property
    def tariff(self) -> Tariff:
        """Price of its energy."""
        return Tariff(self.per_kwh, self.currency)

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


_UNKNOWN = RunFacts()


class RunCatalog:
    """Reads all runs into rows; for use by one thread.

    Args:
        is_cached: Whether facts of ended runs outlive the process.
    """

    def __init__(self, *, is_cached: bool = False) -> None:
        self._cache = RunCache(RunFacts, "run-facts" if is_cached else "")
        self._labels: dict[str, tuple[int, Labels]] = {}
        self._started: dict[str, float] = {}
        self._seconds_left = math.inf
        self.is_whole = True
        """True if the last list had the facts of every run."""

    def rows(self, seconds: float = math.inf) -> list[RunRow]:
        """Rows of all runs as they are now, newest first.

        Args:
            seconds: Time budget for reading unknown facts, such as model and loss; rows beyond it lack them until the
                next call.
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
            **(vars(facts) | {"step": state.step or facts.step}),
            run=run,
            state=state.state,
            total_steps=state.total_steps,
            started=started,
            seconds=max(ended - started, 0.0),
            reason=state.reason,
            updated=state.updated,
            pending=state.pending if not state.is_over else (),
            progress=state.progress if not state.is_over else None,
            refused=state.refused,
            word=state.word,
            labels=self._read_labels(run),
        )

    def _read_facts(self, run: Run, *, is_over: bool) -> RunFacts:
        """Facts of a run, read again if its files have changed and there is time."""
        # As text: for a thousand runs, making Path objects would take longer than anything else.
        place = os.fspath(run.path)
        stamp = (modified(f"{place}/{CONFIG_NAME}"), modified(f"{place}/{EVENTS_NAME}"))
        before, facts = self._cache.get(run.id) or ((), _UNKNOWN)
        if before == stamp:
            return facts
        if self._seconds_left <= 0:
            self.is_whole = False
            return facts
        begun = time.monotonic()
        facts = facts.advanced(run) if before[:1] == stamp[:1] else RunFacts.read(run)
        self._cache.put(run.id, stamp, facts, is_over=is_over)
        self._seconds_left -= time.monotonic() - begun
        return facts

    def _read_labels(self, run: Run) -> Labels:
        """Labels of a run, read again if their file has changed."""
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


def _base(values: Mapping[str, Any]) -> str | None:
    base = values.get("model.base")
    return base if isinstance(base, str) else None


def _name_of(base: str) -> str:
    return one_line(Path(base).name or base, 60).removesuffix(".gguf")


def file_names(value: object) -> list[str]:
    """Names of the files in an option, without directories."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [one_line(os.path.basename(item.rstrip("/")), 60) for item in values if isinstance(item, str)]


def _model_label(values: Mapping[str, Any]) -> str:
    base, kind, rank = _base(values), values.get("method.name"), positive_count(values.get("method.rank"))
    if base is None:
        return ""
    name = _name_of(base)
    return f"{name} · {one_line(kind, 20)} r{rank}" if isinstance(kind, str) and rank is not None else name


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """Figures of a run; None for unknown ones.

    Args:
        size: Bytes on the disk.
        working_seconds: Time that its workers have spent on it, without pauses.
        tokens: Tokens trained on, without padding and replayed steps.
        tokens_per_second: ``tokens`` over the seconds of its steps.
        energy_wh: Energy of its devices over all starts.
        eval_loss: Loss of the last evaluation.
        exact_match: Share of exact answers in it; None if the dataset defines none.
        best_loss: Least loss of an evaluation.
        best_step: The step of that evaluation.
    """

    size: int
    working_seconds: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    energy_wh: float | None = None
    eval_loss: float | None = None
    exact_match: float | None = None
    best_loss: float | None = None
    best_step: int | None = None

    @classmethod
    def of(cls, run: Run, totals: RunTotals) -> RunFigures:
        """Figures of a run from the totals of its record; reads the sizes of its files."""
        last, best = totals.evals[-1] if totals.evals else None, totals.best
        return cls(
            size=directory_size(run.path),
            working_seconds=totals.work.seconds if totals.work.has_begun else None,
            tokens=totals.tokens,
            tokens_per_second=totals.steps.rate,
            energy_wh=totals.energy_wh,
            eval_loss=last.loss if last is not None else None,
            exact_match=last.exact_match if last is not None else None,
            best_loss=best.loss if best is not None else None,
            best_step=best.step if best is not None else None,
        )


def read_totals(events: Path) -> RunTotals:
    """Totals of an event record, in one fast pass; empty if it cannot be read."""
    totals = RunTotals()
    for batch in EventTail(events, decode=decode_totals).batches():
        for event in batch:
            totals.apply(event)
    return totals


class FigureReader:
    """Reads figures of runs, again only if their files have changed; for use by one thread.

    Args:
        is_cached: Whether figures of ended runs outlive the process.
    """

    def __init__(self, *, is_cached: bool = False) -> None:
        self._cache = RunCache(RunFigures, "run-figures" if is_cached else "")
        self._rests_until: dict[str, float] = {}
        self._saved = time.monotonic()

    @staticmethod
    def stamp(run: Run) -> Stamp:
        """Modification times of a run's directories, followed by time and size of its record."""
        return (modified(run.path), modified(run.checkpoints_path), *_record_stamp(run))

    def read(self, run: Run) -> RunFigures:
        """Present figures of a run; for a live run with a long record, they may be some seconds old."""
        stamp, now = self.stamp(run), time.monotonic()
        known = self._cache.get(run.id)
        if known is not None and (known[0] == stamp or now < self._rests_until.get(run.id, 0.0)):
            return known[1]
        if known is not None and known[0][2:] == stamp[2:]:
            # The record itself is unchanged, and reading a long one is slow.
            figures = dataclasses.replace(known[1], size=directory_size(run.path))
        else:
            figures = RunFigures.of(run, read_totals(run.events_path))
        self._rests_until[run.id] = rest_after(now)
        self._cache.put(run.id, stamp, figures, is_over=run.state().is_over)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()
        return figures

    def is_known(self, run: Run) -> bool:
        """True if the figures of a run are known without reading its record."""
        known = self._cache.get(run.id)
        return known is not None and known[0][2:] == _record_stamp(run)

    def save(self) -> None:
        """Save the figures of ended runs."""
        self._saved = time.monotonic()
        self._cache.save()


def rest_after(begun: float) -> float:
    """Time from which a live run may be read again, by the monotonic clock; later for a long record.

    Args:
        begun: Time at which reading it began.
    """
    now = time.monotonic()
    return now + _REST * (now - begun)


def _record_stamp(run: Run) -> Stamp:
    try:
        status = os.stat(run.events_path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def modified(path: Path | str) -> int:
    """Modification time of a file in nanoseconds; 0 if it is missing."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


#: Bytes at the end of a record that are read: some hundred steps.
TAIL_BYTES = 256 << 10


@dataclass(frozen=True)
class RunStatus:
    """The present status of a run."""

    run: Run
    state: RunState
    row: RunRow
    recent: RunHistory
    """History of its newest events only: step, devices, energy since its worker has started, phase."""
    eval_loss: float | None
    """Loss of the last evaluation; None before the first."""
    eta: Eta | None
    """The time left, by the pace of the newest steps; None if unknown."""
    ranks: tuple[Rank, ...] = ()
    """Its processes with their signs of life; empty for a run of one."""


def read_status(run: Run, now: float) -> RunStatus:
    """Read the present status of a run.

    Args:
        run: The run.
        now: Unix seconds.
    """
    recent, state = RunHistory(), run.state()
    for event in reversed(list(last_events(run.events_path, Event, TAIL_BYTES))):
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
    """The run to follow: the first live run with a process, else the first that waits for one.

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
