"""Chat sessions: conversations with a model in training, in its worker, or with another model, in an engine process."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from core.chat.engine import ChatEngine, ModelSpec, Progress
from core.chat.exported import READER, find_exported
from core.chat.request import ChatRequest, GenerationSettings, Source
from core.config.schema import ModelSection
from core.errors import UserError
from core.models.find import find_model
from core.paths import user_path
from core.runs.client import ControlClient
from core.runs.store import Run
from core.runs.trained import TrainedModel, find_run_at, find_trained
from core.text import one_line, sanitize

__all__ = ["Answer", "ChatSession", "GenerationSettings", "Token", "open_session"]


@dataclass(frozen=True)
class Token:
    """A piece of an unfinished answer, safe to show."""

    text: str


@dataclass(frozen=True)
class Answer:
    """A complete answer, safe to show."""

    text: str
    tokens: int
    first_token_seconds: float
    tokens_per_second: float
    source: str
    """``base``, ``adapter``, or ``step-N`` for a model in training and for a checkpoint."""
    finish: Literal["stop", "length", "cancelled"] = "stop"


class ChatSession(Protocol):
    """A model to chat with.

    Methods block and belong in a thread; ``cancel`` and ``close`` may be called from any other.
    """

    @property
    def description(self) -> str:
        """The model in a few words."""

    @property
    def has_tuned(self) -> bool:
        """Whether there is an adapter, and so a choice between ``tuned`` and ``base``. A run that trains the weights
        themselves has none, and answers with the trained weights for either."""

    def prepare(self, progress: Progress) -> None:
        """Make the model ready, so that the first answer does not wait for loading.

        Raises:
            UserError: If the model cannot be loaded or reached.
        """

    def generate(
        self, messages: Sequence[dict[str, str]], source: Source, settings: GenerationSettings
    ) -> Iterator[Token | Answer]:
        """Generate an answer: tokens as they come, then the answer. Closing the iterator early cancels the answer.

        Raises:
            UserError: If the model cannot answer.
        """

    def cancel(self) -> None:
        """Cancel the current answer; it then ends as ``cancelled``."""

    def close(self) -> None:
        """Close the session, which then takes no more questions."""


class LiveSession:
    """A session with the model in training, which answers between two steps of its worker.

    Args:
        run: The run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.has_tuned = run.trains_adapter
        self._client = ControlClient(run)
        self._cancelled = threading.Event()
        self._closed = False

    @property
    def description(self) -> str:
        """The run and its step."""
        return f"{self._run.id}, in training"

    def prepare(self, progress: Progress) -> None:
        """Check that the worker answers."""
        progress("reaching the worker", None, None)
        self._client.request("ping")

    def generate(
        self, messages: Sequence[dict[str, str]], source: Source, settings: GenerationSettings
    ) -> Iterator[Token | Answer]:
        """Generate an answer in the worker."""
        request = ChatRequest(list(messages), source, settings)
        pieces: list[str] = []
        speaker: str = source
        began = first = last = time.monotonic()
        self._cancelled.clear()
        try:
            for message in self._client.generate(request.to_args()):
                if "token" in message:
                    last = time.monotonic()
                    first = first if pieces else last
                    pieces.append(sanitize(message["token"]))
                    speaker = one_line(message.get("source", speaker), 80)
                    yield Token(pieces[-1])
                else:
                    yield _answer(message)
        except UserError:
            if not self._cancelled.is_set():
                raise
            # A cancelled answer is one whose connection was closed, so its partial text is known here only.
            rate = (len(pieces) - 1) / (last - first) if last > first else 0.0
            yield Answer("".join(pieces), len(pieces), first - began, rate, speaker, "cancelled")

    def cancel(self) -> None:
        """Close the connection, which the worker notices at the next token."""
        self._cancelled.set()
        client = self._client
        if not self._closed:
            self._client = ControlClient(self._run)
        client.close()

    def close(self) -> None:
        """Cancel the current answer."""
        self._closed = True
        self.cancel()


class EngineSession:
    """A session with a model in an engine of our own; the model is loaded when first needed.

    Args:
        spec: The model.
        description: The model in a few words.
        engine: The process that holds the model.
    """

    def __init__(self, spec: ModelSpec, description: str, engine: ChatEngine | None = None) -> None:
        self.spec = spec
        self._description = description
        self._engine = engine or ChatEngine()
        self._loading = threading.Lock()
        self._loaded = False

    @property
    def description(self) -> str:
        """The run or the model."""
        return self._description

    @property
    def has_tuned(self) -> bool:
        """Whether an adapter is loaded with the base."""
        return self.spec.adapter is not None

    def prepare(self, progress: Progress) -> None:
        """Start the engine and load the model; returns at once if that has been done."""
        with self._loading:
            if not self._loaded:
                self._engine.load(self.spec, progress)
                self._loaded = True

    def generate(
        self, messages: Sequence[dict[str, str]], source: Source, settings: GenerationSettings
    ) -> Iterator[Token | Answer]:
        """Generate an answer in the engine."""
        request = ChatRequest(list(messages), source, settings)
        self.prepare(lambda _detail, _done, _total: None)
        with contextlib.closing(self._engine.generate(request)) as incoming:
            for message in incoming:
                if "token" in message:
                    yield Token(sanitize(str(message["token"])))
                else:
                    yield _answer(message)

    def cancel(self) -> None:
        """Cancel the answer in the engine."""
        self._engine.cancel()

    def close(self) -> None:
        """End the engine."""
        self._engine.close()


def open_session(target: Run | Path | str, *, llama: bool = False) -> ChatSession:
    """The chat session for a target; nothing is loaded or connected yet.

    Args:
        target: A run (live: its worker; ended: its base with its adapter), the directory of one, a directory or file of
            a model, the name of a model, or ``RUN`` or ``RUN@STEP``, see :func:`core.runs.trained.find_run_at`: the
            checkpoint of a step is loaded into an engine, whether the run is live or not. A GGUF file that was exported
            is read by llama.cpp.
        llama: Whether llama.cpp reads any GGUF file, rather than the engine, which converts it.

    Raises:
        UserError: If there is no such run or model, or the run has no model to chat with.
    """
    if not isinstance(target, Run) and (exported := find_exported(user_path(target), asked=llama)) is not None:
        return EngineSession(exported.spec, one_line(exported.path.name, 80), ChatEngine(READER))
    if llama:
        raise UserError("llama.cpp reads GGUF files, and this is a run.", "Export the run, and name its GGUF file.")
    step = None
    if isinstance(target, str) and not _names_model(target):
        target, step = find_run_at(target)
    elif isinstance(target, Path) and os.path.isfile(target / "run.toml"):
        target = Run(target.absolute())
    if not isinstance(target, Run):
        return _base_session(target)
    if step is None and not target.state().is_over:
        return LiveSession(target)
    return session_of(find_trained(target, step))


def _names_model(name: str) -> bool:
    path = user_path(name)
    if os.path.exists(path):
        return not os.path.isfile(path / "run.toml")
    return name == ModelSection().base or "/" in name or find_model(name) is not None


def _base_session(target: Path | str) -> ChatSession:
    path = user_path(target)
    # The engine has another working directory, so a relative path would mean another file there.
    base = str(path.absolute()) if os.path.exists(path) or isinstance(target, Path) else str(target)
    return EngineSession(ModelSpec(base=base), one_line(path.name or str(target), 80))


def session_of(trained: TrainedModel) -> EngineSession:
    """The session with a trained model, in an engine."""
    return EngineSession(spec_of(trained), trained.label)


def spec_of(trained: TrainedModel) -> ModelSpec:
    """A trained model as an engine loads it."""
    config = trained.config
    return ModelSpec(
        base=trained.base,
        adapter=str(trained.adapter) if trained.adapter else None,
        weights=str(trained.weights) if trained.weights else None,
        method=config.method.name,
        precision=config.train.precision,
        device=config.hardware.device,
        gpu=config.hardware.gpu,
        template=trained.template,
        source_name=trained.name,
        base_sha256=trained.base_sha256,
    )


def _answer(message: dict[str, Any]) -> Answer:
    """An answer from the message of another process."""
    finish = message.get("finish", "stop")
    return Answer(
        text=sanitize(str(message.get("text", ""))),
        tokens=int(_number(message.get("tokens"))),
        first_token_seconds=_number(message.get("first_token_seconds")),
        tokens_per_second=_number(message.get("tokens_per_second")),
        source=one_line(str(message.get("source", "")), 80),
        finish=finish if finish in ("stop", "length", "cancelled") else "stop",
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
