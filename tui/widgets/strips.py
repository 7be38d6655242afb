"""Helpers for views drawn line by line, and a base class for searchable views."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.scroll_view import ScrollView


def style_of(widget: str) -> str:
    """The style sheet of a widget, ``styles/NAME.tcss``, for its ``DEFAULT_CSS``."""
    return (Path(__file__).parent / "styles" / f"{widget}.tcss").read_text(encoding="utf-8")


def component_classes(css: str) -> set[str]:
    """Component classes that a widget's CSS names, as ``run-list--cursor``."""
    return set(re.findall(r"\.([a-z-]+--[a-z0-9-]+)", css))


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Fit a text into exactly ``width`` cells, to the left or right, marking a cut with ``…``."""
    if width <= 0:
        return ""
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, width - 1) + "…"
    return " " * (width - size) + text if right else set_cell_size(text, width)


def fitting(hints: Sequence[tuple[str, str]], room: int) -> list[tuple[str, str]]:
    """The first hints, key and label, that fit into a border, two blanks apart."""
    used, count = -2, 0
    for key, text in hints:
        used += 2 + cell_len(f"{key} {text}")
        if used > room:
            break
        count += 1
    return list(hints[:count])


def find_matches(text: str, term: str) -> list[tuple[int, int]]:
    """Spans of a lower-case term in a text, ignoring the text's case; occurrences do not overlap."""
    low = text.lower()
    # Some characters change their length in lower case, which would shift the marks.
    if not term or len(low) != len(text):
        return []
    found: list[tuple[int, int]] = []
    position = 0
    while (place := low.find(term, position)) >= 0:
        position = place + len(term)
        found.append((place, position))
    return found


def mark_matches(text: str, term: str, style: Style, match: Style) -> list[Segment]:
    """Segments of a text with the matches of a lower-case term in the style ``match``."""
    segments: list[Segment] = []
    position = 0
    for begin, end in find_matches(text, term):
        segments += [Segment(text[position:begin], style), Segment(text[begin:end], match)]
        position = end
    return [*segments, Segment(text[position:], style)]


class SearchView(ScrollView, inherit_bindings=False):
    """A scrolling view with search matches; the pane binds the keys."""

    #: Lines covered by a fixed header.
    COVERED: ClassVar[int] = 0

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.term = ""
        """The text searched for, in lower case; empty for none."""
        self._match_lines: list[int] = []
        self._match = -1

    @property
    def match_place(self) -> tuple[int, int]:
        """Number of the current match, from 1 (0 for none), and the number of matches."""
        return self._match + 1, len(self._match_lines)

    def move_match(self, step: int) -> bool:
        """Scroll to the next or previous match; after ``show``, to the first or last.

        A match out of view is scrolled to the middle.

        Returns:
            False past the last match; the next step then wraps around.
        """
        count = len(self._match_lines)
        place = (count if self._match < 0 and step < 0 else self._match) + step
        is_there = 0 <= place < count
        self._match = place if is_there else -1
        if is_there:
            line, top, height = self._match_lines[place], round(self.scroll_y), self.size.height - self.COVERED
            if not top <= line < top + height:
                # A text shown just now has no scrollbar until the next layout, and is scrolled without it.
                self.scroll_to(y=max(0, line - height // 2), animate=False, immediate=True, force=True)
        self.refresh()
        return is_there

    def on_resize(self) -> None:
        """Wrap for the new width; the current match stays."""
        match = self._match
        self._wrap()
        self._match = min(match, len(self._match_lines) - 1)
        # A text that came while there was no width is wrapped only now, after the paint of the lines before.
        self.refresh()

    def _wrap(self) -> None:
        """Wrap the text for the present width, and find its matches."""
        raise NotImplementedError

    def move(self, rows: int) -> None:
        """Scroll by a number of lines."""
        self.scroll_to(y=self.scroll_y + rows, animate=False, immediate=True)

    def move_page(self, direction: int) -> None:
        """Scroll by a screenful."""
        self.move(direction * max(1, self.size.height - 1 - self.COVERED))
