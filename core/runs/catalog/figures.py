"""Figures of runs for their list, which need the whole record or every file; the figures of ended runs are cached.

The caches are files of the home that can be deleted at any time: a stamp in each entry shows whether it still holds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.runs.catalog.removal import directory_size
from core.runs.record.events import LINE_LIMIT, MalformedEventError, decode_totals
from core.runs.record.store import Run
from core.runs.record.tail import read_lines
from core.runs.record.timings import RunTotals
from core.small_files import open_regular, read_json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")

#: Format of a cache file; files of other versions are ignored.
VERSION = 2
#: Largest cache file, in bytes: some hundred for each run.
FILE_LIMIT = 64 << 20
#: Times as long as it took to read a live run it is left alone afterwards.
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


class RunCache(Generic[T]):
    """Facts of runs by id, each with a stamp of its files; belongs to one thread.

    Facts of ended runs outlive the process. Several processes may write the file: the last one wins.

    Args:
        kind: Dataclass of the facts, whose fields are numbers, texts or tuples of texts.
        name: Name of the file; empty for none.
    """

    def __init__(self, kind: type[T], name: str = "") -> None:
        self._kind, self._name = kind, f"{name}.json" if name else ""
        self._known: dict[str, tuple[Stamp, T]] = {}
        self._entries: dict[str, Any] | None = None if name else {}
        self._is_changed = False

    def get(self, run_id: str) -> tuple[Stamp, T] | None:
        """Stamp and facts of a run; None if they are not known."""
        if run_id not in self._known and (found := self._decoded(self._read().get(run_id))) is not None:
            self._known[run_id] = found
        return self._known.get(run_id)

    def put(self, run_id: str, stamp: Stamp, facts: T, *, is_over: bool) -> None:
        """Set the facts of a run; :meth:`save` saves them if it is over."""
        self._known[run_id] = stamp, facts
        if is_over and self._name:
            self._read()[run_id] = {"stamp": stamp, "facts": dataclasses.asdict(facts)}
            self._is_changed = True

    def keep_only(self, run_ids: Collection[str]) -> None:
        """Drop the facts of all other runs."""
        entries = self._read()
        for run_id in entries.keys() - set(run_ids):
            del entries[run_id]
            self._is_changed = True
        self._known = {run_id: known for run_id, known in self._known.items() if run_id in run_ids}

    def save(self) -> None:
        """Write the file, if it has changed; without room for it, nothing is saved."""
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
        fields = dataclasses.fields(self._kind)
        try:
            stamp, values = tuple(map(int, entry["stamp"])), entry["facts"]
            if values.keys() != {item.name for item in fields}:
                return None
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        if not all(_has_type(values[item.name], str(item.type)) for item in fields):
            return None
        return stamp, self._kind(
            **{name: tuple(map(str, value)) if isinstance(value, list) else value for name, value in values.items()}
        )


def _has_type(value: Any, annotation: str) -> bool:
    if value is None:
        return annotation.endswith(" | None")
    return type(value) in _JSON_TYPES[annotation.removesuffix(" | None")]


@dataclass(frozen=True, kw_only=True)
class RunFigures:
    """Figures of a run; None for unknown ones.

    Args:
        size: Bytes on the disk.
        working_seconds: Time that its workers have spent on it, pauses left out.
        tokens: Tokens trained on, without padding and replayed steps.
        tokens_per_second: These over the seconds of its steps.
        energy_wh: Energy of its devices over all starts.
        eval_loss: Loss of the last evaluation.
        exact_match: Share of exact answers in it; None where the dataset defines none.
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
        """Figures of a run whose record adds up to some totals; reads the sizes of its files."""
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
    """Totals of an event record, in one pass that decodes little; empty if it cannot be read."""
    totals = RunTotals()
    try:
        with open_regular(events) as file:
            for line in read_lines(file, LINE_LIMIT):
                with suppress(MalformedEventError):
                    if line.is_ended and not line.is_cut and (event := decode_totals(line.data)) is not None:
                        totals.apply(event)
    except OSError:
        return RunTotals()
    return totals


class FigureReader:
    """Reads figures of runs, and again only where their files have changed; belongs to one thread.

    Args:
        is_cached: Whether figures of ended runs outlive the process.
    """

    def __init__(self, *, is_cached: bool = False) -> None:
        self._cache = RunCache(RunFigures, "run-figures" if is_cached else "")
        self._rests_until: dict[str, float] = {}
        self._saved = time.monotonic()

    @staticmethod
    def stamp(run: Run) -> Stamp:
        """Times of the last changes of a run's directories and of its record, which is behind them."""
        return (*_directory_stamp(run), *_record_stamp(run))

    def read(self, run: Run) -> RunFigures:
        """Figures of a run as it is now; of a live run as they were a moment ago, if reading them takes long."""
        stamp, now = self.stamp(run), time.monotonic()
        known = self._cache.get(run.id)
        if known is not None and (known[0] == stamp or now < self._rests_until.get(run.id, 0.0)):
            return known[1]
        if known is not None and known[0][2:] == stamp[2:]:
            # The size of a record of a million steps does not change with the note on it.
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
        """Write the figures of ended runs down."""
        self._saved = time.monotonic()
        self._cache.save()


def rest_after(begun: float) -> float:
    """Time from which a live run may be read again, by the monotonic clock: a long record is not read all the time.

    Args:
        begun: Time at which reading it has begun.
    """
    now = time.monotonic()
    return now + _REST * (now - begun)


def _record_stamp(run: Run) -> Stamp:
    try:
        status = os.stat(run.events_path)
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _directory_stamp(run: Run) -> Stamp:
    return tuple(map(modified, (run.path, run.checkpoints_path)))


def modified(path: Path | str) -> int:
    """Time of the last change of a file in nanoseconds; 0 if there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0
