"""Run outcome: how an ended run ended, in a sentence for somebody who was away."""

from __future__ import annotations

from dataclasses import dataclass

from core.runs.history import last_evaluation, last_step
from core.runs.names import brief_id
from core.runs.state import RunState
from core.runs.store import Run
from core.text import one_line
from core.units import format_ago, format_fixed, format_number

#: States whose reason says more than their numbers.
_FAILED = ("failed", "lost")


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    run: Run
    state: RunState
    loss: float | None = None
    """Loss of the last step; None without a step."""
    exact_match: float | None = None
    """Share of held-out rows answered exactly, at the last evaluation; None where it was not measured."""

    @property
    def ended(self) -> float:
        """Time of the last state update, in Unix seconds: the end, or the last sign of life of a lost run."""
        return self.state.updated

    def tell(self, now: float) -> str:
        """The end in a sentence for somebody who was away: ``203633-faq finished 12 min ago while you were away: …``.

        Args:
            now: Unix seconds.
        """
        name, state = self.state.state, self.state
        step = f" at step {state.step} of {state.total_steps}" if state.step and state.total_steps else ""
        where = step if name != "finished" else ""
        head = f"{brief_id(self.run.id)} {_VERBS.get(name, name)}{where} {format_ago(now - self.ended)}"
        reason = one_line(state.reason, 200).rstrip(".")
        told = [reason] if reason and name in _FAILED else self._numbers()
        return f"{head} while you were away" + (f": {', '.join(told)}." if told else ".")

    def _numbers(self) -> list[str]:
        if self.state.refused:
            return [f"its result is refused by eval.gate: {one_line(self.state.refused, 200)}"]
        found = [f"loss {format_number(self.loss)}"] if self.loss is not None else []
        if self.exact_match is not None:
            found.append(f"exact match {format_fixed(self.exact_match, 2)}")
        return found


_VERBS = {"stopped": "was stopped", "lost": "was lost"}


def read_outcome(run: Run) -> Outcome | None:
    """The end of a run; None while it is live, or where its state cannot be read."""
    state = run.state()
    if not state.is_over or not state.updated:
        return None
    step = last_step(run)
    measured = last_evaluation(run)
    return Outcome(
        run,
        state,
        step.loss if step is not None else None,
        measured.exact_match if measured is not None else None,
    )


def ended_since(run: Run, since: float) -> bool:
    """Whether a run has ended after a time, in Unix seconds."""
    state = run.state()
    return state.is_over and state.updated > since
