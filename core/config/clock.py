"""Times of day and daily spans of ``[night]`` and ``[parking]``: ``07:00``, ``23:00-07:00``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from core.errors import UserError
from core.text import one_line

_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class DailySpan:
    """A span of every day, by the local clock.

    Args:
        begin: Minutes after midnight.
        end: Minutes after midnight; before ``begin`` where the span passes midnight.
    """

    begin: int
    end: int

    def contains(self, moment: float) -> bool:
        """True if a Unix time is in the span."""
        local = datetime.fromtimestamp(moment)
        minute = local.hour * 60 + local.minute
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end

    def next_edge(self, moment: float) -> float:
        """The next begin or end after a Unix time, as a Unix time."""
        return min(next_time(self.begin, moment), next_time(self.end, moment))


def parse_time(text: str) -> int:
    """Minutes after midnight of ``07:00``.

    Raises:
        UserError: If it is invalid.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise UserError(
            f"'{one_line(text, 40)}' is not a time of day.",
            'Write hours and minutes, such as "07:00"; a span is "22:00-07:00".',
        )
    return int(found[1]) * 60 + int(found[2])


def parse_span(text: str) -> DailySpan:
    """The span of ``23:00-07:00``.

    Raises:
        UserError: If it is invalid, or empty.
    """
    begin, dash, end = text.partition("-")
    hint = 'Write two times of day: "23:00-07:00".'
    if not dash:
        raise UserError(f"'{one_line(text, 40)}' is not a span of the day.", hint)
    try:
        span = DailySpan(parse_time(begin), parse_time(end))
    except UserError as error:
        raise UserError(error.message, hint) from error
    if span.begin == span.end:
        raise UserError(f"'{one_line(text, 40)}' begins when it ends.", hint)
    return span


def next_time(minutes: int, moment: float) -> float:
    """The Unix time of the next time of day after a Unix time, by the local clock.

    Args:
        minutes: After midnight.
        moment: Unix seconds.
    """
    local = datetime.fromtimestamp(moment)
    found = local.replace(hour=minutes // 60, minute=minutes % 60, second=0, microsecond=0)
    while found.timestamp() <= moment:
        found = (found + timedelta(days=1)).replace(hour=minutes // 60, minute=minutes % 60)
    return found.timestamp()
