"""Rules between options: combinations that are impossible, or most likely a mistake.

An error keeps a run from starting; a warning is shown and the run goes on. A rule looks at a valid configuration and at
the known facts, and is silent about anything unknown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from core.config.facts import Facts
from core.config.schema import Config

Level = Literal["error", "warning"]
#: A sentence and a hint for each time that a rule is broken.
Findings = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Remark:
    """A rule's finding about a configuration.

    Args:
        level: ``error`` or ``warning``.
        options: The options concerned, the one to change first.
        sentence: The problem.
        hint: The remedy.
    """

    level: Level
    options: tuple[str, ...]
    sentence: str
    hint: str


@dataclass(frozen=True)
class Rule:
    """A rule: its level, the options concerned, and the check, whose docstring states the requirement to users."""

    level: Level
    options: tuple[str, ...]
    check: Callable[[Config, Facts], Findings]

    @property
    def says(self) -> str:
        """The requirement, in a sentence."""
        return " ".join((self.check.__doc__ or "").split())


def rule(level: Level, *options: str) -> Callable[[Callable[[Config, Facts], Findings]], Rule]:
    """Make a rule of a function that yields its findings.

    Args:
        level: ``error`` or ``warning``.
        options: The options concerned, the one to change first.
    """
    return lambda check: Rule(level, options, check)
