"""Requests of evaluations, from the command and the app."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import UserError
from core.evaluation.check import Check
from core.evaluation.evaluation import Evaluation
from core.evaluation.prompt_set import read_prompt_set
from core.evaluation.targets import resolve_targets

#: Longest answer if neither the request nor a run sets a limit, in tokens.
LONGEST = 256


@dataclass(frozen=True)
class EvaluationRequest:
    """A request; the first run provides missing values."""

    targets: tuple[str, ...]
    """See :func:`core.evaluation.targets.resolve_targets`."""
    against: tuple[str, ...] = ()
    prompts: str | None = None
    """See :func:`core.evaluation.prompt_set.read_prompt_set`; by default the run's held-out rows."""
    limit: int | None = None
    max_new_tokens: int | None = None
    check: str | None = None
    """See :meth:`core.evaluation.check.Check.parse`."""

    def prepare(self) -> Evaluation:
        """The evaluation: models are found and prompts read, nothing is loaded.

        Raises:
            UserError: If a part of it is missing or unusable.
        """
        if self.limit is not None and self.limit < 1:
            raise UserError("A limit must be at least 1.", "Leave it out to take all prompts.")
        check = Check.parse(self.check) if self.check is not None else None
        targets = resolve_targets(self.targets, self.against)
        trained = next((target.trained for target in targets if target.trained is not None), None)
        prompts, system, longest = self.prompts, "", LONGEST
        if trained is not None:
            config = trained.config
            system, longest = config.chat.system, config.chat.max_new_tokens
            held_out = config.data.eval
            if prompts is None and held_out is not None:
                prompts = held_out if isinstance(held_out, str) else held_out[0]
        if prompts is None:
            raise UserError("No file of prompts is named, and none is held out.", "Name one, or a dataset.")
        if self.max_new_tokens is not None:
            longest = self.max_new_tokens
        return Evaluation(read_prompt_set(prompts, limit=self.limit, system=system), targets, longest, check)
