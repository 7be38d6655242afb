"""Marks of rows with a problem, and filters for the rows with a certain problem."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from core.analysis.problems import Level, Problem
from core.analysis.result import Analysis

#: Problems of a whole file, which mark none of its rows.
OF_THE_WHOLE = frozenset({"not_trained_on", "format_ambiguous"})

_LEVELS: dict[int, Level] = {1: "warn", 2: "drop"}
_CODES: dict[Level, int] = {"warn": 1, "drop": 2}


class RowMarks:
    """Worst problem of each row, in a byte: ``drop``, ``warn`` or nothing; notes do not count.

    Filled as rows become visible, or all at once by :meth:`of`.
    """

    def __init__(self) -> None:
        self._levels = bytearray()

    @classmethod
    def of(cls, analysis: Analysis) -> RowMarks:
        """The marks of all rows; blocks for tenths of a second per million problems."""
        marks = cls()
        marks._levels = bytearray(analysis.rows)
        # Dropped rows last, as they take precedence.
        for level in ("warn", "drop"):
            code = _CODES[level]
            for problem in analysis.problems:
                if problem.kind.level == level and problem.code not in OF_THE_WHOLE:
                    for index in problem.indices:
                        marks._levels[index] = code
        return marks

    @property
    def count(self) -> int:
        """The number of rows with a problem."""
        return len(self._levels) - self._levels.count(0)

    def note(self, index: int, level: Level) -> None:
        """Mark a row with a problem."""
        if level not in _CODES:
            return
        if index >= len(self._levels):
            self._levels.extend(bytes(index + 1 - len(self._levels)))
        self._levels[index] = max(self._levels[index], _CODES[level])

    def level(self, index: int) -> Level | None:
        """The worst problem of a row; None if it has none."""
        return _LEVELS.get(self._levels[index]) if index < len(self._levels) else None

    def after(self, index: int) -> int | None:
        """The next row with a problem after a row, wrapping at the end; None if there is none."""
        for begin, end in ((index + 1, len(self._levels)), (0, index + 1)):
            found = [place for code in _LEVELS if (place := self._levels.find(code, begin, end)) >= 0]
            if found:
                return min(found)
        return None

    def before(self, index: int) -> int | None:
        """The previous row with a problem before a row, wrapping at the beginning; None if there is none."""
        for begin, end in ((0, index), (index, len(self._levels))):
            found = max(self._levels.rfind(code, begin, end) for code in _LEVELS)
            if found >= 0:
                return found
        return None


@dataclass(frozen=True)
class RowFilter:
    """Filter for the rows with a problem.

    Args:
        code: The code of the problem.
        title: The problem in a few words.
        hint: A remedy.
        indices: The rows, ascending, up to the first million.
        total: The number of all rows with the problem.
    """

    code: str
    title: str
    hint: str
    indices: array[int]
    total: int

    @classmethod
    def of(cls, problem: Problem) -> RowFilter:
        """The filter of a problem."""
        return cls(problem.code, problem.kind.title, problem.hint, problem.indices, problem.count)

    def place(self, index: int) -> int | None:
        """The place of a row in the filtered list; None if the filter excludes it."""
        place = bisect_left(self.indices, index)
        return place if place < len(self.indices) and self.indices[place] == index else None

    def nearest(self, index: int) -> int:
        """The place of the first filtered row at or after a row, else the last place."""
        return min(bisect_left(self.indices, index), len(self.indices) - 1)


@dataclass(frozen=True)
class RowOrder(RowFilter):
    """Filter with an order of its own: ``indices`` are in the order of the list."""

    def place(self, index: int) -> int | None:
        """The place of a row in the list; None if it is not listed."""
        return self._places.get(index)

    def nearest(self, index: int) -> int:
        """The place of a row, else the first place."""
        return self._places.get(index, 0)

    @cached_property
    def _places(self) -> dict[int, int]:
        return {index: place for place, index in enumerate(self.indices)}


def next_filter(
    problems: Sequence[Problem], code: str | None, step: int, before: Sequence[RowFilter] = ()
) -> RowFilter | None:
    """The next or previous filter relative to that of a code; the cycle includes None for all rows.

    Args:
        problems: Problems of the rows.
        code: Code of the present filter; None for all rows.
        step: 1 for the next one, -1 for the previous one.
        before: Filters that come before those of the problems.
    """
    usable = [each for each in before if each.indices]
    usable += [RowFilter.of(problem) for problem in problems if problem.indices]
    codes: list[str | None] = [None, *(each.code for each in usable)]
    place = codes.index(code) if code in codes else 0
    place = (place + step) % len(codes)
    return usable[place - 1] if place else None
