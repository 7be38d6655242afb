"""The partner of a conversation: what the pane says of a run or a model, and of who answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.chat.dialogue import speaker_name
from core.chat.request import BASE, TUNED
from core.runs.catalog.trained import REFUSED
from core.runs.record.sentences import slug_of
from core.runs.record.store import Run, has_weights

if TYPE_CHECKING:
    from core.chat.request import Source
    from tui.panes.chat.session_holder import Target


@dataclass(frozen=True)
class Partner:
    """A run, live or ended, a model, or nobody yet."""

    target: Target | None = None
    is_live: bool = False
    """Whether it is a live run."""
    has_weights: bool = True
    """Whether there is a model to ask; a run that ended before it saved anything has none."""
    is_refused: bool = False
    """Whether it is a run whose result ``eval.gate`` refuses: the checkpoint of the step it has judged answers."""

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
        """The directory of the run, or the model; empty where there is neither."""
        return str(self.run.path.absolute()) if self.run is not None else str(self.target or "")

    @property
    def can_answer(self) -> bool:
        """Whether there is a model to ask."""
        return self.target is not None and self.has_weights

    @property
    def has_adapter(self) -> bool:
        """Whether there is a choice between a base and what was tuned on it."""
        return self.target is None or (self.run is not None and self.run.trains_adapter)

    @property
    def name(self) -> str:
        """Its name, for the title."""
        if self.run is None:
            return Path(str(self.target or "")).name
        return f"{self.run.id}{REFUSED if self.is_refused else ''}"

    def trained_one(self, sources: tuple[Source, ...]) -> Source | None:
        """Whose weights are exported and served: the first that answers and was trained; None where only the base
        answers."""
        if not self.has_adapter and self.run is not None:
            # Its own weights answer under either name.
            sources = tuple(TUNED if source == BASE else source for source in sources)
        return next((source for source in sources if source != BASE), None)

    @property
    def invitation(self) -> str:
        """What asking does."""
        if self.is_live:
            return "Ask the model that is being trained; it answers between two steps, and says which step that was."
        if not self.has_adapter:
            return "Ask the model; it is loaded when the first question comes."
        return "Ask the tuned model; it is loaded with its base when the first question comes."

    def name_of(self, source: Source) -> str:
        """A source, for a title: ``tuned``, ``base``, ``step 30``, another run with its step, or the type of weights of
        an export: ``Q4_K_M``."""
        name, _, step = source.rpartition("@")
        if name and self.run is not None and name in (self.run.id, self.subject):
            return f"step {step}"
        if self.run is not None and source.endswith(".gguf"):
            return Path(source).stem.removeprefix(f"{slug_of(self.run.id)}-")
        return speaker_name(Path(source).name)

    def all_of(self, sources: tuple[Source, ...]) -> str:
        """Several sources in words."""
        names = [self.name_of(source) for source in sources]
        return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
