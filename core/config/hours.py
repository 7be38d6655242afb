"""Ranges of hours of the day, as options have them: ``23:00-07:00``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time

_RANGE = re.compile(r"(\d{1,2}):(\d{2}) *- *(\d{1,2}):(\d{2})")
_MIDNIGHT = 24 * 60


@dataclass(frozen=True)
class HoursRange:
    """A range of minutes of the day. One whose end is not after its beginning goes over midnight; one that ends where
    it begins is the whole day.

    Args:
        begin: First minute of the day that belongs to it.
        end: First minute after it, up to 1440.
    """

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> HoursRange:
        """A range from its text.

        Raises:
            ValueError: If it is none.
        """
        found = _RANGE.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no range of hours")
        hours, minutes, last_hours, last_minutes = map(int, found.groups())
        begin, end = hours * 60 + minutes, last_hours * 60 + last_minutes
        if hours > 23 or minutes > 59 or last_minutes > 59 or end > _MIDNIGHT:
            raise ValueError(f"{text!r} is no range of hours")
        return cls(begin, end)

    def __contains__(self, moment: object) -> bool:
        """Whether a local time of day is in it."""
        if not isinstance(moment, (datetime, time)):
            return False
        minute = moment.hour * 60 + moment.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def __str__(self) -> str:
        return f"{_clock(self.begin)} to {_clock(self.end)}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02d}:{minute % 60:02d}"
