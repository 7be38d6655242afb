"""A few lines of text that are repainted only when they change."""

from __future__ import annotations

from textual.content import Content
from textual.visual import VisualType
from textual.widget import Widget
from textual.widgets import Static


class TextBlock(Widget):
    """A block that shows a :class:`Content`, never markup; hidden while it is empty."""

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
        """Show another content; the layout is done again only if the number of lines may differ."""
        if content.is_same(self._content):
            return
        before, self._content = self._content, content
        self.display = bool(content.plain)
        wraps = max(len(line) for line in (before.plain + "\n" + content.plain).split("\n")) >= max(self.size.width, 1)
        self.refresh(layout=wraps or before.plain.count("\n") != content.plain.count("\n") or not before.plain)

    def render(self) -> Content:
        return self._content


class TextLine(Static):
    """A few lines of a pane that are often told the same again: the layout is done anew only where it may differ."""

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
