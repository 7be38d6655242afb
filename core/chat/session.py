"""Chat sessions: conversations with a model in training, in its worker, or with another model, in an engine process."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from core.chat.engine import ADAPTER_LIMIT, AdapterSpec, ChatEngine, ModelSpec
from core.chat.exported import ExportReaders, find_exported
from core.chat.request import BASE, TUNED, ChatRequest, GenerationSettings, Source
from core.config.schema import ModelSection
from core.config.targets import kept_patterns
from core.directories import Progress
from core.errors import UserError
from core.models.find import find_model
from core.paths import user_path
from core.runs.catalog.trained import TrainedModel, find_run_at, find_trained, split_step
from core.runs.control.client import ControlClient
from core.runs.control.protocol import Ways, by_command
from core.runs.record.store import Run
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
    """``base``, ``adapter``, ``step-N`` for a model in training and for a checkpoint, or ``RUN`` or ``RUN@STEP`` of
    another run."""
    finish: Literal["stop", "length", "cancelled"] = "stop"
    prompt_tokens: int = 0
    """Tokens of the conversation before the answer; 0 if unknown."""
    context_limit: int | None = None
    """Most tokens that the model reads, conversation and answer together; None if unknown."""
    raw: str = field(default="", compare=False)
    """The text as the model wrote it, for copying and for data: not safe to show."""


class ChatSession(ABC):
    """A model to chat with.

    Methods block and belong in a thread; ``cancel`` and ``close`` may be called from any other.
    """

    description: str
    """The model in a few words."""
    has_tuned: bool
    """True if there is an adapter, and so a choice between ``tuned`` and ``base``. A run that trains the weights
    themselves has no adapter; either source answers with the trained weights."""

    @property
    def is_open(self) -> bool:
        """True if it takes questions: it has not been closed, and its engine or run has not ended by itself."""
        return True

    @abstractmethod
    def prepare(self, progress: Progress) -> None:
        """Make the model ready, so that the first answer does not wait for loading.

        Raises:
            UserError: If the model cannot be loaded or reached.
        """

    @abstractmethod
    def stream(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        """Generate an answer as the model writes it: ``{"token": text}`` for each piece, then the answer of the engine
        or the worker. Nothing in it is safe to show. Closing the generator early cancels the answer. Another adapter
        than the session's own, a source ``RUN`` or ``RUN@STEP``, is loaded for its first answer.

        Raises:
            UserError: If the model cannot answer; a ``QuestionError`` if the question has to change.
        """

    def generate(
        self, messages: Sequence[dict[str, str]], source: Source, settings: GenerationSettings
    ) -> Iterator[Token | Answer]:
        """Generate an answer that is safe to show, token by token, as :meth:`stream` otherwise."""
        with contextlib.closing(self.stream(ChatRequest(list(messages), source, settings))) as incoming:
            for message in incoming:
                yield Token(sanitize(str(message["token"]))) if "token" in message else _answer(message)

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the current answer; it then ends as ``cancelled``."""

    @abstractmethod
    def close(self) -> None:
        """Close the session, which then takes no more questions."""


class LiveSession(ChatSession):
    """A session with the model in training, which answers between two steps of its worker.

    Args:
        run: The run.
        ways: The words for a remedy if the run refuses.
    """

    def __init__(self, run: Run, ways: Ways = by_command) -> None:
        self._run, self._ways = run, ways
        self.description = f"{run.id}, in training"
        self.has_tuned = run.trains_adapter
        self._client = ControlClient(run, ways=ways)
        self._cancelled = threading.Event()
        self._closed = False
        #: Checkpoints and other runs answer from an engine beside the worker.
        self._beside: EngineSession | None = None
        self._exports = ExportReaders()

    def prepare(self, progress: Progress) -> None:
        """Check that the worker answers."""
        progress("reaching the worker", None, None)
        self._client.request("ping")

    def generate(
        self, messages: Sequence[dict[str, str]], source: Source, settings: GenerationSettings
    ) -> Iterator[Token | Answer]:
        """Generate an answer in the worker; for a checkpoint or another run, in an engine."""
        if source not in (TUNED, BASE):
            yield from super().generate(messages, source, settings)
            return
        pieces: list[str] = []
        speaker: str = source
        began = first = last = time.monotonic()
        try:
            for message in self.stream(ChatRequest(list(messages), source, settings)):
                if "token" in message:
                    last = time.monotonic()
                    first = first if pieces else last
                    pieces.append(message["token"])
                    speaker = one_line(message.get("source", speaker), 80)
                    yield Token(sanitize(pieces[-1]))
                else:
                    yield _answer(message)
        except UserError:
            if not self._cancelled.is_set():
                raise
            # A cancelled answer's connection was closed, so its partial text is known here only.
            rate = (len(pieces) - 1) / (last - first) if last > first else 0.0
            raw = "".join(pieces)
            yield Answer(sanitize(raw), len(pieces), first - began, rate, speaker, "cancelled", raw=raw)

    def _engine(self, source: Source) -> EngineSession:
        if self._beside is None:
            trained = find_trained(*find_run_at(source))
            # Its base is loaded once, and it is an adapter among others there.
            self._beside = EngineSession(
                replace(spec_of(trained), adapter=None, source_name="adapter", file=None), trained.label
            )
            if self._closed:
                self._beside.close()
        return self._beside

    @property
    def is_open(self) -> bool:
        """True while the run is on."""
        return not self._closed and not self._run.state().is_over

    def stream(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        """Generate an answer in the worker, as the model writes it; for a checkpoint, an export or another run, in an
        engine."""
        if request.source in (TUNED, BASE):
            self._cancelled.clear()
            return self._client.generate(request.to_args())
        if (reader := self._exports.find(request.source)) is not None:
            return reader.generate(request)
        return self._engine(request.source).stream(request)

    def cancel(self) -> None:
        """Close the connection, which the worker notices at the next token."""
        self._cancelled.set()
        self._exports.cancel()
        if self._beside is not None:
            self._beside.cancel()
        client = self._client
        if not self._closed:
            self._client = ControlClient(self._run, ways=self._ways)
        client.close()

    def close(self) -> None:
        """Cancel the current answer, and end the engine."""
        self._closed = True
        self.cancel()
        self._exports.close()
        if self._beside is not None:
            self._beside.close()


class EngineSession(ChatSession):
    """A session with a model in an engine of our own; the model is loaded when first needed.

    Args:
        spec: The model.
        description: The model in a few words.
        engine: The process that holds the model.
    """

    def __init__(self, spec: ModelSpec, description: str, engine: ChatEngine | None = None) -> None:
        self.spec = spec
        self.description = description
        self.has_tuned = spec.adapter is not None
        self._engine = engine or ChatEngine()
        self._loading = threading.Lock()
        self._loaded = False
        self._is_closed = False
        self._added: dict[Source, None] = {}
        """The adapters beside the session's own, least recently used first."""
        self._exports = ExportReaders()

    def prepare(self, progress: Progress) -> None:
        """Start the engine and load the model; returns at once if that has been done."""
        with self._loading:
            # Another question would wait behind a cancelled one, and be lost with its process.
            self._engine.calm()
            if self._engine.is_hung:
                self._engine = self._engine.anew()
                self._loaded = False
                self._added.clear()
                if self._is_closed:
                    self._engine.close()
            if not self._loaded:
                self._engine.load(self.spec, progress)
                self._loaded = True

    @property
    def is_open(self) -> bool:
        """True if the engine has not ended."""
        return self._engine.is_open

    def stream(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        """Generate an answer in the engine, as the model writes it; for an export, in its own engine."""
        if (reader := self._exports.find(request.source)) is not None:
            return reader.generate(request)
        self.prepare(lambda _detail, _done, _total: None)
        if request.source not in (TUNED, BASE):
            self._add(request.source)
        return self._engine.generate(request)

    def _add(self, source: Source) -> None:
        """Load another adapter onto the base; if there are too many, the least recently used makes room.

        Raises:
            UserError: If there is none, or it is for another base.
        """
        with self._loading:
            if source not in self._added:
                spec = adapter_spec(find_trained(*find_run_at(source)), source, self.spec)
                if len(self._added) + self.has_tuned >= ADAPTER_LIMIT:
                    oldest = next(iter(self._added))
                    self._engine.remove(oldest)
                    del self._added[oldest]
                self._engine.add(spec)
            self._added.pop(source, None)
            self._added[source] = None

    def cancel(self) -> None:
        """Cancel the answer in the engine."""
        self._exports.cancel()
        self._engine.cancel()

    def close(self) -> None:
        """End the engine."""
        self._is_closed = True
        self._exports.close()
        self._engine.close()


def open_session(
    target: Run | Path | str, step: int | None = None, *, llama: bool = False, ways: Ways = by_command
) -> EngineSession | LiveSession:
    """The chat session for a target; nothing is loaded or connected yet.

    Args:
        target: A run (live: its worker; ended: its base with its adapter), the directory of one, a directory or file of
            a model, the name of a model, or ``RUN`` or ``RUN@STEP``
            (:func:`core.runs.catalog.trained.find_run_at`): the checkpoint of a step is loaded into an engine, whether
            the run is live or not. A GGUF file that was exported is read by llama.cpp.
        step: The step of a checkpoint, where the target is a run.
        llama: Whether llama.cpp reads any GGUF file, rather than the engine, which converts it.
        ways: The words for a remedy if a live run refuses.

    Raises:
        UserError: If there is no such run or model, or the run has no model to chat with.
    """
    if not isinstance(target, Run) and (exported := find_exported(user_path(target), asked=llama)) is not None:
        return EngineSession(exported.spec, one_line(exported.path.name, 80), exported.engine())
    if llama:
        raise UserError("llama.cpp reads GGUF files, and this is a run.", "Export the run, and name its GGUF file.")
    if isinstance(target, str) and not names_model(target):
        target, step = find_run_at(target)
    elif isinstance(target, Path) and os.path.isfile(target / "run.toml"):
        target = Run(target.absolute())
    if not isinstance(target, Run):
        path = user_path(target)
        # The engine has another working directory, so a relative path would mean another file there.
        base = str(path.absolute()) if os.path.exists(path) or isinstance(target, Path) else str(target)
        return EngineSession(ModelSpec(base=base), one_line(path.name or str(target), 80))
    if step is None and not target.state().is_over:
        return LiveSession(target, ways)
    return session_of(find_trained(target, step))


def names_model(name: str) -> bool:
    """True if a name refers to a model, by its path or in the home; otherwise it refers to a run."""
    reference, step = split_step(name)
    path = user_path(reference)
    if os.path.exists(path):
        return not os.path.isfile(path / "run.toml")
    if step is not None and "/" not in reference:
        return False
    return name == ModelSection().base or "/" in name or find_model(name) is not None


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
        keep_16bit=kept_patterns(config.model.keep_16bit),
        precision=config.train.precision,
        device=config.hardware.device,
        gpu=config.hardware.gpu,
        template=trained.template,
        source_name=trained.name,
        base_sha256=trained.base_sha256,
        file=trained.file,
    )


def adapter_spec(trained: TrainedModel, source: Source, on: ModelSpec) -> AdapterSpec:
    """A trained adapter as an engine loads it onto a base.

    Args:
        trained: The adapter.
        source: The name that it answers as.
        on: The base, as it is loaded.

    Raises:
        UserError: If it is not an adapter, or its base had another arithmetic or the weights of a file.
    """
    alone = f"Chat with it by itself: localtune-tui chat {source}"
    if trained.adapter is None:
        raise UserError(f"Run {trained.run.id} trains the weights themselves, so it shares no base with others.", alone)
    if trained.file is not None:
        raise UserError(
            f"{trained.label} was trained with the weights of a {trained.file.type} file, and shares none with others.",
            alone,
        )
    bits = {True: "4 bits", False: "16 bits"}
    wanted, found = trained.config.method.name == "qlora", on.method == "qlora"
    if wanted != found:
        raise UserError(
            f"Run {trained.run.id} was trained on its base in {bits[wanted]}, and it is loaded in {bits[found]}.", alone
        )
    if wanted and kept_patterns(trained.config.model.keep_16bit) != on.keep_16bit:
        raise UserError(
            f"Run {trained.run.id} was trained on a base with other layers in 16 bit (model.keep_16bit).", alone
        )
    return AdapterSpec(
        name=source,
        adapter=str(trained.adapter),
        source_name=source,
        template=trained.template,
        base_sha256=trained.base_sha256,
    )


def _answer(message: dict[str, Any]) -> Answer:
    """An answer from the message of another process."""
    finish, raw = message.get("finish", "stop"), str(message.get("text", ""))
    limit = int(_number(message.get("context_limit")))
    return Answer(
        text=sanitize(raw),
        tokens=int(_number(message.get("tokens"))),
        first_token_seconds=_number(message.get("first_token_seconds")),
        tokens_per_second=_number(message.get("tokens_per_second")),
        source=one_line(str(message.get("source", "")), 80),
        finish=finish if finish in ("stop", "length", "cancelled") else "stop",
        prompt_tokens=int(_number(message.get("prompt_tokens"))),
        context_limit=limit or None,
        raw=raw,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0
