"""The served models: trained models and their bases, each with the session that holds it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from core.chat.request import BASE, TUNED, ChatRequest, Source
from core.chat.session import ChatSession, names_model, open_session, spec_of
from core.config.schema import ChatSection
from core.directories import Progress
from core.errors import UserError
from core.models.find import is_model_here, missing_model
from core.paths import user_path
from core.runs.catalog.trained import TrainedModel, find_run_at, find_trained, reference_to
from core.runs.record.store import Run
from core.serve.asgi import ApiError
from core.text import one_line


class SessionHolder:
    """The session on a target: opened with the first question, and reopened when it has ended.

    A run that ends its training continues to answer with its result; an engine that was killed is started again.

    Args:
        make: Opens a session.
        progress: Receives the name of the file that is being loaded.
    """

    def __init__(self, make: Callable[[], ChatSession], progress: Progress) -> None:
        self._make = make
        self._progress = progress
        self._guard = threading.Lock()
        self._session: ChatSession | None = None
        self._is_closed = False

    def open(self) -> ChatSession:
        """The session, ready to answer; blocks while the model is loaded.

        Raises:
            UserError: If it cannot be loaded or reached.
        """
        session = self._session
        if session is not None and not session.is_open:
            self.drop()
            session = None
        if session is None:
            session = self._make()
            with self._guard:
                if self._is_closed:
                    raise UserError("The server is ending.")
                self._session = session
        session.prepare(self._progress)
        return session

    def cancel(self) -> None:
        """Cancel the answer that is being generated."""
        with self._guard:
            session = self._session
        if session is not None:
            session.cancel()

    def note_failure(self) -> None:
        """After a failed answer: free the memory of a session that has ended."""
        session = self._session
        if session is not None and not session.is_open:
            self.drop()

    def drop(self) -> None:
        """Close the session; the next question opens another."""
        with self._guard:
            session, self._session = self._session, None
        if session is not None:
            session.close()

    def close(self) -> None:
        """Close the session for good."""
        with self._guard:
            self._is_closed = True
        self.drop()


@dataclass(frozen=True)
class ServedModel:
    """A model by its name in requests."""

    id: str
    holder: SessionHolder
    source: Source
    """Its name in the session."""
    defaults: ChatSection
    """Settings of answers that a request leaves out."""
    created: int
    """Unix seconds."""
    parent: str | None = None
    """The base of an adapter, by its id; None for other models."""

    def question(self, question: ChatRequest) -> ChatRequest:
        """A question as one to this model."""
        return replace(question, source=self.source)


class Models:
    """All models of a server, by id.

    Args:
        models: The models, in the order of the list.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.id: model for model in models}

    @property
    def all(self) -> list[ServedModel]:
        """All of them, in order."""
        return list(self._models.values())

    def find(self, name: str) -> ServedModel:
        """The model of an id.

        Raises:
            ApiError: If there is none.
        """
        found = self._models.get(name)
        if found is None:
            known = ", ".join(self._models)
            raise ApiError(
                404,
                f"There is no model {one_line(name, 80)} here. There are: {known}.",
                param="model",
                code="model_not_found",
            )
        return found

    def close(self) -> None:
        """End all sessions; blocks until their memory is free."""
        for holder in {id(model.holder): model.holder for model in self.all}.values():
            holder.close()


def open_models(targets: Sequence[str], progress: Progress) -> Models:
    """The models of runs (``RUN`` or ``RUN@STEP``) and of names or paths of models; nothing is loaded yet.

    Of a run that trains an adapter, the base is served as well.

    Args:
        targets: Names from the command line.
        progress: Receives the name of the file that is being loaded.

    Raises:
        UserError: If a target cannot be found, or has nothing to serve.
    """
    opening = _Opening(progress)
    for target in targets:
        if names_model(target):
            opening.add_model(target)
        else:
            opening.add_run(*find_run_at(target))
    return Models(opening.models)


class _Opening:
    """Collects the models: adapters on one base share its session, and so its memory."""

    def __init__(self, progress: Progress) -> None:
        self.models: list[ServedModel] = []
        self._progress = progress
        #: The session of a base, by how it is loaded.
        self._shared: dict[tuple[Any, ...], SessionHolder] = {}
        self._bases: dict[str, str] = {}

    def add_model(self, target: str) -> None:
        """Add a model without an adapter.

        Raises:
            UserError: If it is not on this machine.
        """
        if not is_model_here(target):
            raise missing_model(target)
        path = user_path(target)
        if os.path.isfile(path) and path.suffix.lower() != ".gguf":
            raise UserError(
                f"{one_line(target, 200)} is not a model.", "Name a run, a directory of a model, or a GGUF file."
            )
        if os.path.isdir(path) and not os.path.isfile(path / "config.json"):
            raise UserError(
                f"{one_line(target, 200)} has no config.json, so it is not a model.", "Name a run, or a model."
            )
        holder = SessionHolder(partial(open_session, target), self._progress)
        self._add(ServedModel(_name_of(target), holder, BASE, ChatSection(), int(time.time())))

    def add_run(self, run: Run, step: int | None) -> None:
        """Add the trained model of a run, and its base."""
        config = run.config()
        created = int(run.created.timestamp()) if run.created is not None else 0
        name = run.id if step is None else f"{run.id}@{step}"
        is_live = step is None and not run.state().is_over
        # Refused at the start, not at the first request.
        trained = None if is_live else find_trained(run, step)
        if trained is not None and trained.warning:
            self._progress(trained.warning, None, None)
        if not run.trains_adapter:
            holder = SessionHolder(partial(open_session, run, step), self._progress)
            self._add(ServedModel(name, holder, TUNED, config.chat, created))
            return
        parent = self._bases.setdefault(
            config.model.base, _unused(_name_of(config.model.base), [*self._bases.values(), name])
        )
        key = () if trained is None else _loading_of(trained)
        source = TUNED
        if trained is not None and key in self._shared:
            holder, source = self._shared[key], reference_to(run, step)
        else:
            holder = SessionHolder(partial(open_session, run, step), self._progress)
            if trained is not None:
                self._shared[key] = holder
        self._add(ServedModel(name, holder, source, config.chat, created, parent))
        self._add(ServedModel(parent, holder, BASE, config.chat, created))

    def _add(self, model: ServedModel) -> None:
        if all(model.id != other.id for other in self.models):
            self.models.append(model)


def _loading_of(trained: TrainedModel) -> tuple[Any, ...]:
    """Key of adapters that can share a loaded base."""
    spec = spec_of(trained)
    alone = None if trained.file is None else trained.label
    bits = (spec.method == "qlora", spec.keep_16bit)
    return spec.base, spec.base_sha256, bits, spec.precision, spec.device, spec.gpu, alone


def _name_of(model: str) -> str:
    """A model's name for requests; for a path, its last part."""
    path = user_path(model)
    name = path.stem if path.suffix == ".gguf" else path.name
    return one_line(name if name and (path.is_absolute() or os.path.exists(path)) else model, 200)


def _unused(name: str, taken: Collection[str]) -> str:
    return next(each for each in (name, *(f"{name}-{number}" for number in range(2, 1000))) if each not in taken)
