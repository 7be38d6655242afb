"""Models that answer by a script, for tests of the code around them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.chat.request import ChatRequest, Source
from core.chat.session import ChatSession
from core.errors import UserError
from core.evaluation.targets import Target


@dataclass
class ScriptedSession(ChatSession):
    """A session whose answers a function gives, by question and source."""

    answer: Callable[[str, Source], str]
    description: str = "scripted"
    has_tuned: bool = True
    asked: list[tuple[str, Source]] = field(default_factory=list)
    is_closed: threading.Event = field(default_factory=threading.Event)
    loads: int = 0

    def prepare(self, progress: Callable[[str, int | None, int | None], None]) -> None:
        """Count the loads."""
        self.loads += 1
        progress("loading", None, None)

    def stream(self, request: ChatRequest) -> Generator[dict[str, Any], None, None]:
        """A token, then the answer."""
        if self.is_closed.is_set():
            raise UserError("The chat has been closed.")
        question, source = str(request.messages[-1]["content"]), request.source
        self.asked.append((question, source))
        text = self.answer(question, source)
        yield {"token": text}
        if self.is_closed.is_set():
            raise UserError("The chat has been closed.")
        yield {"text": text, "tokens": 3, "first_token_seconds": 0.1, "tokens_per_second": 10.0, "source": source}

    def cancel(self) -> None:
        """Nothing to cancel: an answer is there at once."""

    def close(self) -> None:
        """End it."""
        self.is_closed.set()


def targets(session: ScriptedSession, names: Sequence[str] = ("run", "base"), identity: str = "1") -> list[Target]:
    """Targets that one loaded model answers, the last one as the base."""

    def open_again() -> ScriptedSession:
        session.is_closed.clear()
        return session

    base = len(names) - 1 if len(names) > 1 else None
    sources: list[Source] = ["base" if place == base else "tuned" for place in range(len(names))]
    return [Target(name, source, identity, "one", open_again) for name, source in zip(names, sources, strict=True)]
