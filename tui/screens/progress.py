"""Progress of a job on a screen: the message that its thread posts, and the bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from textual.content import Content
from textual.message import Message

from tui.glyphs import GlyphSet
from tui.widgets.charts.bars import bar

_BAR_CELLS = 40
ProgressType = TypeVar("ProgressType")


@dataclass
class Progressed(Message, Generic[ProgressType]):
    """The job of a screen has made progress."""

    progress: ProgressType

    def can_replace(self, message: Message) -> bool:
        """Newer progress replaces older."""
        return isinstance(message, Progressed)


def progress_bar(share: float, glyphs: GlyphSet) -> Content:
    """A bar of 40 cells.

    Args:
        share: How much is done, 0 to 1.
        glyphs: The glyphs that it is drawn with.
    """
    full, empty = bar(share, _BAR_CELLS, glyphs)
    return Content.assemble((full, "$primary"), (empty, "$muted"))
