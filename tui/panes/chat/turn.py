"""One turn of the chat, in a thread: every source is asked after the other, events become messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from textual.message import Message

from core.chat.dialogue import Dialogue, Exchange, Reply
from core.errors import UserError
from tui.panes.chat.session_holder import SessionHolder

if TYPE_CHECKING:
    from core.chat.session import Answer

Post: TypeAlias = Callable[[Message], object]


@dataclass
class Loading(Message):
    """The state of loading, before the first token."""

    detail: str
    done: int | None
    total: int | None

    def can_replace(self, message: Message) -> bool:
        """Newer states replace older ones."""
        return isinstance(message, Loading)


@dataclass
class Speaking(Message):
    """The model has been loaded or connected to, and begins to answer."""

    reply: Reply


@dataclass
class Answered(Message):
    """An answer has ended; None where it was canceled before it began."""

    reply: Reply
    answer: Answer | None


@dataclass
class Failed(Message):
    """An answer has failed."""

    reply: Reply
    error: UserError


@dataclass
class TurnEnded(Message):
    """The turn has ended: no more answers will come."""

    exchange: Exchange


def hold_turn(holder: SessionHolder, dialogue: Dialogue, exchange: Exchange, epoch: int, post: Post) -> None:
    """Generate the replies of an exchange; on the first error the rest is left out. Blocks.

    Tokens go to each reply's ``pending``, from where the pane takes them at its own pace.

    Args:
        holder: The holder of the session.
        dialogue: The conversation, the exchange its last.
        exchange: The question and its replies.
        epoch: The holder's epoch when it was asked.
        post: Takes the messages.
    """
    from core.chat.session import Answer

    def report(detail: str, done: int | None, total: int | None) -> None:
        post(Loading(detail, done, total))

    reply = exchange.replies[0]
    try:
        system, settings = holder.settings()
        for reply in exchange.replies:
            answer: Answer | None = None
            messages = dialogue.messages(reply.source, system, exchange)
            for item in holder.answer(messages, reply.source, settings, epoch, report):
                if isinstance(item, Answer):
                    answer = item
                else:
                    if not reply.pending and not reply.text:
                        post(Speaking(reply))
                    reply.pending.append(item.text)
            post(Answered(reply, answer))
    except UserError as error:
        post(Failed(reply, error))
    post(TurnEnded(exchange))
