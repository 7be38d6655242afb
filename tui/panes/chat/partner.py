"""Partner of a conversation: the run or model that answers, and its names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.chat.dialogue import speaker_name
from core.chat.request import BASE, TUNED
from core.runs.catalog.trained import REFUSED, find_run_at
from core.runs.record.sentences import slug_of
from core.runs.record.store import Run, has_weights
from tui.keys import KeyTable

if TYPE_CHECKING:
    from core.chat.request import Source
    from tui.panes.chat.session import Target


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
            return f"The base answers, which was not trained here; {other} lets the tuned one answer."
        if os.path.isfile(source):
            return f"It is an export already: {source}"
        if source != TUNED:
            run, step = find_run_at(source)
        if not has_weights(run):
            return "There is nothing to export yet: no checkpoint has been saved."
        return run, step

    def invitation(self, keys: KeyTable) -> tuple[str, list[tuple[str, str]]]:
        """The text of an empty conversation, and keys with their actions."""
        start = (keys["app.start"].display, "Start a run; its model answers here while it trains")
        runs = keys["app.runs"].display
        if self.target is None:
            opens = (runs, "Open a run that has ended, and talk to what it made")
            return "Nothing to talk to yet.", [start, opens]
        if not self.has_weights:
            text = "This run ended before it saved anything, so there is no model to ask."
            return text, [start, (runs, "Open another run, and talk to what it made")]
        write = (keys["chat.write"].display, "Write to the model below; enter sends, esc leaves the prompt")
        named = ("chat.source", "chat.both", "chat.compare") if self.has_adapter else ()
        return self._effect, [write, *((keys[name].display, keys[name].help) for name in named)]

    @property
    def _effect(self) -> str:
        """The text above the keys, on the effect of a question."""
        if self.is_live:
            return "Ask the model that is being trained; it answers between two steps, and says which step that was."
        if not self.has_adapter:
            return "Ask the model; it is loaded when the first question comes."
        return "Ask the tuned model; it is loaded with its base when the first question comes."

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
