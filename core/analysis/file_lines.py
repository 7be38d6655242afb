"""Row positions: file and line of a row, and lists of them in words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from core.text import one_line

#: Most lines listed; the rest are counted.
NAMED_LINES = 40


class FileLine(NamedTuple):
    """File and line of a row; in a file without lines, its row number."""

    file: str
    line: int


def name_places(places: Iterable[FileLine]) -> str:
    """Positions in words, safe to show: ``train.jsonl lines 3, 17 and 24; more.csv line 2``; each once, in order."""
    by_file: dict[str, list[int]] = {}
    for place in sorted(set(places)):
        by_file.setdefault(place.file, []).append(place.line)
    left, named = NAMED_LINES, []
    for file, lines in by_file.items():
        shown, hidden = lines[:left], len(lines) - len(lines[:left])
        left -= len(shown)
        words = [str(line) for line in shown] + ([f"{hidden} more"] if hidden else [])
        text = " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
        named.append(f"{one_line(file, 120)} {'line' if len(lines) == 1 else 'lines'} {text}")
    return "; ".join(named) or "their places are not known"
