"""Rows as text: cells for the list, turns for the conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from core.analysis.problems import Level


@dataclass(frozen=True)
class RowCells:
    """Cells of a row in the list; texts are sanitized and hold no newline."""

    cells: tuple[str, ...]
    problem: str = ""
    """The reason why the row cannot be read; shown in place of the cells."""
    number: int = 0
    """The row number, from 1, where it differs from the place in the list."""
    mark: Level | Literal[""] = ""
    """The worst problem of a row that can be read."""


@dataclass(frozen=True)
class Turn:
    """A turn of one speaker; the text may be anything, it is sanitized before it is drawn."""

    role: str
    """``system``, ``user``, ``assistant``, or another label; ``problem`` is drawn as an error."""
    text: str
