"""The script of a replay: the recorded events of an interval, compared with the replay's one by one.

Commands that changed the training are repeated at their place, requested checkpoints are written again, and memory runs
out again at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch

from core.audit.result import MOST, Difference
from core.audit.spans import SHORTAGES, TOLD, Span, changes_of, ran_out_in_rehearsal
from core.runs.control.protocol import Request
from core.runs.record.events import (
    CheckpointEvent,
    ControlEvent,
    Event,
    NoticeEvent,
    PhaseEvent,
    SampleEvent,
    StepEvent,
    as_json,
)
from core.text import one_line
from core.worker.loss.objectives import Objective
from core.worker.process.control import Command, Controls

#: Fields that depend on time, and so differ each time.
_TIMES = frozenset({"t", "seconds", "tokens_per_second", "paused_seconds", "bytes"})


class ReplayEnded(BaseException):
    """Raised at the end of an interval, or when the replay takes another course.

    It is not an error, so that nothing on the way catches it.
    """


class Script:
    """Follows a span during its replay.

    Args:
        span: The record.
        controls: The replay's controls, for repeated commands.
        compare: Compares the checkpoint of a step that was just written.
        step: Called after each step.
    """

    def __init__(
        self,
        span: Span,
        controls: Controls,
        compare: Callable[[int], list[Difference]],
        step: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._span, self._controls, self._compare, self._tell = span, controls, compare, step
        self._place = 0
        self._saved = self._done = span.begin
        self._rehearses = False
        self.differences: list[Difference] = []
        self.is_astray = ""
        """The reason, not the run's fault, that the replay took another course, a sentence; empty for none."""

    @property
    def expects_shortage(self) -> bool:
        """True if memory runs out next: in the rehearsal if it did so there, else in the step."""
        expected = self._next
        return isinstance(expected, NoticeEvent) and ran_out_in_rehearsal(expected) == self._rehearses

    def heard(self, event: Event) -> None:
        """Compare an event of the replay with the record.

        Raises:
            ReplayEnded: If it was the last one, or of another kind.
        """
        if isinstance(event, PhaseEvent):
            self._rehearses = event.name == "rehearsing"
        if isinstance(event, NoticeEvent) and event.code == "checkpoint_failed":
            # The training would now wait for somebody to make room.
            self.is_astray = event.message
            raise ReplayEnded
        is_shortage = isinstance(event, NoticeEvent) and event.code in SHORTAGES
        if not is_shortage and not isinstance(event, TOLD):
            return
        expected = self._next
        if isinstance(event, SampleEvent) and event.step == self._saved and not isinstance(expected, SampleEvent):
            return  # a sample follows the checkpoint of its step, where one span ends and another begins
        if expected is None or type(expected) is not type(event) or _step(expected) != _step(event):
            self._stray(event, expected)
        self._place += 1
        if expected is not None:
            self.differences += compare_events(expected, event)
        if isinstance(event, CheckpointEvent):
            self._saved = self._done = event.step
            self.differences += self._compare(event.step)
        elif isinstance(event, StepEvent):
            self._done = event.step
            self._tell(event.step)
        if len(self.differences) >= MOST or self._next is None:
            raise ReplayEnded
        self.give()

    @property
    def _next(self) -> Event | None:
        script = self._span.script
        return script[self._place] if self._place < len(script) else None

    def give(self) -> None:
        """Repeat the commands at this place: before the first step, or after an event."""
        while isinstance(self._next, ControlEvent):
            event = self._next
            if event.command == "set":
                self._put("set", changes_of(event))
            else:
                self._put(event.command, {})
            self._place += 1
        if isinstance(self._next, CheckpointEvent) and self._next.step == self._done:
            # A checkpoint that is due is written before the command runs, which then does nothing. A checkpoint of a
            # later step follows skipped steps, which have no events.
            self._put("checkpoint", {})

    def _put(self, command: str, args: dict[str, Any]) -> None:
        self._controls.put(Command(Request("replay", command, args), lambda _: None))

    def _stray(self, event: Event, expected: Event | None) -> None:
        if isinstance(event, NoticeEvent):
            self.is_astray = f"Memory ran out as it was executed again, and not in the run: {event.message}"
            raise ReplayEnded
        told = "nothing more" if expected is None else _name(expected)
        self.differences.append(
            Difference(
                what=f"The record has {told} where {_name(event)} came out.",
                step=_step(event),
                file="events.jsonl",
                recorded=told,
                found=_name(event),
            )
        )
        raise ReplayEnded


def compare_events(recorded: Event, again: Event) -> Iterator[Difference]:
    """Differences of two events except times: losses, norms and rates to the last bit."""
    for item in fields(recorded):
        if item.name in _TIMES:
            continue
        before, now = as_json(getattr(recorded, item.name)), as_json(getattr(again, item.name))
        # Events of an earlier version may lack a figure.
        if before is not None and (before != now or type(before) is not type(now)):
            yield Difference(
                what=f"{item.name} of {_name(recorded)} came out otherwise.",
                step=_step(recorded),
                file="events.jsonl",
                tensor=item.name,
                recorded=one_line(repr(before), 200),
                found=one_line(repr(now), 200),
            )


def _step(event: Event) -> int | None:
    step = getattr(event, "step", None)
    return step if type(step) is int else None


def _name(event: Event) -> str:
    what = {
        "step": "step",
        "eval": "the evaluation after step",
        "probe": "the general probe after step",
        "sample": "a sample answer after step",
        "checkpoint": "the checkpoint of step",
    }
    if event.type in what:
        return f"{what[event.type]} {_step(event)}"
    return one_line(event.message, 120) if isinstance(event, NoticeEvent) else event.type


class ShortOfMemory:
    """An objective that runs out of memory where a micro-batch of the run did.

    Args:
        objective: The wrapped objective.
        script: The script.
    """

    def __init__(self, objective: Objective, script: Script) -> None:
        self._objective, self._script = objective, script
        self.sequences_per_row = objective.sequences_per_row
        self.sequences = objective.sequences
        self.forward, self.loss = objective.forward, objective.loss
        self.rewards, self.reference_sequences = objective.rewards, objective.reference_sequences
        self.reward_sums, self.rewards_of = objective.reward_sums, objective.rewards_of

    def begin(self, window: Any, token_budget: int) -> float:
        """Begin a window, or raise an out-of-memory error."""
        if self._script.expects_shortage:
            raise torch.OutOfMemoryError("Out of memory, as in the run.")
        return self._objective.begin(window, token_budget)
