"""Models that answer by a script, for tests of the code around them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from core.chat.request import GenerationSettings, Source
from core.chat.session import Answer, Token
from core.errors import UserError
from core.evaluation.targets import Target


@dataclass
class ScriptedSession:
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

    def generate(
        self, messages: Sequence[dict[str, str]], source: Source, settings: GenerationSettings
    ) -> Iterator[Token | Answer]:
        """A token, then the answer."""
        if self.is_closed.is_set():
            raise UserError("The chat has been closed.")
        question = messages[-1]["content"]
        self.asked.append((question, source))
        text = self.answer(question, source)
        yield Token(text)
        if self.is_closed.is_set():
            raise UserError("The chat has been closed.")
        yield Answer(text, 3, 0.1, 10.0, source)

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
