"""Notice: that something has ended or needs attention, in words and as values for a program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from core.text import one_line

#: The longest text of a notice, in characters.
_LONGEST = 300


@dataclass(frozen=True)
class Notice:
    """A notice to the user of something that has happened to a run or the queue.

    Args:
        state: A run's state (``finished``, ``stopped``, ``failed``, ``paused``), an entry's (``failed``, ``skipped``),
            or ``queue_empty``.
        reason: Why, as a sentence; may be empty.
        run: Id of the run; empty where it is about none.
    """

    state: str
    reason: str = ""
    run: str = ""

    @property
    def title(self) -> str:
        """A line for people: ``20261127-004446-faq: finished``."""
        state = one_line(self.state, 40).replace("_", " ")
        return f"{one_line(self.run, 120)}: {state}" if self.run else state

    @property
    def values(self) -> Mapping[str, str]:
        """Placeholder to its value, safe to show."""
        return {
            "run": one_line(self.run, _LONGEST),
            "state": one_line(self.state, 40),
            "reason": one_line(self.reason, _LONGEST),
        }

    @property
    def environment(self) -> dict[str, str]:
        """The same as variables for a program."""
        return {f"LOCALTUNE_{name.upper()}": value for name, value in self.values.items()}
