"""Arrangement of the panes: the visible panes for a terminal size, and the region of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from textual.geometry import Region, Size

#: Minimum columns and rows for drawing anything.
SMALLEST = (60, 20)
#: Minimum columns and rows for two panes.
PAIRED_SIZE = (120, 30)
#: Minimum columns and rows for four panes.
TILED_SIZE = (160, 45)

Direction = Literal["beside", "over"]
"""Layout of two panes: side by side, or stacked."""

#: Panes that are shown together while no run is live.
_PARTNERS = {"data": "config", "config": "data", "train": "chat", "chat": "train"}
#: Order of two panes: the run keeps its place next to any other.
_ORDER = ("train", "data", "config", "chat", "runs")
#: Rows from which, and columns up to which, two panes are stacked.
_TALL = 44
_WIDE = 150
#: Minimum and maximum columns of the data and the configuration; the run's chart takes the rest.
_LEFT = (80, 110)
#: Rows that show the basic options with their memory plan, and an answer with its question.
_CONFIG_ROWS, _CHAT_ROWS = 28, 18


def room(width: int, height: int) -> Literal[1, 2, 4]:
    """The number of panes that a terminal has room for."""
    if width >= TILED_SIZE[0] and height >= TILED_SIZE[1]:
        return 4
    return 2 if width >= PAIRED_SIZE[0] and height >= PAIRED_SIZE[1] else 1


def companions(current: str, places: int, *, live: bool) -> tuple[str, ...]:
    """The visible panes when one is requested, in layout order; a live run is among them.

    Args:
        current: The requested pane.
        places: The number of panes that fit.
        live: Whether a run is live.
    """
    if places == 1:
        return (current,)
    if places == 4:
        if current != "runs":
            return ("data", "config", "train", "chat")
        return ("runs", "train", "chat") if live else ("runs",)
    partner = _PARTNERS.get(current)
    if live and current != "train":
        partner = "train"
    pair = {current, partner} if partner is not None else {current}
    return tuple(name for name in _ORDER if name in pair)


def direction(shown: Sequence[str], width: int, height: int) -> Direction:
    """The layout of two panes by the terminal's shape: side by side, unless it is too narrow and tall enough."""
    if "runs" in shown:
        # A table, whose columns need the width.
        return "over"
    return "over" if width < _WIDE and height >= _TALL else "beside"


def places(shown: Sequence[str], size: Size, way: Direction) -> dict[str, Region]:
    """The region of each visible pane.

    Args:
        shown: The panes, as from :func:`companions`.
        size: The size of the workspace.
        way: The layout of two panes.
    """
    width, height = size
    if len(shown) == 1:
        return {shown[0]: Region(0, 0, width, height)}
    if len(shown) == 2:
        first, second = shown
        if way == "beside":
            left = width // 2
            return {first: Region(0, 0, left, height), second: Region(left, 0, width - left, height)}
        top = (height + 1) // 2
        return {first: Region(0, 0, width, top), second: Region(0, top, width, height - top)}
    left = min(max(width * 46 // 100, _LEFT[0]), _LEFT[1])
    top = height - _between(_CHAT_ROWS, height * 34 // 100, height * 42 // 100)
    found = {"train": Region(left, 0, width - left, top), "chat": Region(left, top, width - left, height - top)}
    if "runs" in shown:
        found["runs"] = Region(0, 0, left, height)
    else:
        top = height - _between(_CONFIG_ROWS, height // 2, height * 60 // 100)
        found["data"] = Region(0, 0, left, top)
        found["config"] = Region(0, top, left, height - top)
    return found


def _between(wanted: int, least: int, most: int) -> int:
    return min(max(wanted, least), most)
