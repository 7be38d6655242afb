"""The record of an evaluation: questions, answers and scores, kept with the run; an unfinished evaluation continues."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

from core import paths
from core.atomic import write_atomic
from core.directories import disk_error
from core.errors import UserError
from core.evaluation.prompt_set import PromptItem, PromptSet
from core.evaluation.targets import Target
from core.runs.record.events import as_json
from core.runs.record.store import Run
from core.small_files import read_json
from core.text import one_line

VERSION = 1
#: Directory of the records in a run's directory, and in the home for evaluations without a run.
FOLDER = "evaluations"
#: Suffix of results of the harness, kept beside the records.
HARNESS_SUFFIX = ".lm-eval.json"
#: Largest file that is read, in bytes.
FILE_LIMIT = 512 << 20
#: Least seconds between two writes while it runs.
PACE = 2.0

Metric = Literal["check", "exact_match", "schema", "valid_json", "f1"]
#: All scores, most informative first.
METRICS: tuple[Metric, ...] = get_args(Metric)
RecordState = Literal["running", "done"]


@dataclass(frozen=True)
class Answered:
    """An answer with its scores, each from 0 to 1."""

    text: str
    tokens: int = 0
    seconds: float = 0.0
    finish: str = "stop"
    scores: Mapping[str, float] = field(default_factory=dict)
    """By :data:`Metric`; scores that do not apply are left out."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Answered:
        """Read the output of :func:`dataclasses.asdict`."""
        scores = {str(name): float(value) for name, value in data["scores"].items() if name in METRICS}
        if not all(math.isfinite(value) for value in scores.values()):
            raise ValueError("a score that is not finite")
        return cls(str(data["text"]), int(data["tokens"]), float(data["seconds"]), str(data["finish"]), scores)


@dataclass
class EvaluationRecord:
    """An evaluation: questions, models and answers."""

    id: str
    created: float
    """Unix seconds."""
    prompts: str
    """The file of the prompts."""
    prompts_sha256: str
    skipped: int
    items: tuple[PromptItem, ...]
    targets: tuple[str, ...]
    """Names of the models; the others are compared with the first."""
    identities: tuple[str, ...]
    settings: dict[str, Any]
    """``max_new_tokens`` and ``check``, the words of the check command or None."""
    answers: dict[str, list[Answered | None]]
    """By model, as many as there are questions; None for unanswered ones."""
    state: RecordState = "running"

    @classmethod
    def new(cls, prompts: PromptSet, targets: Sequence[Target], settings: Mapping[str, Any]) -> EvaluationRecord:
        """A record without answers."""
        stem = re.sub(r"[^a-z0-9]+", "-", Path(prompts.name).stem.lower()).strip("-")[:32].strip("-") or "prompts"
        return cls(
            id=f"{datetime.now():%Y%m%d-%H%M%S}-{stem}",
            created=time.time(),
            prompts=prompts.name,
            prompts_sha256=prompts.sha256,
            skipped=prompts.skipped,
            items=prompts.items,
            targets=tuple(target.name for target in targets),
            identities=tuple(target.identity for target in targets),
            settings=dict(settings),
            answers={target.name: [None] * len(prompts.items) for target in targets},
        )

    @property
    def done(self) -> int:
        """Answers so far."""
        return sum(answer is not None for answers in self.answers.values() for answer in answers)

    @property
    def total(self) -> int:
        """Answers in all."""
        return len(self.items) * len(self.targets)

    def is_same(self, other: EvaluationRecord) -> bool:
        """True if another evaluation asks the same of the same models, so that its answers can be reused."""
        mine = (self.prompts_sha256, self.targets, self.identities, self.settings)
        return mine == (other.prompts_sha256, other.targets, other.identities, other.settings)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON."""
        return {
            "version": VERSION,
            "id": self.id,
            "created": self.created,
            "state": self.state,
            "prompts": {"name": self.prompts, "sha256": self.prompts_sha256, "skipped": self.skipped},
            "settings": self.settings,
            "targets": [
                {"name": name, "identity": identity}
                for name, identity in zip(self.targets, self.identities, strict=True)
            ],
            "items": list(map(asdict, self.items)),
            "answers": {
                name: [asdict(answer) if answer is not None else None for answer in answers]
                for name, answers in self.answers.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Any) -> EvaluationRecord:
        """Read the output of :meth:`to_dict`.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: If it is none.
        """
        if data["version"] != VERSION or data["state"] not in get_args(RecordState):
            raise ValueError("another version")
        items = tuple(map(PromptItem.from_dict, data["items"]))
        names = tuple(str(target["name"]) for target in data["targets"])
        answers: dict[str, list[Answered | None]] = {
            name: [Answered.from_dict(answer) if answer is not None else None for answer in data["answers"][name]]
            for name in names
        }
        if any(len(found) != len(items) for found in answers.values()):
            raise ValueError("answers that are not one for each question")
        return cls(
            id=str(data["id"]),
            created=float(data["created"]),
            prompts=str(data["prompts"]["name"]),
            prompts_sha256=str(data["prompts"]["sha256"]),
            skipped=int(data["prompts"]["skipped"]),
            items=items,
            targets=names,
            identities=tuple(str(target["identity"]) for target in data["targets"]),
            settings=dict(data["settings"]),
            answers=answers,
            state=cast(RecordState, data["state"]),
        )


def folder_of(run: Run | None) -> Path:
    """The directory of a run's records, or of evaluations without a run."""
    return (run.path if run is not None else paths.home()) / FOLDER


def make_folder(folder: Path) -> None:
    """Make a directory of records, if it is not there.

    Raises:
        UserError: If it is a link, or cannot be made.
    """
    if folder.is_symlink():
        # A run may come from anywhere, and is not to say where this program writes.
        raise UserError(f"{one_line(str(folder))} is a link.", "Remove it, then do it again.")
    try:
        paths.make_private_dir(folder)
    except OSError as error:
        raise disk_error(folder, error) from error


def free_path(folder: Path, stem: str, suffix: str = ".json") -> Path:
    """An unused file name in a directory: the stem, with a number behind it if it is taken."""
    stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(path for each in stems if not os.path.lexists(path := folder / f"{each}{suffix}"))


def read_record(path: Path) -> EvaluationRecord:
    """The record in a file.

    Raises:
        UserError: If it cannot be read or is invalid.
    """
    try:
        return EvaluationRecord.from_dict(read_json(path, FILE_LIMIT))
    except OSError as error:
        raise UserError(
            f"{one_line(str(path))} cannot be read: {error.strerror or error}.", "Check the path."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{one_line(str(path))} is not a record of an evaluation.", "Evaluate again.") from error


def list_records(folder: Path) -> list[Path]:
    """The files of the records in a directory, newest first."""
    try:
        found = [path for path in folder.glob("*.json") if not path.name.endswith(HARNESS_SUFFIX) and path.is_file()]
    except OSError:
        return []
    return sorted(found, key=lambda path: path.name, reverse=True)


def newest_record(run: Run | None) -> tuple[Path, EvaluationRecord]:
    """The newest record of a run, or of evaluations without a run, finished or not, with its file.

    Raises:
        UserError: If there is none.
    """
    for found in _readable(folder_of(run)):
        return found
    of = f"Run {run.id}" if run is not None else "This model"
    raise UserError(f"{of} has not been evaluated yet.", "Name a file of prompts.")


def unfinished(folder: Path, record: EvaluationRecord) -> tuple[Path, EvaluationRecord] | None:
    """The newest unfinished record in a directory that asks the same of the same models; None if there is none."""
    return next(
        (found for found in _readable(folder) if found[1].state == "running" and found[1].is_same(record)), None
    )


def _readable(folder: Path) -> Iterator[tuple[Path, EvaluationRecord]]:
    """The records in a directory that can be read, newest first."""
    for path in list_records(folder):
        with contextlib.suppress(UserError):
            yield path, read_record(path)


class RecordFile:
    """The file of a record, replaced atomically every few seconds while it grows.

    Args:
        path: The file.
        record: Its content.
    """

    def __init__(self, path: Path, record: EvaluationRecord) -> None:
        self.path = path
        self._record = record
        self._due = 0.0

    def write_if_due(self) -> None:
        """Write it, if the last write is a while ago."""
        if time.monotonic() >= self._due:
            self.write(durable=False)

    def write(self, *, durable: bool = True) -> None:
        """Write it.

        Raises:
            UserError: If it cannot be written; the former file is untouched.
        """
        began = time.monotonic()
        try:
            text = json.dumps(as_json(self._record.to_dict()), ensure_ascii=True, allow_nan=False)
            write_atomic(self.path, text + "\n", durable=durable)
        except OSError as error:
            raise disk_error(self.path.parent, error) from error
        now = time.monotonic()
        # With thousands of answers, writing takes only a part of the time.
        self._due = now + max(PACE, 20 * (now - began))
