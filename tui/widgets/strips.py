"""Helpers for strips of lists drawn line by line."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.scroll_view import ScrollView


def fit(text: str, width: int) -> str:
    """Fit a text into a number of cells exactly, a cut marked with ``…``."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def find_matches(text: str, term: str) -> list[tuple[int, int]]:
    """Spans of a lower-case term in a text, ignoring the text's case; occurrences do not overlap."""
    low = text.lower()
    # A few characters change their length in lower case; such a text is shown unmarked rather than marked wrongly.
    if not term or len(low) != len(text):
        return []
    found: list[tuple[int, int]] = []
    position = 0
    while (place := low.find(term, position)) >= 0:
        position = place + len(term)
        found.append((place, position))
    return found


def next_match(place: int, step: int, count: int) -> int | None:
    """The match after (or before) the one at a place, from 0; None after the last and before the first.

    From -1, with no current match, it is the first, or the last.
    """
    if place < 0 and step < 0:
        place = count
    place += step
    return place if 0 <= place < count else None


def scroll_into_view(view: ScrollView, line: int, height: int) -> None:
    """Scroll a view drawn line by line, if a line is out of view, so that the line is in the middle.

    Args:
        view: The view.
        line: The line, from 0.
        height: The number of lines in view.
    """
    top = round(view.scroll_y)
    if not top <= line < top + height:
        view.scroll_to(y=max(0, line - height // 2), animate=False, immediate=True)


def mark_matches(text: str, term: str, style: Style, match: Style) -> list[Segment]:
    """Segments of a text in which every occurrence of a lower-case term has the style ``match``."""
    segments: list[Segment] = []
    position = 0
    for begin, end in find_matches(text, term):
        segments += [Segment(text[position:begin], style), Segment(text[begin:end], match)]
        position = end
    return [*segments, Segment(text[position:], style)]
