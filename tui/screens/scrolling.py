"""Scrolling of a screen's box by keys."""

from __future__ import annotations

from typing import Literal, TypeAlias

from textual.containers import VerticalScroll

#: How far a key scrolls: by a line, by a page, or to an end.
Way: TypeAlias = Literal["down", "up", "page_down", "page_up", "home", "end"]


def scroll(box: VerticalScroll, way: Way) -> None:
    """Scroll a box at once, without animation."""
    ways = {
        "down": box.scroll_down,
        "up": box.scroll_up,
        "page_down": box.scroll_page_down,
        "page_up": box.scroll_page_up,
        "home": box.scroll_home,
        "end": box.scroll_end,
    }
    ways[way](animate=False)
