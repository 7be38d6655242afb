"""The arrangement of the panes: which of them are in sight in a terminal of some size, and where each is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from textual.geometry import Region, Size

#: Columns and rows below which there is no use in drawing anything.
SMALLEST = (60, 20)
#: Columns and rows from which two panes are in sight.
PAIRED_SIZE = (120, 30)
#: Columns and rows from which four panes are in sight.
TILED_SIZE = (160, 45)

Direction = Literal["beside", "over"]
"""How two panes share the screen."""

#: Panes that are seen with each other while no run is live.
_PARTNERS = {"data": "config", "config": "data", "train": "chat", "chat": "train"}
#: The order of two panes: the run keeps its place, whatever is beside it.
_ORDER = ("train", "data", "config", "chat", "runs")
#: Rows of each of two panes over each other that are better than the width of the whole terminal.
_TALL = 44
_WIDE = 150
#: Columns of the data and the configuration, at least and at most; the chart of the run takes what is left.
_LEFT = (80, 110)
#: Rows that show the basic options with their memory plan, and an answer with its question.
_CONFIG_ROWS, _CHAT_ROWS = 28, 18


def room(width: int, height: int) -> Literal[1, 2, 4]:
    """The number of panes that a terminal has room for."""
    if width >= TILED_SIZE[0] and height >= TILED_SIZE[1]:
        return 4
    return 2 if width >= PAIRED_SIZE[0] and height >= PAIRED_SIZE[1] else 1


def companions(current: str, places: int, *, live: bool) -> tuple[str, ...]:
    """The panes that are in sight when one is asked for, in the order of their places; a live run is among them.

    Args:
        current: The pane asked for.
        places: The number of panes that there is room for.
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
    """How two panes share a terminal by its shape: beside each other, unless it is narrow for that and tall enough."""
    if "runs" in shown:
        # A table: its columns want the width.
        return "over"
    return "over" if width < _WIDE and height >= _TALL else "beside"


def places(shown: Sequence[str], size: Size, way: Direction) -> dict[str, Region]:
    """The place of each pane in sight.

    Args:
        shown: The panes, as from :func:`companions`.
        size: The size of the workspace.
        way: How two panes share it.
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
    found = {
        "train": Region(left, 0, width - left, top),
        "chat": Region(left, top, width - left, height - top),
    }
    if "runs" in shown:
        found["runs"] = Region(0, 0, left, height)
    else:
        top = height - _between(_CONFIG_ROWS, height // 2, height * 60 // 100)
        found["data"] = Region(0, 0, left, top)
        found["config"] = Region(0, top, left, height - top)
    return found


def _between(wanted: int, least: int, most: int) -> int:
    return min(max(wanted, least), most)
