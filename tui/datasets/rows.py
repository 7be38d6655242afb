"""Rows as text: the cells of one in the list, and the turns of one as a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.analysis.problems import Level


@dataclass(frozen=True)
class RowCells:
    """One row as the list shows it; texts are sanitized and hold no newline."""

    cells: tuple[str, ...]
    problem: str = ""
    """Why the row cannot be read; shown in place of the cells."""
    number: int = 0
    """Its number, from 1, where it is not its place in the list."""
    mark: Level | Literal[""] = ""
    """The worst problem of a row that can be read."""


@dataclass(frozen=True)
class Turn:
    """What one speaker says; the text may be anything, it is sanitized before it is drawn."""

    role: str
    """``system``, ``user``, ``assistant``, or another label; ``problem`` is drawn as an error."""
    text: str
