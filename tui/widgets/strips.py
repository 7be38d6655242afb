"""Small parts that lists drawn line by line are made of."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style


def fit(text: str, width: int) -> str:
    """A text in exactly so many cells, a cut marked with ``…``."""
    if width <= 0:
        return ""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    return set_cell_size(text, width - 1) + "…"


def mark_matches(text: str, term: str, style: Style, match: Style) -> list[Segment]:
    """Segments of a text in which every occurrence of a lower-case term has the style ``match``."""
    low = text.lower()
    # A few characters change their length in lower case; such a line is shown unmarked rather than marked wrongly.
    if not term or term not in low or len(low) != len(text):
        return [Segment(text, style)]
    segments: list[Segment] = []
    position = 0
    while (found := low.find(term, position)) >= 0:
        end = found + len(term)
        segments += [Segment(text[position:found], style), Segment(text[found:end], match)]
        position = end
    return [*segments, Segment(text[position:], style)]
