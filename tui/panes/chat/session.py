"""The chat's session, opened with the first question, and turns of the conversation in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from textual.message import Message

from core.chat.dialogue import Dialogue, Exchange, Reply
from core.errors import UserError
from core.runs.control.protocol import Ways, by_command

if TYPE_CHECKING:
    from core.chat.request import GenerationSettings, Source
    from core.chat.session import Answer, ChatSession, Token
    from core.directories import Progress
    from core.runs.record.store import Run

    Target: TypeAlias = Run | Path | str
    SessionFactory: TypeAlias = Callable[[Target], ChatSession]

Post: TypeAlias = Callable[[Message], object]


class SessionHolder:
    """Holder of the chat's target, and of its session once that is open.

    ``answer`` belongs in a thread; the rest is for any.

    Args:
        open_session: Opens a session; the real one where None.
        ways: The words for an action that helps where a live run refuses.
    """

    def __init__(self, open_session: SessionFactory | None = None, ways: Ways = by_command) -> None:
        self._factory, self._ways = open_session, ways
        self._session: ChatSession | None = None
        self._retired: list[ChatSession] = []
        self._target: Target | None = None
        self._talking = threading.Lock()
        self._guard = threading.Lock()
        self.chosen: tuple[str, GenerationSettings] | None = None
        """System prompt and settings chosen in the pane, in place of the configuration's; None for those."""
        self._epoch = 0  # rises with every cancel and every change of target: answers begun before it must end

    @property
    def is_loaded(self) -> bool:
        """True while a session is open."""
        return self._session is not None

    def set_target(self, target: Target | None) -> None:
        """Set the target; the session on the previous one waits for :meth:`close_retired`."""
        with self._guard:
            if target != self._target:
                self.chosen = None
            self._target = target
            self._epoch += 1
            if self._session is not None:
                self._retired.append(self._session)
                self._session = None

    def close_retired(self) -> None:
        """Close sessions on earlier targets; blocks until their memory is free."""
        while True:
            with self._guard:
                if not self._retired:
                    return
                session = self._retired.pop()
            session.close()

    def cancel(self) -> None:
        """Cancel the answer in progress."""
        with self._guard:
            self._epoch += 1
            session = self._session
        if session is not None:
            session.cancel()

    def release(self) -> None:
        """Close every session; blocks until their memory is free. The next question opens another."""
        with self._guard:
            self._epoch += 1
            if self._session is not None:
                self._retired.append(self._session)
                self._session = None
        self.close_retired()

    @property
    def epoch(self) -> int:
        """The epoch: read when a question is asked, and passed to :meth:`answer`."""
        return self._epoch

    def settings(self) -> tuple[str, GenerationSettings]:
        """Chosen settings, else those of the run's configuration, with a system prompt; the defaults where it cannot be
        read."""
        if self.chosen is not None:
            return self.chosen
        from core.chat.request import GenerationSettings
        from core.runs.record.store import Run

        if isinstance(self._target, Run):
            try:
                chat = self._target.config().chat
                return chat.system, GenerationSettings.of(chat)
            except UserError:
                # The run answers all the same; its configuration's chat settings are a convenience.
                return "", GenerationSettings()
        return "", GenerationSettings()

    def answer(
        self,
        messages: list[dict[str, str]],
        source: Source,
        settings: GenerationSettings,
        epoch: int,
        progress: Progress,
    ) -> Iterator[Token | Answer]:
        """The model's answer, piece by piece; after a cancel only its end, if it had begun. Blocks.

        Args:
            messages: The conversation.
            source: The model that is to answer.
            settings: Settings of the generation.
            epoch: :attr:`epoch` when the question was asked.
            progress: Called with the state of loading or connecting to the model.

        Raises:
            UserError: If the model cannot be loaded or reached, or refuses.
        """
        with self._talking:
            session = self._open(epoch)
            if session is None:
                return
            try:
                session.prepare(progress)
                if self._epoch == epoch:
                    yield from session.generate(messages, source, settings)
            except UserError:
                # It may be gone for good: the next question gets a new one.
                self._drop(session)
                raise

    def _open(self, epoch: int) -> ChatSession | None:
        """The session, opened if need be; None when the question has been canceled."""
        self.close_retired()
        with self._guard:
            target, session = self._target, self._session
            if self._epoch != epoch:
                return None
        if session is not None:
            return session
        if target is None:
            raise UserError("There is no model to talk to yet.", "Start a run, or open one that has ended.")
        session = self._make(target)
        with self._guard:
            if self._epoch == epoch:
                self._session = session
                return session
        session.close()
        return None

    def _drop(self, session: ChatSession) -> None:
        with self._guard:
            if self._session is session:
                self._session = None
        session.close()

    def _make(self, target: Target) -> ChatSession:
        if self._factory is not None:
            return self._factory(target)
        from core.chat.session import open_session

        return open_session(target, ways=self._ways)


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
