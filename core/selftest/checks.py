"""Checks of the self-test: their names, what each proves, how long it may take, and its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Result = Literal["pass", "fail", "not applicable"]
RESULTS: tuple[Result, ...] = ("pass", "fail", "not applicable")


@dataclass(frozen=True)
class Subject:
    """A check that is there to be made.

    Args:
        name: Its name in the report.
        title: The same in a word or two.
        proves: What it proves, as a clause.
        deadline: Seconds after which it is ended and has failed: far beyond what it takes on a slow machine.
        needs_model: Whether it trains the starter model.
    """

    name: str
    title: str
    proves: str
    deadline: float
    needs_model: bool = True


#: In the order in which they are made: the device first, since the others are told of by its name.
SUBJECTS: tuple[Subject, ...] = (
    Subject("driver", "driver", "the driver's readings are of the card that torch computes on", 120, needs_model=False),
    Subject("fast_paths", "fast paths", "each fast path computes what the plain path computes", 300, needs_model=False),
    Subject("training", "training", "twenty steps learn as they did where the shipped losses were recorded", 600),
    Subject("memory", "memory", "a run takes the memory that was predicted", 600),
    Subject("resume", "resume", "a run that is interrupted and resumed ends as one that was not", 600),
    Subject("out_of_memory", "out of memory", "a run survives running out of memory, forward and backward", 600),
    Subject("speed", "speed", "how fast it trains, by what the device could do", 600),
)


@dataclass(frozen=True)
class Check:
    """The result of a check; ``detail`` is a sentence or two."""

    name: str
    result: Result
    detail: str
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The check as fields for ``--json``."""
        return {"name": self.name, "result": self.result, "detail": self.detail, "seconds": round(self.seconds, 1)}


def passed(checks: Iterable[Check]) -> bool:
    """Whether all checks that apply here have passed."""
    return all(check.result != "fail" for check in checks)


def subject(name: str) -> Subject:
    """The check with a name.

    Raises:
        KeyError: If there is none.
    """
    return {item.name: item for item in SUBJECTS}[name]
