"""A fake chat session with scripted answers, token by token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from core.chat.request import ChatRequest, GenerationSettings, Source
from core.chat.session import ChatSession
from core.directories import Progress
from core.errors import UserError
from core.runs.record.store import Run


class FakeSession(ChatSession):
    """A session that answers each question by its script; a gate, if given, lets out one token at a time.

    Args:
        script: Words of the answers of each source.
        step: The step that the tuned model reports; None for a trained adapter.
    """

    has_tuned = True
    description = "a fake"

    def __init__(self, script: dict[Source, list[str]], *, step: int | None = None) -> None:
        self.script = script
        self.step = step
        self.asked: list[tuple[Source, list[dict[str, str]], GenerationSettings]] = []
        self.gate: threading.Semaphore | None = None
        self.load_gate: threading.Event | None = None
        self.error: UserError | None = None
        self.prepared = 0
        self.closed = False
        self.cancelled = threading.Event()

    def prepare(self, progress: Progress) -> None:
        self.prepared += 1
        progress("loading the weights", 1, 4)
        if self.load_gate is not None and not self.load_gate.wait(60):
            raise AssertionError("the test never opened the gate")

    def stream(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        source = request.source
        self.asked.append((source, request.messages, request.settings))
        self.cancelled.clear()
        if self.error is not None:
            raise self.error
        said: list[str] = []
        for word in self.script[source]:
            if self.gate is not None:
                while not self.gate.acquire(timeout=0.01):
                    if self.cancelled.is_set():
                        break
            if self.cancelled.is_set():
                break
            said.append(word)
            yield {"token": word}
        name = "base" if source == "base" else "adapter" if self.step is None else f"step-{self.step}"
        finish = "cancelled" if self.cancelled.is_set() else "stop"
        told = {"text": "".join(said), "tokens": len(said), "source": name, "finish": finish}
        yield {**told, "first_token_seconds": 0.16, "tokens_per_second": 21.4}

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed = True
        self.cancelled.set()


def factory(*sessions: FakeSession) -> Callable[[Run | Path | str], ChatSession]:
    """A factory that returns these sessions one after the other, and then the last one every time."""
    waiting = list(sessions)

    def open_session(_: Run | Path | str) -> ChatSession:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return open_session
