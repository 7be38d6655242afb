"""Blocks of text that are repainted only when they change."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from textual.content import Content
from textual.geometry import Size
from textual.visual import VisualType
from textual.widget import Widget
from textual.widgets import Static


def relayout(widget: Widget) -> None:
    """Measure and paint a widget again.

    ``refresh(layout=True)`` alone may keep a stale height: Textual caches heights by the number of requested layouts,
    and counts several requests in one turn of the event loop once.
    """
    widget._box_model_cache.clear()
    widget.refresh(layout=True)


class TextBlock(Widget):
    """A block that shows a :class:`Content`, never markup; hidden while it is empty.

    A block hidden by its owner stays hidden when its text changes.
    """

    DEFAULT_CSS = "TextBlock { width: 100%; height: auto; }"

    def __init__(self, content: Content | None = None, *, id: str | None = None, classes: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, classes=classes)
        self._content = content or Content("")
        self.display = bool(self._content.plain)

    @property
    def content(self) -> Content:
        """The content shown."""
        return self._content

    def show(self, content: Content) -> None:
        """Show another content, with a new layout only if the number of lines may differ."""
        if content.is_same(self._content):
            return
        before, self._content = self._content, content
        if bool(content.plain) != bool(before.plain):
            self.display = bool(content.plain)
        wraps = max(len(line) for line in (before.plain + "\n" + content.plain).split("\n")) >= max(self.size.width, 1)
        if wraps or before.plain.count("\n") != content.plain.count("\n") or not before.plain:
            relayout(self)
        else:
            self.refresh()

    def render(self) -> Content:
        return self._content


class HangingBlock(TextBlock):
    """A block of keys or names with their texts; wrapped texts stay in their column."""

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual calls it
        """The height with all lines wrapped."""
        return hang(self._content, width).plain.count("\n") + 1

    def render(self) -> Content:
        return hang(self._content, self.size.width)


#: A key or name, with the gap after it.
_HEAD = re.compile(r" *\S+(?: \S+)* {2,}(?=\S)")
#: Minimum columns of a text beside its key; otherwise it wraps below.
_LEAST_TEXT = 16


def hang(content: Content, width: int) -> Content:
    """Wrap lines that begin with a key or name; continuation lines are indented to the text.

    Args:
        content: Lines, with two spaces or more before the text.
        width: Cells of a line.
    """
    if width < 1:
        return content
    lines: list[Content] = []
    for line in content.split("\n", allow_blank=True):
        head = _HEAD.match(line.plain)
        indent = cell_len(head[0]) if head else 0
        if line.cell_length <= width or not head or width - indent < _LEAST_TEXT:
            lines += line.wrap(width) or [line]
            continue
        first, *rest = line[head.end() :].wrap(width - indent)
        lines.append(line[: head.end()] + first)
        lines += [Content(" " * indent) + part for part in rest]
    return Content("\n").join(lines)


class ClippedBlock(TextBlock):
    """A block of fixed height that is never laid out again; a text without room ends in an ellipsis."""

    def show(self, content: Content) -> None:
        """Show another content."""
        if not content.is_same(self._content):
            self._content, self.display = content, True
            self.refresh()

    def render(self) -> Content:
        return clip(self._content, self.size.width, self.size.height)


def flow(pieces: Iterable[Content], width: int) -> list[Content]:
    """Pieces in as few lines as possible, none of them broken."""
    lines: list[Content] = []
    for piece in pieces:
        if lines and lines[-1].cell_length + 3 + piece.cell_length <= width:
            lines[-1] = Content.assemble(lines[-1], "   ", piece)
        else:
            lines.append(piece)
    return lines


def side_by_side(columns: Sequence[Sequence[Content]], width: int, gap: Content) -> list[Content]:
    """Lines of columns of a width beside each other, with a gap between them."""
    rows = itertools.zip_longest(*columns, fillvalue=Content(""))
    return [gap.join(cell.truncate(width, pad=True) for cell in row).rstrip() for row in rows]


def clip(content: Content, width: int, height: int) -> Content:
    """Wrap a text, and cut it after ``height`` lines with an ellipsis."""
    if width < 2 or height < 1:
        return content
    lines = content.wrap(width)
    if len(lines) <= height:
        return content
    last = lines[height - 1].rstrip().truncate(width - 1)
    return Content("\n").join([*lines[: height - 1], last + "…"])


class TextLine(Static):
    """Lines of a pane that are often set to the same text; laid out again only if the layout may differ."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._said = Content("")

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """Show another content."""
        said = content if isinstance(content, Content) else Content(str(content))
        if said.is_same(self._said):
            return
        before, self._said = self._said, said
        fits = max(before.cell_length, said.cell_length) <= self.content_size.width
        one_line = bool(before) and bool(said) and "\n" not in before.plain + said.plain
        super().update(said, layout=layout and not (fits and one_line))
