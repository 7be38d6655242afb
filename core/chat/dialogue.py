"""Conversations with one model, or with two at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from core.chat.request import Source
from core.units import format_rate

ReplyState = Literal["waiting", "streaming", "done", "stopped", "failed"]


@dataclass(eq=False)
class Reply:
    """Answer of one model to one question."""

    source: Source
    text: str = ""
    """As the model wrote it; it is sanitized when it is shown."""
    state: ReplyState = "waiting"
    speaker: str = ""
    """Which weights answered: ``step 34``, ``tuned`` or ``base``."""
    stats: str = ""
    error: str = ""
    hint: str = ""
    pending: deque[str] = field(default_factory=deque)
    """Pieces that have come from the thread of the model and are not in ``text`` yet."""

    @property
    def is_open(self) -> bool:
        """Whether more of it may come."""
        return self.state in ("waiting", "streaming")

    @property
    def label(self) -> str:
        """Who speaks."""
        return self.speaker or self.source

    def take_pending(self) -> bool:
        """Move what has come into ``text``; whether there was anything."""
        pieces = []
        while self.pending:
            pieces.append(self.pending.popleft())
        self.text += "".join(pieces)
        if pieces and self.state == "waiting":
            self.state = "streaming"
        return bool(pieces)


@dataclass(eq=False)
class Exchange:
    """A question and its answers."""

    question: str
    replies: list[Reply]

    def answer_of(self, source: Source) -> str:
        """The answer of this source, else the other one's; empty if there is none."""
        ordered = sorted(self.replies, key=lambda reply: reply.source != source)
        return next((reply.text for reply in ordered if reply.text and reply.state != "failed"), "")


class Dialogue:
    """The exchanges so far; each source is told its own answers, and the other's where it gave none."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def ask(self, question: str, sources: tuple[Source, ...]) -> Exchange:
        """Add a question that these sources are to answer."""
        exchange = Exchange(question, [Reply(source) for source in sources])
        self.exchanges.append(exchange)
        return exchange

    def messages(self, source: Source, system: str = "") -> list[dict[str, str]]:
        """Messages for a source to answer the last question; earlier questions without an answer are left out."""
        messages = [{"role": "system", "content": system}] if system.strip() else []
        for exchange in self.exchanges[:-1]:
            if answer := exchange.answer_of(source):
                messages.append({"role": "user", "content": exchange.question})
                messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": self.exchanges[-1].question}]

    def to_data(self) -> list[dict[str, Any]]:
        """The exchanges as JSON has them; what has not come yet of an answer is not in it."""
        return [
            {
                "question": exchange.question,
                "replies": [
                    {
                        "source": reply.source,
                        "text": reply.text,
                        "state": "stopped" if reply.is_open else reply.state,
                        **{name: getattr(reply, name) for name in _TOLD},
                    }
                    for reply in exchange.replies
                ],
            }
            for exchange in self.exchanges
        ]

    @classmethod
    def from_data(cls, data: object) -> Dialogue:
        """The exchanges that :meth:`to_data` has written; what is none of that is left out."""
        dialogue = cls()
        for item in data if isinstance(data, list) else []:
            if not isinstance(item, dict) or not isinstance(question := item.get("question"), str):
                continue
            written = item.get("replies")
            replies = [_reply(one) for one in written if isinstance(one, dict)] if isinstance(written, list) else []
            if kept := [reply for reply in replies if reply is not None][:2]:
                dialogue.exchanges.append(Exchange(question, kept))
        return dialogue

    def last_answer(self) -> Reply | None:
        """The newest reply with a text; of two to the same question, the tuned model's."""
        replies = (reply for exchange in reversed(self.exchanges) for reply in exchange.replies)
        return next((reply for reply in replies if reply.text), None)


#: What is kept of a reply beside its text.
_TOLD = ("speaker", "stats", "error", "hint")


def _reply(data: dict[str, Any]) -> Reply | None:
    source, text, state = data.get("source"), data.get("text"), data.get("state")
    told = {name: value for name in _TOLD if isinstance(value := data.get(name), str)}
    if source not in ("tuned", "base") or state not in ("done", "stopped", "failed") or not isinstance(text, str):
        return None
    reply = Reply(source, text, state)
    for name, value in told.items():
        setattr(reply, name, value)
    return reply


def speaker_name(source: str) -> str:
    """``step-34`` as ``step 34``, ``adapter`` as ``tuned``."""
    if source.startswith("step-"):
        return f"step {source[5:]}"
    return "tuned" if source == "adapter" else source


def format_stats(tokens: int, first_token_seconds: float, tokens_per_second: float, finish: str = "stop") -> str:
    """``23 tokens · first 0.16 s · 21 tok/s``, and why it ends where it does unless the model ended it itself.

    What was not measured (0) is left out.
    """
    parts = [f"{tokens} token{'' if tokens == 1 else 's'}"]
    if tokens and first_token_seconds > 0:
        parts.append(f"first {first_token_seconds:.2f} s")
    if tokens > 1 and tokens_per_second > 0:
        parts.append(format_rate(tokens_per_second))
    if finish == "length":
        parts.append("cut at chat.max_new_tokens")
    return " · ".join(parts)
