"""The gate of a run: its result held against the bars of ``eval.gate``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.config.gate import Bar, Figure
from core.runs.events import EvalEvent, Event, ProbeEvent
from core.units import format_number

#: Between the sentences of several bars that are missed.
_BETWEEN = "; "


@dataclass
class GateFigures:
    """The figures that a gate looks at, gathered from the events of a run.

    Args:
        step: The step of the result.
    """

    step: int
    before: EvalEvent | None = None
    """The evaluation of the untouched model."""
    after: EvalEvent | None = None
    """That of the result."""
    probe_before: float | None = None
    """The loss on the probe of the untouched model."""

    @classmethod
    def of(cls, events: Iterable[Event], step: int) -> GateFigures:
        """The figures in a run's events; what a step was measured at last counts."""
        found = cls(step)
        for event in events:
            if isinstance(event, ProbeEvent) and event.step == 0:
                found.probe_before = event.loss
            elif isinstance(event, EvalEvent):
                if event.step == 0:
                    found.before = event
                    found.probe_before = event.probe_loss if event.probe_loss is not None else found.probe_before
                if event.step == step:
                    found.after = event
        return found

    def values(self, figure: Figure) -> tuple[float | None, float | None]:
        """A figure before training and of the result; None where it was not measured."""
        before: float | None = getattr(self.before, figure, None)
        if figure == "probe_loss":
            before = self.probe_before
        after: float | None = getattr(self.after, figure, None)
        return before, after


def judge(bars: Sequence[Bar], figures: GateFigures) -> str:
    """What the result misses, a clause for each bar; empty where it reaches them all. A figure that was not measured
    reaches nothing."""
    return _BETWEEN.join(filter(None, (_miss(bar, figures) for bar in bars)))


def _miss(bar: Bar, figures: GateFigures) -> str:
    before, after = figures.values(bar.figure)
    if after is None:
        return f"{bar.figure} was not measured ({bar.text})"
    if bar.needs_before and before is None:
        return f"{bar.figure} of the untouched model was not measured ({bar.text})"
    if bar.is_met(after, before):
        return ""
    limit = bar.limit(before)
    # A bar with before in it says neither what that was nor what comes of it.
    wanted = f"{bar.comparison} {format_number(limit)}"
    if not bar.needs_before:
        return f"{bar.figure} is {format_number(after)} and should be {wanted}"
    return f"{bar.figure} is {format_number(after)} and should be {wanted} ({bar.text}, before {format_number(before)})"
