"""Run catalog: the list of runs, cheap to read repeatedly, as unchanged runs are cached."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from core.config.schema import WEIGHT_METHODS
from core.runs.energy import NO_TARIFF, Tariff
from core.runs.history import last_step
from core.runs.labels import FILE_NAME, NO_LABELS, Labels, read_labels
from core.runs.state import StepProgress
from core.runs.store import CONFIG_NAME, EVENTS_NAME, Run, list_runs
from core.runs.summary_cache import SummaryCache
from core.text import one_line

#: Most names of data files that are told.
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
    """What the result misses of ``eval.gate``."""
    word: str = ""
    """The state as it is shown."""
    method: str = ""
    """``method.name``; empty if the configuration cannot be read."""
    data: tuple[str, ...] = ()
    """Names of the files that it is trained on, without their directories."""
    labels: Labels = NO_LABELS
    tariff: Tariff = NO_TARIFF
    """What its energy costs, by its configuration."""

    @property
    def name(self) -> str:
        """What lists call it: its display name, else its id."""
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
class _Known:
    """Cached facts of a run, and the modification times of its files when they were read."""

    stamp: tuple[int, int]
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
    def read(cls, run: Run, stamp: tuple[int, int]) -> _Known:
        """The facts of a run as its files have them."""
        values = run.values()
        method, tariff = values.get("method.name"), Tariff.of(values)
        known = cls(
            stamp,
            _base(values),
            _label(values),
            learning_rate=_positive(values.get("train.learning_rate")),
            rank=_count(values.get("method.rank")) if method not in WEIGHT_METHODS else None,
            batch_size=_count(values.get("train.batch_size")),
            method=one_line(method, 20) if isinstance(method, str) else "",
            data=tuple(file_names(values.get("data.train"))[:MOST_FILES]),
            per_kwh=tariff.per_kwh,
            currency=one_line(tariff.currency, 20),
        )
        return known.advanced(run, stamp)

    def advanced(self, run: Run, stamp: tuple[int, int]) -> _Known:
        """The same with the run's newest step."""
        last = last_step(run)
        if last is None:
            return replace(self, stamp=stamp)
        return replace(self, stamp=stamp, step=last.step, loss=last.loss)

    def entry(self) -> dict[str, Any]:
        """The facts as they are kept beyond the process."""
        return asdict(self)

    @classmethod
    def recall(cls, entry: Mapping[str, Any] | None) -> _Known | None:
        """The facts as they were kept; None if they are none, or not all, as an earlier version knew less."""
        if entry is None or entry.keys() != _FACTS:
            return None
        stamp, data = entry.get("stamp"), entry.get("data")
        if not isinstance(stamp, list) or len(stamp) != 2 or not isinstance(data, list):
            return None
        return cls(**{**entry, "stamp": (stamp[0], stamp[1]), "data": tuple(map(str, data))})


_FACTS = frozenset(item.name for item in fields(_Known))
_UNKNOWN = _Known((-1, -1))


class RunCatalog:
    """Reads all runs into rows; belongs to one thread.

    Args:
        cache: Keeps the facts of ended runs beyond the process; None keeps none.
    """

    def __init__(self, cache: SummaryCache | None = None) -> None:
        self._cache = cache
        self._known: dict[str, _Known] = {}
        self._labels: dict[str, tuple[int, Labels]] = {}
        self._started: dict[str, float] = {}
        self._seconds_left = math.inf
        self.is_whole = True
        """Whether the last list had the facts of every run."""

    def rows(self, seconds: float = math.inf) -> list[RunRow]:
        """Rows of all runs as they are now, newest first.

        Args:
            seconds: Time for reading the facts of runs that are not known yet: model, loss and the like. Those that
                there is no time for are without them, until the next call.
        """
        runs = list_runs()
        self.is_whole, self._seconds_left = True, seconds
        found = [self.row(run) for run in runs]
        self._seconds_left = math.inf
        alive = {run.id for run in runs}
        self._known = {identity: known for identity, known in self._known.items() if identity in alive}
        if self._cache is not None and self.is_whole:
            self._cache.keep_only(alive)
            self._cache.save()
        return found

    def row(self, run: Run) -> RunRow:
        """Row of one run as it is now."""
        state = run.state()
        known = self._facts(run, is_over=state.is_over)
        started = self._started.get(run.id)
        if started is None:
            started = self._started[run.id] = started_at(run)
        ended = time.time() if not state.is_over else max(state.updated, started)
        return RunRow(
            run=run,
            state=state.state,
            model=known.model,
            step=state.step or known.step,
            total_steps=state.total_steps,
            loss=known.loss,
            started=started,
            seconds=max(ended - started, 0.0),
            reason=state.reason,
            base=known.base,
            updated=state.updated,
            learning_rate=known.learning_rate,
            rank=known.rank,
            batch_size=known.batch_size,
            pending=state.pending if not state.is_over else (),
            progress=state.progress if not state.is_over else None,
            refused=state.refused,
            word=state.word,
            method=known.method,
            data=known.data,
            tariff=Tariff(known.per_kwh, known.currency),
            labels=self._read_labels(run),
        )

    def _facts(self, run: Run, *, is_over: bool) -> _Known:
        """The facts of a run, read where its files have changed and there is time for it."""
        # As text: of a thousand runs, making paths would take longer than all else.
        place = os.fspath(run.path)
        stamp = (_modified(f"{place}/{CONFIG_NAME}"), _modified(f"{place}/{EVENTS_NAME}"))
        known = self._known.get(run.id) or (_Known.recall(self._cache.get(run.id)) if self._cache is not None else None)
        if known is not None and known.stamp == stamp:
            self._known[run.id] = known
            return known
        if self._seconds_left <= 0:
            self.is_whole = False
            return known or _UNKNOWN
        begun = time.monotonic()
        is_same_config = known is not None and known.stamp[0] == stamp[0]
        known = known.advanced(run, stamp) if known is not None and is_same_config else _Known.read(run, stamp)
        self._known[run.id] = known
        if self._cache is not None and is_over:
            self._cache.put(run.id, known.entry())
        self._seconds_left -= time.monotonic() - begun
        return known

    def _read_labels(self, run: Run) -> Labels:
        """The labels of a run; read again where their file has changed."""
        stamp = _modified(f"{os.fspath(run.path)}/{FILE_NAME}")
        before = self._labels.get(run.id)
        if before is None or before[0] != stamp:
            before = self._labels[run.id] = stamp, read_labels(run.path) if stamp else NO_LABELS
        return before[1]


def _modified(path: Path | str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def started_at(run: Run) -> float:
    """Creation time of a run in Unix seconds: from its id, else from its directory."""
    return run.created.timestamp() if run.created is not None else _modified(run.path) / 1e9


def read_model(run: Run) -> str:
    """Base model's name and method of a run; empty if its configuration cannot be read."""
    return _label(run.values())


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


def _label(values: Mapping[str, Any]) -> str:
    base, kind, rank = _base(values), values.get("method.name"), values.get("method.rank")
    if base is None:
        return ""
    name = _name_of(base)
    is_known = isinstance(kind, str) and type(rank) is int and 0 < rank < 1 << 31
    return f"{name} · {one_line(str(kind), 20)} r{rank}" if is_known else name
