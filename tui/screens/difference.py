"""The screen of two configurations compared: removed and added lines, each with a sign and a color of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from core.config.compare import DiffLine
from core.text import one_line
from tui.datasets.summary import counted
from tui.screens.box import OverlayBox
from tui.screens.overlay import Overlay
from tui.widgets.text_block import TextBlock

_LOOKS = {"head": ("", "$primary bold"), "same": ("  ", "$muted"), "removed": ("- ", "$limit"), "added": ("+ ", "$ok")}
#: Columns of a line that are shown; a system prompt may be longer.
_LINE_LENGTH = 1_000


class DifferenceScreen(Overlay[None]):
    """The screen of a comparison; it scrolls, and ``n`` goes from difference to difference.

    Args:
        before: The source of the lines with ``-``.
        after: The source of the lines with ``+``.
        lines: The comparison.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,v", "dismiss(None)", show=False),
        Binding("n", "place(1)", show=False),
        Binding("N", "place(-1)", show=False),
    ]

    def __init__(self, before: str, after: str, lines: Sequence[DiffLine]) -> None:
        super().__init__()
        self._before, self._after, self._lines = one_line(before, 60), one_line(after, 60), tuple(lines)

    def compose(self) -> ComposeResult:
        """The titles of the two versions, and the lines."""
        places = (_block(lines, index) for index, lines in enumerate(_places(self._lines)))
        box = OverlayBox(TextBlock(self._head()), *places, title="Compare", width=120, tight=True)
        box.show_keys("n next place  j k scroll  esc close")
        yield box

    def _head(self) -> Content:
        removed = sum(line.kind == "removed" for line in self._lines)
        added = sum(line.kind == "added" for line in self._lines)
        parts = [
            Content.assemble(("- ", "$limit bold"), self._before, (f"  {counted(removed, 'line')}", "$muted")),
            Content.assemble(("+ ", "$ok bold"), self._after, (f"  {counted(added, 'line')}", "$muted")),
        ]
        if not self._lines:
            parts = [*parts, Content(""), Content("They say the same.")]
        return Content("\n").join(parts)

    def action_place(self, step: int) -> None:
        """Go to the next difference, or to the one before."""
        box = self.query_one(OverlayBox)
        tops = [block.virtual_region.y for block in self.query(".-place")]
        here = round(box.scroll_y)
        following = [top for top in tops if (top > here if step > 0 else top < here)]
        if following:
            box.scroll_to(y=following[0] if step > 0 else following[-1], animate=False)


def _places(lines: Sequence[DiffLine]) -> list[list[DiffLine]]:
    """The lines, split before each heading."""
    found: list[list[DiffLine]] = []
    for line in lines:
        if line.kind == "head" or not found:
            found.append([])
        found[-1].append(line)
    return found


def _block(lines: Sequence[DiffLine], index: int) -> TextBlock:
    shown = []
    for line in lines:
        sign, style = _LOOKS[line.kind]
        shown.append(Content.styled(f"{sign}{one_line(line.text.expandtabs(4), _LINE_LENGTH)}", style))
    return TextBlock(Content("\n").join([Content(""), *shown]), classes="-place", id=f"place-{index}")
