"""Attention that a live run needs: events after which it does not go on by itself."""

from __future__ import annotations

from core.governor.policy import DISK
from core.governor.words import reason
from core.runs.events import Event, GovernorEvent, NoticeEvent


def needed_for(event: Event) -> str:
    """Why an event of a live run needs somebody, as a sentence or a part of one; empty where it does not.

    Room on the disk is made by nobody else, and an error that has not ended a run has paused it. Pauses for heat and
    quiet hours end by themselves.
    """
    if isinstance(event, GovernorEvent) and (event.action, event.cause) == ("pause", DISK):
        return reason(event.cause, event.value, event.limit)
    return event.message if isinstance(event, NoticeEvent) and event.level == "error" else ""
