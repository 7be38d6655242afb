"""Targets of a prompt set: the models that answer it, by name, and how they are loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.chat.exported import find_exported
from core.chat.request import BASE, TUNED, Source
from core.chat.session import ChatSession, EngineSession, names_model, open_session, session_of, spec_of
from core.errors import UserError
from core.models.find import find_model
from core.paths import user_path
from core.runs.catalog.trained import TrainedModel, find_run_at, find_trained
from core.runs.record.store import Run
from core.text import one_line

#: Most models in one table.
MOST = 8


@dataclass(frozen=True)
class Target:
    """A model that answers."""

    name: str
    """The title of its column: a run with its step, the name of a file or a model."""
    source: Source
    identity: str
    """Hash of the files' sizes and times: answers are reused only for the same hash."""
    loads: str
    """Key of the loaded model: targets with the same key share a session."""
    open: Callable[[], ChatSession]
    trained: TrainedModel | None = None
    """The run's trained model, or the source of an exported file; None for other models."""

    @property
    def run(self) -> Run | None:
        """The run of the model, or of its export."""
        return self.trained.run if self.trained is not None else None


def resolve_targets(names: Sequence[str], against: Sequence[str] = ()) -> list[Target]:
    """The models of a table; the others are compared with the first. Nothing is loaded yet.

    Args:
        names: ``RUN``, ``RUN@STEP``, a model, or a GGUF file; at least one.
        against: The same, or :data:`~core.chat.request.BASE` for the model that the first run began with.

    Raises:
        UserError: If one is not there, or is named twice.
    """
    found: list[Target] = []
    for name in (*names, *against):
        trained = next((other.trained for other in found if other.trained is not None), None)
        target = _base_of(trained) if name == BASE else _resolve(name)
        same = next((other for other in found if other.name == target.name), None)
        if same is not None and (same.loads, same.source) == (target.loads, target.source):
            raise UserError(f"{one_line(name, 80)} is named twice.", "Name each model once.")
        if same is not None:
            # Two files with the same name, which is the key of the answers.
            taken = {other.name for other in found}
            others = (one_line(name, 200), *(f"{target.name} ({number})" for number in range(2, len(found) + 3)))
            target = replace(target, name=next(other for other in others if other not in taken))
        found.append(target)
    if not found:
        raise UserError("No model is named.", "Name a run, or 'latest' for the newest one.")
    if len(found) > MOST:
        raise UserError(f"{len(found)} models are named, and a table has at most {MOST}.", "Name fewer.")
    return found


def _resolve(name: str) -> Target:
    if not name.strip():
        raise UserError("A model's name is empty.", "Name a run, or 'latest' for the newest one.")
    if names_model(name):
        path = user_path(name)
        exists = os.path.exists(path)
        target: Path | str = path.absolute() if exists else name
        identity = _stamp([_files_of(name)])
        title = target.name if isinstance(target, Path) else name
        exported = find_exported(target) if isinstance(target, Path) else None
        trained = exported.trained if exported is not None else None
        return Target(one_line(title, 80), BASE, identity, f"model {target}", lambda: open_session(target), trained)
    run, step = find_run_at(name)
    # The newest checkpoint of a running run: the model in training would change with each question.
    trained = find_trained(run, step)
    shown = run.id if trained.step is None else f"{run.id}@{trained.step}"
    paths = [path for path in (trained.adapter, trained.weights) if path is not None]
    identity = _stamp(paths or [_files_of(trained.base)])
    return Target(shown, TUNED, identity, _loads(trained), lambda: session_of(trained), trained)


def _base_of(trained: TrainedModel | None) -> Target:
    if trained is None:
        raise UserError("There is no run whose base could be asked.", "Name the model itself instead of base.")
    base = trained.config.model.base
    identity = _stamp([_files_of(base)])
    if trained.adapter is not None:
        return Target(BASE, BASE, identity, _loads(trained), lambda: session_of(trained), trained)
    # Weights of its own have taken the base's place: it is loaded by itself, with the same template.
    spec = replace(spec_of(trained), base=base, weights=None, base_sha256=None, source_name="adapter")
    return Target(BASE, BASE, identity, f"base {base}", lambda: EngineSession(spec, BASE), trained)


def _loads(trained: TrainedModel) -> str:
    return json.dumps([trained.base, str(trained.adapter), str(trained.weights), trained.template])


def _files_of(model: str) -> Path:
    """The directory or file of a model, from its path, its name in the home, or its id on a hub."""
    path = user_path(model)
    return path if os.path.exists(path) else find_model(model) or path


def _stamp(paths: Sequence[Path]) -> str:
    """A hash of names, sizes and times of files, and of those in directories."""
    facts: list[tuple[str, int, int]] = []
    for path in paths:
        try:
            files = sorted(path.iterdir()) if path.is_dir() else [path]
            facts += [(file.name, (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
        except OSError:
            facts.append((str(path), 0, 0))
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
