"""Source of a chat template: numbered, wrapped and highlighted lines, with an optional mark."""

from __future__ import annotations

import functools
from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.highlight import HighlightTheme, TokenType, highlight

from core.text import sanitize
from core.units import format_count
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

#: Maximum characters shown of a source, three times the longest chat templates.
SHOWN_CHARACTERS = 60_000


class JinjaTheme(HighlightTheme):
    """A Jinja theme in the app's colors; literal text is bold, so that it stands out without color."""

    # Keys are Pygments token types, which are tuples.
    STYLES: ClassVar[dict[TokenType, str]] = {  # type: ignore[misc]
        ("Comment",): "$muted italic",
        ("Comment", "Preproc"): "$muted",
        ("Keyword",): "$primary",
        ("Name", "Builtin"): "$secondary",
        ("Name", "Function"): "$secondary",
        ("Literal", "Number"): "$accent",
        ("Literal", "String"): "$accent bold",
        ("Operator",): "$muted",
        ("Other",): "$accent bold",
    }


class SourceView(VerticalScroll, can_focus=True, inherit_bindings=False):
    """A view of a source; the screen binds the keys."""

    DEFAULT_CSS = style_of("SourceView")

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.source = ""
        """The source shown."""
        self.marked: int | None = None
        """The number of the line with an error, from 1."""
        self._wrapped_for = 0
        self._begins: list[int] = []

    def compose(self) -> ComposeResult:
        yield TextBlock()

    @property
    def line_count(self) -> int:
        """Number of lines of the source."""
        return len(self.source.rstrip("\n").split("\n")) if self.source else 0

    def show(self, source: str, marked: int | None = None) -> None:
        """Show a source from the beginning, or from a little before the marked line."""
        if (source, marked) == (self.source, self.marked):
            return
        self.source, self.marked = source, marked
        self._wrapped_for = 0
        self._wrap()
        self.call_after_refresh(self._go_to_mark)

    def on_resize(self) -> None:
        """Wrap for the new width."""
        self._wrap()

    def move(self, rows: int) -> None:
        """Scroll by a number of lines."""
        self.scroll_to(y=self.scroll_y + rows, animate=False, immediate=True)

    def move_page(self, direction: int) -> None:
        """Scroll by a screenful."""
        self.move(direction * max(1, self.size.height - 1))

    def _go_to_mark(self) -> None:
        place = self._begins[self.marked - 1] if self.marked and self.marked <= len(self._begins) else 0
        self.scroll_to(y=max(0, place - self.size.height // 3), animate=False, immediate=True)

    def _wrap(self) -> None:
        width = self.scrollable_content_region.width
        if width == self._wrapped_for or width < 1:
            return
        self._wrapped_for = width
        lines = _colored(self.source)
        digits = max(2, len(str(len(lines))))
        shown: list[Content] = []
        self._begins = []
        for number, line in enumerate(lines, 1):
            self._begins.append(len(shown))
            is_marked = number == self.marked
            style = "$limit bold" if is_marked else "$muted"
            gutter = Content.styled(f"{'✗' if is_marked else ' '}{number:>{digits}} ", style)
            for place, part in enumerate(line.fold(max(width - digits - 2, 8)) or [Content("")]):
                shown.append(gutter + part if not place else Content(" " * (digits + 2)) + part)
        self.query_one(TextBlock).show(Content("\n").join(shown))


@functools.lru_cache(maxsize=16)
def _colored(source: str) -> list[Content]:
    if not source:
        return []
    text = sanitize(source[:SHOWN_CHARACTERS]).expandtabs(4).rstrip("\n")
    lines = list(highlight(text, language="jinja", theme=JinjaTheme).split("\n", allow_blank=True))
    if len(source) > SHOWN_CHARACTERS:
        rest = format_count(len(source) - SHOWN_CHARACTERS)
        lines.append(Content.styled(f"… {rest} more characters", "$muted"))
    return lines
