"""Losses of a run's training rows after the training: rows that the model has not learned, with its own answers.

They are kept in the run's directory, ``trace/row_losses.json``, with the step of the measured weights and the SHA-256
of each data file; what a user has decided about rows is in ``trace/row_review.json`` beside it.

The weights are those of the run's result. A model that has learned its rows by heart has a low loss on wrong rows, too;
its held-out loss has risen by then. So where that ended more than :data:`NEAR` above its least value, the weights are
those of the earliest kept checkpoint whose held-out loss is within :data:`NEAR` of it.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from core.analysis.problems import FileLine
from core.atomic import write_atomic
from core.beneath import directory_beneath
from core.directories import disk_error
from core.errors import UserError
from core.hub_uri import is_hub_entry
from core.jobs.job import Job, JobProgress
from core.runs.catalog.trained import (
    TrainedModel,
    checkpoint_steps,
    find_trained,
    has_result,
    held_checkpoint,
    newest_manifest,
    read_manifest,
    result_step,
    taken_step,
)
from core.runs.record.history import read_history
from core.runs.record.store import TRACE, Run, list_runs, refuse_live
from core.small_files import hash_file, read_json

PROGRAM = "core.worker.job row-losses"
VERSION: Literal[1] = 1
#: Names of the records.
LOSSES_NAME, REVIEW_NAME = "row_losses.json", "row_review.json"
#: Rows with the highest losses, which the model answers itself.
WORST = 40
#: Share by which a held-out loss may exceed the least one and still be near it.
NEAR = 0.05
#: Largest records that are read, in bytes.
_LOSSES_LIMIT, _REVIEW_LIMIT = 256 << 20, 8 << 20
#: Newest runs among which those of a file are looked for.
_RUNS = 200


@dataclass(frozen=True)
class RowLoss:
    """Loss of a row: the mean over its supervised tokens, in nats."""

    file: str
    """Name of its file."""
    line: int
    """Its line, or its row in a table, from 1."""
    loss: float
    tokens: int
    """Supervised tokens."""

    @property
    def place(self) -> FileLine:
        """File and line."""
        return FileLine(self.file, self.line)


@dataclass(frozen=True)
class Twin:
    """A row with the same question as another one."""

    file: str
    line: int
    answer: str


@dataclass(frozen=True)
class WorstRow(RowLoss):
    """A row with one of the highest losses, beside the model's own answer. Texts come from anywhere: sanitize them."""

    question: str = ""
    """The last turn before the answer; empty for plain text."""
    answer: str = ""
    """The row's answer, or its text."""
    own: str | None = None
    """The model's answer to the same conversation; None where it was not asked, as for plain text and tools."""
    twins: tuple[Twin, ...] = ()
    """Other rows with the same conversation before the answer."""


@dataclass(frozen=True)
class DataFile:
    """A data file as it was measured."""

    path: str
    sha256: str
    bytes: int
    mtime_ns: int

    def is_unchanged(self) -> bool:
        """True if the file is still the same; its content is read only if size or time differ."""
        try:
            status = os.stat(self.path)
            if (status.st_size, status.st_mtime_ns) == (self.bytes, self.mtime_ns):
                return True
            return status.st_size == self.bytes and hash_file(self.path) == self.sha256
        except (OSError, ValueError):
            return False


@dataclass(frozen=True)
class RowLosses:
    """Losses of a run's training rows."""

    run: str
    """Id of the run."""
    step: int | None
    """Step of the measured weights; None where the record does not say which step the result is of."""
    rows_sha256: str
    """Fingerprint of all rows, tokens and masks."""
    files: tuple[DataFile, ...]
    rows: Mapping[str, Sequence[tuple[int, float, int]]]
    """Line, loss and supervised tokens of each row, by the name of its file."""
    worst: tuple[WorstRow, ...]
    """Rows with the highest losses, the highest first."""
    notes: tuple[str, ...] = ()
    """Sentences about what is missing."""
    version: Literal[1] = VERSION

    @property
    def count(self) -> int:
        """The number of rows."""
        return sum(map(len, self.rows.values()))

    @property
    def mean(self) -> float:
        """Mean loss over the supervised tokens of all rows."""
        tokens = sum(tokens for rows in self.rows.values() for _, _, tokens in rows)
        return sum(loss * tokens for rows in self.rows.values() for _, loss, tokens in rows) / max(tokens, 1)

    def of_data(self, path: str | Path) -> Mapping[FileLine, RowLoss]:
        """Losses of the rows of a file, or of all files below a directory; without files that have changed since, and
        those that share their name with another one, as rows are named by the names of their files."""
        wanted, found = Path(os.path.realpath(path)), dict[FileLine, RowLoss]()
        names = Counter(Path(file.path).name for file in self.files)
        for file in self.files:
            directory, name = map(Path, os.path.split(file.path))
            # A dataset of the Hub is a directory of links to files elsewhere.
            places = (Path(os.path.realpath(file.path)), Path(os.path.realpath(directory)) / name)
            if names[name.name] == 1 and any(place.is_relative_to(wanted) for place in places) and file.is_unchanged():
                losses = (RowLoss(name.name, *row) for row in self.rows.get(name.name, ()))
                found.update((loss.place, loss) for loss in losses)
        return found

    def is_current(self, run: Run) -> bool:
        """True if a measurement of now would give nothing else: same files, and same weights or none any more."""
        with suppress(UserError):
            if self.step != _to_measure(run)[1]:
                return False
        return all(file.is_unchanged() for file in self.files)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowLosses:
        """Read the output of :func:`dataclasses.asdict`.

        Raises:
            ValueError: If it is none.
        """
        return _reader().validate_python(data)


@functools.cache
def _reader() -> TypeAdapter[RowLosses]:
    return TypeAdapter(RowLosses)


def read_losses(run: Run) -> RowLosses | None:
    """The losses kept in a run's directory; None if there are none, or the file is torn or of another version."""
    try:
        return RowLosses.from_dict(read_json(run.path / TRACE / LOSSES_NAME, _LOSSES_LIMIT))
    except (OSError, ValueError):
        return None


# What a user has decided.


@dataclass(frozen=True)
class RowReview:
    """Decisions about a run's rows."""

    kept: frozenset[FileLine] = frozenset()
    """Rows that were looked at and are right."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Corrected copies of data files: absolute path of the copy to that of the original, line for line."""

    def toggled(self, place: FileLine) -> RowReview:
        """The review with a row kept, or no longer."""
        return replace(self, kept=self.kept ^ {place})

    def with_copy(self, copy: Path, original: Path) -> RowReview:
        """The review with a copy; a copy of a copy is one of the original."""
        first = self.copies.get(str(original), str(original))
        return self if str(copy) == first else replace(self, copies={**self.copies, str(copy): first})


def read_review(run: Run) -> RowReview:
    """The decisions kept in a run's directory; none without a readable file."""
    try:
        data = read_json(run.path / TRACE / REVIEW_NAME, _REVIEW_LIMIT)
        kept = frozenset(FileLine(str(file), int(line)) for file, line in data["kept"])
        return RowReview(kept, {str(copy): str(original) for copy, original in data["copies"].items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return RowReview()


def write_review(run: Run, review: RowReview) -> None:
    """Keep decisions in the run's directory.

    Raises:
        UserError: If they cannot be written.
    """
    _write(run, REVIEW_NAME, {"version": VERSION, "kept": sorted(review.kept), "copies": dict(review.copies)})


def _write(run: Run, name: str, content: Mapping[str, Any]) -> None:
    try:
        with directory_beneath(run.path, TRACE, make=True) as folder:
            write_atomic(folder / name, json.dumps(content, ensure_ascii=True, allow_nan=False) + "\n")
    except OSError as error:
        raise disk_error(run.path / TRACE, error) from error


# Runs of a file.


def runs_trained_on(path: Path) -> Iterator[Run]:
    """Runs that trained on a data file, or on the original of a corrected copy; the newest first.

    Args:
        path: The file, a directory or an entry, absolute.
    """
    for run in list_runs()[:_RUNS]:
        train = run.values().get("data.train")
        entries = [str(entry) for entry in (train if isinstance(train, list) else [train]) if isinstance(entry, str)]
        wanted = {_resolved(path), _resolved(read_review(run).copies.get(os.path.realpath(path), path))}
        if not wanted.isdisjoint(map(_resolved, entries)):
            yield run


def _resolved(path: Path | str) -> str:
    return str(path) if is_hub_entry(path) else os.path.realpath(path)


# The measurement.

RowLossesJob = Job[JobProgress, RowLosses]


def measured_step(run: Run) -> int | None:
    """Step of the checkpoint that is measured; None for the run's result, or what stands in for it."""
    if taken_step(run) is not None or not has_result(run):
        return None
    losses = {event.step: event.loss for event in read_history(run).evals if math.isfinite(event.loss)}
    end = result_step(run)
    if not losses or end is None:
        return None
    near = min(losses.values()) * (1 + NEAR)
    if losses.get(end, losses[max(losses)]) <= near:
        return None
    return next((step for step in checkpoint_steps(run) if losses.get(step, math.inf) <= near), None)


def _to_measure(run: Run) -> tuple[TrainedModel, int | None]:
    """The weights that are measured, and their step; None where the record does not say.

    Raises:
        UserError: As :func:`~core.runs.catalog.trained.find_trained`.
    """
    trained = find_trained(run, measured_step(run))
    return trained, result_step(run) if trained.step is None else trained.step


def row_losses_job(run: Run, worst: int = WORST) -> RowLossesJob:
    """The measurement as a job: a forward pass over the rows, then answers to the worst ones. The record is kept in the
    run's directory; nothing is kept of a job that is closed before its end.

    Args:
        run: A run that is over.
        worst: Rows that the model answers itself.

    Raises:
        UserError: When it runs: if the run is live, has no trained model or another objective than ``sft``, or the rows
            are no longer those of the training.
    """

    def work(job: RowLossesJob) -> RowLosses:
        # Only for a measurement: the app reads records as it begins.
        from core.chat.session import spec_of
        from core.launch.launcher import worker_environment

        refuse_live(run, "the losses of its rows are measured after its end")
        trained, step = _to_measure(run)
        config = trained.config
        if config.train.objective != "sft":
            raise UserError(
                f"Run {run.id} was trained with train.objective = {config.train.objective}, and losses of single rows "
                "are measured for sft alone.",
                "Compare its answers with 'localtune-tui eval'.",
            )
        manifest = newest_manifest(run) if trained.checkpoint is None else read_manifest(trained.checkpoint)
        request = {
            "directory": str(run.path),
            "config": config.model_dump(mode="json"),
            "model": asdict(spec_of(trained)),
            "created": None if run.created is None else run.created.isoformat(),
            "data_sha256": manifest.get("data_sha256"),
            "worst": worst,
        }
        with held_checkpoint(trained.checkpoint):
            answer = job.call(PROGRAM, request, job.report, environment=worker_environment())
        record = RowLosses.from_dict({"run": run.id, "step": step, **answer})
        _write(run, LOSSES_NAME, asdict(record))
        return record

    return Job("the measurement of the rows", work, "Close other programs, or measure on a free device.")
