"""Conversations with one or several models at once, and their branches."""

from __future__ import annotations

import re
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from core.chat.request import Source
from core.units import format_count, format_rate

if TYPE_CHECKING:
    from core.chat.session import Answer

#: Most answers to one question.
COLUMNS = 3
ReplyState = Literal["waiting", "streaming", "done", "stopped", "failed"]


@dataclass(eq=False)
class Reply:
    """Answer of one model to one question."""

    source: Source
    text: str = ""
    """The answer, safe to show."""
    state: ReplyState = "waiting"
    speaker: str = ""
    """The weights that answered: ``step 34``, ``tuned`` or ``base``."""
    stats: str = ""
    error: str = ""
    hint: str = ""
    pending: deque[str] = field(default_factory=deque)
    """Pieces that have come from the thread of the model and are not in ``text`` yet."""
    raw: str = ""
    """The answer as the model wrote it, once it is whole; empty if that is ``text``."""

    @property
    def as_written(self) -> str:
        """The answer as the model wrote it, as far as it is known."""
        return self.raw or self.text

    @property
    def is_open(self) -> bool:
        """True if more of it may come."""
        return self.state in ("waiting", "streaming")

    @property
    def label(self) -> str:
        """The speaker's name."""
        return self.speaker or self.source

    def take_pending(self) -> bool:
        """Move received pieces into ``text``; True if there were any."""
        pieces = []
        while self.pending:
            pieces.append(self.pending.popleft())
        self.text += "".join(pieces)
        if pieces and self.state == "waiting":
            self.state = "streaming"
        return bool(pieces)

    def take_answer(self, answer: Answer, *, alone: bool = False) -> None:
        """Take over a whole answer and its statistics; the text of an ended reply stays as it is.

        Args:
            answer: The answer.
            alone: True if its question was asked without what was said before.
        """
        if self.is_open:
            self.text, self.raw, self.state = answer.text, answer.raw, "done"
        elif not answer.tokens:
            return
        self.stats = format_stats(
            answer.tokens,
            answer.first_token_seconds,
            answer.tokens_per_second,
            answer.finish,
            context=answer.prompt_tokens + answer.tokens if answer.prompt_tokens else 0,
            context_limit=answer.context_limit,
        )
        if alone:
            self.stats += " · alone"


@dataclass(eq=False)
class Exchange:
    """A question and its answers, with the exchanges that follow it."""

    question: str
    replies: list[Reply]
    branches: list[Exchange] = field(default_factory=list)
    """Follow-up exchanges: several if a question was asked again or in other words."""
    chosen: int = 0
    """Index in ``branches`` of the current follow-up."""
    alone: bool = False
    """True if it was asked without what was said before."""
    wanted: str = ""
    """The answer in the data, where the question is a row's."""

    def answer_of(self, source: Source) -> str:
        """The answer of this source, else another one's, as the model wrote it; empty if there is none."""
        ordered = sorted(self.replies, key=lambda reply: reply.source != source)
        return next((reply.as_written for reply in ordered if reply.text and reply.state != "failed"), "")


class Dialogue:
    """A tree of exchanges, and the path in it that is the conversation now.

    Each source gets its own answers, and another's if it gave none.
    """

    def __init__(self) -> None:
        self.id = secrets.token_hex(4)
        """The name of the conversation."""
        self.started = time.time()
        """Time of its first question, in Unix seconds; before that, of its creation."""
        self._root = Exchange("", [])

    @property
    def exchanges(self) -> list[Exchange]:
        """The conversation: the exchanges on the path, the first one first."""
        found, at = [], self._root
        while at.branches:
            at = at.branches[at.chosen]
            found.append(at)
        return found

    def ask(self, question: str, sources: tuple[Source, ...]) -> Exchange:
        """Add a question that these sources are to answer, at the end of the conversation."""
        if not self._root.branches:
            self.started = time.time()
        return self._branch(self._last, question, sources)

    def ask_again(self, exchange: Exchange, question: str, sources: tuple[Source, ...]) -> Exchange:
        """Ask again in place of an earlier question, whose exchange stays with its follow-ups as another branch."""
        return self._branch(self._before(exchange), question, sources)

    def variants(self, exchange: Exchange) -> tuple[int, int]:
        """The place of an exchange among those asked in its place, from 0, and their number."""
        before = self._before(exchange)
        return before.branches.index(exchange), len(before.branches)

    def turn(self, exchange: Exchange, step: int) -> Exchange:
        """Go to another exchange asked in place of this one; its follow-ups are current again.

        Args:
            exchange: An exchange of the conversation.
            step: How many further; from the last one to the first.
        """
        before = self._before(exchange)
        before.chosen = (before.branches.index(exchange) + step) % len(before.branches)
        return before.branches[before.chosen]

    def remove(self, exchange: Exchange) -> None:
        """Remove an exchange and its follow-ups."""
        before = self._before(exchange)
        place = before.branches.index(exchange)
        before.branches.remove(exchange)
        before.chosen = max(0, before.chosen - (place <= before.chosen))

    def messages(self, source: Source, system: str = "", until: Exchange | None = None) -> list[dict[str, str]]:
        """Messages for a source to answer a question; earlier questions without an answer are left out, and all of them
        for a question that is asked alone.

        Args:
            source: The source that answers.
            system: The system prompt; empty for none.
            until: The question; None: the last one of the conversation.
        """
        path = self.exchanges
        if until is not None:
            # A question that was taken back meanwhile is none of the conversation.
            path = path[: path.index(until) + 1] if until in path else [until]
        messages = [{"role": "system", "content": system}] if system.strip() else []
        for exchange in path[:-1] if not path[-1].alone else ():
            if answer := exchange.answer_of(source):
                messages.append({"role": "user", "content": exchange.question})
                messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": path[-1].question}]

    def to_data(self) -> list[dict[str, Any]]:
        """The exchanges as JSON; the pending part of an answer is not included.

        An exchange that was asked in place of others has them as ``others``, each as a conversation from there on,
        and its own ``place`` among them.
        """
        return _path_data(self._root)

    def to_markdown(self, title: str) -> str:
        """The conversation as Markdown: each question and answer under its speaker, as the model wrote it."""
        parts = [f"# {title}"]
        for exchange in self.exchanges:
            parts += ["## you", exchange.question]
            for reply in exchange.replies:
                notes = " · ".join(
                    note for note in (reply.stats, "stopped" if reply.state == "stopped" else "") if note
                )
                parts += [f"## {reply.label}", reply.text.rstrip() or reply.error or "–"]
                parts += [f"*{notes}*"] if notes else []
            parts += ["## wanted", exchange.wanted] if exchange.wanted else []
        return "\n\n".join(parts) + "\n"

    @classmethod
    def from_data(cls, data: object) -> Dialogue:
        """Read exchanges written by :meth:`to_data`; invalid ones are left out."""
        dialogue = cls()
        _put_path(dialogue._root, data, 0)
        return dialogue

    def last_answer(self) -> Reply | None:
        """The newest reply with a text; of several to the same question, the first."""
        replies = (reply for exchange in reversed(self.exchanges) for reply in exchange.replies)
        return next((reply for reply in replies if reply.text), None)

    @property
    def _last(self) -> Exchange:
        return next(reversed(self.exchanges), self._root)

    def _before(self, exchange: Exchange) -> Exchange:
        """The exchange that this one follows; the root's for a first question.

        Raises:
            ValueError: If it is not of this dialogue.
        """
        waiting = [self._root]
        while waiting:
            at = waiting.pop()
            if exchange in at.branches:
                return at
            waiting += at.branches
        raise ValueError("the exchange is not of this dialogue")

    @staticmethod
    def _branch(before: Exchange, question: str, sources: tuple[Source, ...]) -> Exchange:
        exchange = Exchange(question, [Reply(source) for source in sources])
        before.branches.append(exchange)
        before.chosen = len(before.branches) - 1
        return exchange


def _path_data(before: Exchange) -> list[dict[str, Any]]:
    """The conversation that follows an exchange."""
    items: list[dict[str, Any]] = []
    while before.branches:
        now = before.branches[before.chosen]
        item = _exchange_data(now)
        if len(before.branches) > 1:
            others = [other for other in before.branches if other is not now]
            item["place"] = before.chosen
            item["others"] = [[_exchange_data(other), *_path_data(other)] for other in others]
        items.append(item)
        before = now
    return items


def _exchange_data(exchange: Exchange) -> dict[str, Any]:
    return {
        "question": exchange.question,
        "replies": [
            {
                "source": reply.source,
                "text": reply.text,
                "state": "stopped" if reply.is_open else reply.state,
                **{name: getattr(reply, name) for name in _TOLD},
                **({"raw": reply.raw} if reply.raw not in ("", reply.text) else {}),
            }
            for reply in exchange.replies
        ],
        **({"alone": True} if exchange.alone else {}),
        **({"wanted": exchange.wanted} if exchange.wanted else {}),
    }


def _put_path(before: Exchange, data: object, depth: int) -> None:
    """Read a conversation that follows an exchange."""
    for item in data if isinstance(data, list) else []:
        if not isinstance(item, dict) or (exchange := _exchange(item)) is None:
            continue
        before.branches = [exchange]
        others, place = item.get("others"), item.get("place")
        for other in others if isinstance(others, list) and depth < _DEEPEST else []:
            apart = Exchange("", [])
            _put_path(apart, other, depth + 1)
            before.branches += apart.branches
        if type(place) is int and 0 <= place < len(before.branches):
            before.branches.remove(exchange)
            before.branches.insert(place, exchange)
            before.chosen = place
        before = exchange


def _exchange(item: dict[str, Any]) -> Exchange | None:
    question, written = item.get("question"), item.get("replies")
    if not isinstance(question, str):
        return None
    replies = [_reply(one) for one in written if isinstance(one, dict)] if isinstance(written, list) else []
    kept = [reply for reply in replies if reply is not None][:COLUMNS]
    wanted = item.get("wanted")
    shown = wanted if isinstance(wanted, str) else ""
    return Exchange(question, kept, alone=item.get("alone") is True, wanted=shown) if kept else None


#: Saved fields of a reply beside its text.
_TOLD = ("speaker", "stats", "error", "hint")
#: Deepest nesting of conversations that is read.
_DEEPEST = 50


def _reply(data: dict[str, Any]) -> Reply | None:
    source, text, state = data.get("source"), data.get("text"), data.get("state")
    told: dict[str, Any] = {name: value for name in (*_TOLD, "raw") if isinstance(value := data.get(name), str)}
    if not isinstance(source, str) or not source or not isinstance(text, str):
        return None
    if state not in ("done", "stopped", "failed"):
        return None
    return Reply(source, text, state, **told)


def speaker_name(source: str) -> str:
    """``step-34`` as ``step 34``, ``adapter`` as ``tuned``, ``20261124-143600-tickets@30`` as ``tickets@30``."""
    if source.startswith("step-"):
        return f"step {source[5:]}"
    return "tuned" if source == "adapter" else _STAMP.sub("", source) or source


_STAMP = re.compile(r"^\d{8}-\d{6}-(?=.)", re.ASCII)


def format_stats(
    tokens: int,
    first_token_seconds: float,
    tokens_per_second: float,
    finish: str = "stop",
    *,
    context: int = 0,
    context_limit: int | None = None,
) -> str:
    """``23 tokens · first 0.16 s · 21 tok/s · context 120 of 8,192``, and the reason of its end unless the model ended
    it itself.

    Values that were not measured (0) are left out.
    """
    parts = [f"{tokens} token{'' if tokens == 1 else 's'}"]
    if tokens and first_token_seconds > 0:
        parts.append(f"first {first_token_seconds:.2f} s")
    if tokens > 1 and tokens_per_second > 0:
        parts.append(format_rate(tokens_per_second))
    if context:
        limit = f" of {format_count(context_limit)}" if context_limit else ""
        parts.append(f"context {format_count(context)}{limit}")
    if finish == "length":
        parts.append("cut at chat.max_new_tokens")
    return " · ".join(parts)
