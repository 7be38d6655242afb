"""Session of the chat, opened with the first question."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from core.errors import UserError
from core.runs.control.protocol import Ways, by_command

if TYPE_CHECKING:
    from core.chat.request import GenerationSettings, Source
    from core.chat.session import Answer, ChatSession, Token
    from core.directories import Progress
    from core.runs.record.store import Run

    Target: TypeAlias = Run | Path | str
    SessionFactory: TypeAlias = Callable[[Target], ChatSession]


class SessionHolder:
    """Target of the chat, with its session once that is open.

    ``answer`` blocks, so call it in a thread; the other methods may be called from any thread.

    Args:
        open_session: Opens a session; by default the real one.
        ways: Names an action that helps after a refusal of a live run.
    """

    def __init__(self, open_session: SessionFactory | None = None, ways: Ways = by_command) -> None:
        self._factory, self._ways = open_session, ways
        self._session: ChatSession | None = None
        self._retired: list[ChatSession] = []
        self._target: Target | None = None
        self._talking = threading.Lock()
        self._guard = threading.Lock()
        self.chosen: tuple[str, GenerationSettings] | None = None
        """System prompt and settings chosen in the pane; None to use the configuration's."""
        self._epoch = 0  # incremented by every cancel and change of target, which ends answers begun before

    @property
    def is_loaded(self) -> bool:
        """True while a session is open."""
        return self._session is not None

    def set_target(self, target: Target | None) -> None:
        """Set the target; :meth:`close_retired` closes the session on the previous target."""
        with self._guard:
            if target != self._target:
                self.chosen = None
            self._target = target
            self._retire()

    def _retire(self) -> None:
        """End answers begun before, and close the session later; called under the guard."""
        self._epoch += 1
        if self._session is not None:
            self._retired.append(self._session)
            self._session = None

    def close_retired(self) -> None:
        """Close the sessions on earlier targets; blocks until their memory is free."""
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
        """Close every session; blocks until their memory is free. The next question opens a new session."""
        with self._guard:
            self._retire()
        self.close_retired()

    @property
    def epoch(self) -> int:
        """The present epoch, to be passed to :meth:`answer` with a question."""
        return self._epoch

    def settings(self) -> tuple[str, GenerationSettings]:
        """System prompt and settings: the chosen ones, else the run configuration's, else the defaults."""
        if self.chosen is not None:
            return self.chosen
        from core.chat.request import GenerationSettings
        from core.runs.record.store import Run

        if isinstance(self._target, Run):
            try:
                chat = self._target.config().chat
                return chat.system, GenerationSettings.of(chat)
            except UserError:
                # The run can answer without its configuration's chat settings.
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
        """Generate an answer token by token; after a cancel, only the end of a begun answer. Blocks.

        Args:
            messages: The conversation.
            source: The source of the answer.
            settings: The generation settings.
            epoch: :attr:`epoch` at the time of the question.
            progress: Called with the progress of loading or connecting to the model.

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
                # The session may be broken; the next question opens a new one.
                self._drop(session)
                raise

    def _open(self, epoch: int) -> ChatSession | None:
        """The session, opened if necessary; None if the question has been canceled."""
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
