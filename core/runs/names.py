"""Names of runs: the parts of an id ``YYYYMMDD-HHMMSS-slug``."""

from __future__ import annotations

import re

from core.text import one_line

_DATE = "YYYYMMDD-"
_STAMP = re.compile(r"\d{8}-\d{6}-(?=.)", re.ASCII)


def slug_of(identity: str) -> str:
    """The slug that a run's id ends with; the whole id where it does not begin with a time."""
    return _STAMP.sub("", identity, count=1) if _STAMP.match(identity) else identity


def brief_id(identity: str) -> str:
    """A run's id without the date, ``203633-faq``, for a line with little room; safe to show."""
    return one_line(identity[len(_DATE) :] if _STAMP.match(identity) else identity, 60)
