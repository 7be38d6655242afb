"""Requests to the worker of a run, as the user has made them: shown at once, before the worker has heard of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from core.runs.record.state import PENDING

if TYPE_CHECKING:
    from core.runs.record.state import RunState


class Requests:
    """The requests that wait: those that the worker tells of and those not answered yet, without what was taken
    back."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}
        """Requests that were sent, and when they were answered, in Unix seconds; infinity while they were not."""
        self._hidden: dict[str, float] = {}
        """Requests taken back or carried out, and until when what the worker has written of them is out of date."""

    def ask(self, name: str) -> None:
        """A request is sent."""
        self._asked[name] = math.inf
        self._hidden.pop(name, None)

    def take_back(self, name: str) -> None:
        """A request is taken back."""
        self._asked.pop(name, None)
        self._hidden[name] = math.inf

    def answered(self, name: str, now: float) -> bool:
        """A request has been carried out; its effect is in a state that may still have to be read.

        Returns:
            Whether it was asked for, and not taken back since.
        """
        was_asked = self._asked.get(name) == math.inf
        if was_asked:
            self._asked[name] = self._hidden[name] = now
        return was_asked

    def refused(self, name: str) -> None:
        """A request was refused, or came to nothing."""
        self._asked.pop(name, None)

    def taken_back(self, name: str, now: float) -> None:
        """The worker has answered that a request is taken back, or that it was too late for that."""
        self._hidden[name] = now

    def pending(self, state: RunState) -> tuple[str, ...]:
        """The requests that wait, given the newest state."""
        if state.is_over or state.state == "stopping":
            return ()
        told = {name for name in state.pending if state.updated > self._hidden.get(name, -math.inf)}
        asked = {name for name, answered in self._asked.items() if not _is_settled(name, answered, state)}
        return tuple(name for name in (*PENDING, "resume") if name in told or name in asked)


def _is_settled(name: str, answered: float, state: RunState) -> bool:
    """Whether the state shows what has become of a request."""
    if answered == math.inf:
        return False
    # The others have no effect on the state, or change it a moment after the answer.
    in_effect = {
        "pause": state.state == "paused",
        "resume": state.state != "paused",
        "park": bool(state.parked),
        "stop": False,
    }
    return in_effect.get(name, True) or state.updated > answered
