"""Partner of a conversation: the run or model that answers, its names, and the session with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from core.chat.dialogue import speaker_name
from core.chat.request import BASE, TUNED
from core.errors import UserError
from core.runs.catalog.trained import REFUSED, find_run_at
from core.runs.control.protocol import Ways, by_command
from core.runs.record.sentences import slug_of
from core.runs.record.store import Run, has_weights
from tui.keys import KeyTable

if TYPE_CHECKING:
    from core.chat.request import GenerationSettings, Source
    from core.chat.session import Answer, ChatSession, Token
    from core.directories import Progress

    Target: TypeAlias = Run | Path | str
    SessionFactory: TypeAlias = Callable[[Target], ChatSession]


@dataclass(frozen=True)
class Partner:
    """Run, live or ended, model, or nothing yet."""

    target: Target | None = None
    is_live: bool = False
    """True for a live run."""
    has_weights: bool = True
    """False for a run that ended before its first checkpoint."""
    is_refused: bool = False
    """True for a run whose result ``eval.gate`` refused; its evaluated checkpoint answers."""

    @classmethod
    def of(cls, target: Target | None, *, live: bool) -> Partner:
        """The partner for a target."""
        if live or not isinstance(target, Run):
            return cls(target, live)
        return cls(target, live, has_weights(target), bool(target.state().refused))

    @property
    def run(self) -> Run | None:
        """The run; None for a model."""
        return self.target if isinstance(self.target, Run) else None

    @property
    def subject(self) -> str:
        """The directory of the run, or the model; empty without a target."""
        return str(self.run.path.absolute()) if self.run is not None else str(self.target or "")

    @property
    def can_answer(self) -> bool:
        """True if there is a model that can answer."""
        return self.target is not None and self.has_weights

    @property
    def has_adapter(self) -> bool:
        """True if the answers can come from the base or from an adapter on it."""
        return self.target is None or (self.run is not None and self.run.trains_adapter)

    @property
    def name(self) -> str:
        """The name of the target, for the title."""
        if self.run is None:
            return Path(str(self.target or "")).name
        return f"{self.run.id}{REFUSED if self.is_refused else ''}"

    def trained_one(self, sources: tuple[Source, ...]) -> Source | None:
        """The first trained source, whose weights are exported and served; None if only the base answers."""
        if not self.has_adapter and self.run is not None:
            # A full fine-tune answers under either name.
            sources = tuple(TUNED if source == BASE else source for source in sources)
        return next((source for source in sources if source != BASE), None)

    def exported(self, sources: Sequence[Source], other: str) -> tuple[Run, int | None] | str:
        """The run and step to export, of the first trained source; a message if there is nothing to export.

        Args:
            sources: The sources that answer the next question.
            other: The key that switches to the other source.

        Raises:
            UserError: If the run or the checkpoint that answers is not found.
        """
        run, source = self.run, self.trained_one(tuple(sources))
        step: int | None = None
        if run is None:
            return "This model was not trained here: there is nothing to export."
        if source is None:
            return f"The base model answers, and it was not trained here; {other} switches to the tuned one."
        if os.path.isfile(source):
            return f"This is already an export: {source}"
        if source != TUNED:
            run, step = find_run_at(source)
        if not has_weights(run):
            return "There is nothing to export yet: no checkpoint has been saved."
        return run, step

    def origin(self, source: Source) -> tuple[Run, int | None]:
        """The run and step whose training is behind the answers of a trained source; no step for the run's result.

        Raises:
            UserError: If the run is not found, or its rows are not known.
        """
        if source in (TUNED, BASE):
            if self.run is None:
                raise UserError("This model was not trained here, so its rows are not known.")
            return self.run, None
        if os.path.isfile(source):
            raise UserError("An exported file answered.", "Ask the run itself, and then why.")
        return find_run_at(source)

    def invitation(self, keys: KeyTable) -> tuple[str, list[tuple[str, str]]]:
        """The text of an empty conversation, and keys with their actions."""
        start = (keys["app.start"].display, "Start a run; its model answers here while it trains")
        runs = keys["app.runs"].display
        if self.target is None:
            opens = (runs, "Open a run that has ended, and talk to its model")
            return "Nothing to talk to yet.", [start, opens]
        if not self.has_weights:
            text = "This run ended before it saved anything, so there is no model to ask."
            return text, [start, (runs, "Open another run, and talk to its model")]
        write = (keys["chat.write"].display, "Write to the model below; enter sends, esc leaves the prompt")
        named = ("chat.source", "chat.both", "chat.compare") if self.has_adapter else ()
        return self._effect, [write, *((keys[name].display, keys[name].help) for name in named)]

    @property
    def _effect(self) -> str:
        """The text above the keys, on the effect of a question."""
        if self.is_live:
            return "Ask the model in training. It answers between two steps, and the answer names the step."
        if not self.has_adapter:
            return "Ask the model. The first question loads it."
        return "Ask the tuned model. The first question loads it, with its base."

    def name_of(self, source: Source) -> str:
        """The name of a source for the title: ``tuned``, ``base``, ``step 30``, ``Q4_K_M`` or another run's step."""
        name, _, step = source.rpartition("@")
        if name and self.run is not None and name in (self.run.id, self.subject):
            return f"step {step}"
        if self.run is not None and source.endswith(".gguf"):
            return Path(source).stem.removeprefix(f"{slug_of(self.run.id)}-")
        return speaker_name(Path(source).name)

    def all_of(self, sources: tuple[Source, ...]) -> str:
        """The names of several sources in words."""
        names = [self.name_of(source) for source in sources]
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


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
