"""View of a conversation: speakers in a gutter and wrapped text, drawn line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Size
from textual.strip import Strip

from core.text import sanitize, steady
from core.units import format_count
from tui.datasets.view import Turn
from tui.widgets.strips import SearchView, component_classes, find_matches, fit, mark_matches, style_of

#: Maximum characters shown of a turn, which is still quick to wrap.
SHOWN_CHARACTERS = 100_000

_GUTTER = 11


class Conversation(SearchView, can_focus=True, inherit_bindings=False):
    """Turns of a conversation; the pane binds the keys."""

    DEFAULT_CSS = style_of("Conversation")

    COMPONENT_CLASSES: ClassVar[set[str]] = component_classes(DEFAULT_CSS)

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.turns: tuple[Turn, ...] = ()
        """The turns shown."""
        self._lines: list[tuple[str, str]] = []  # (role where a turn begins or "problem", text)
        self._wrapped_for = 0

    def show(self, turns: Sequence[Turn]) -> None:
        """Show a conversation from the beginning."""
        self.turns = tuple(turns)
        self._wrapped_for, self._match = 0, -1
        self._wrap()
        self.scroll_to(y=0, animate=False, immediate=True)
        self.refresh()

    def highlight(self, term: str) -> None:
        """Highlight all matches of a text, ignoring case; an empty text clears them."""
        self.term = steady(term, whole=True).lower()
        self._find_matches()
        self.refresh()

    def _find_matches(self) -> None:
        self._match_lines = [number for number, (_, text) in enumerate(self._lines) if find_matches(text, self.term)]
        self._match = -1

    def _wrap(self) -> None:
        width = self.scrollable_content_region.width
        if width == self._wrapped_for or width < 1:
            return
        self._wrapped_for = width
        self._lines = []
        for turn in self.turns:
            kept = steady(sanitize(turn.text[:SHOWN_CHARACTERS]), whole=True).expandtabs(4)
            lines = [line.plain.rstrip("\n") for line in Content(kept).wrap(max(width - _GUTTER, 8))] or [""]
            if len(turn.text) > SHOWN_CHARACTERS:
                lines.append(f"… {format_count(len(turn.text) - SHOWN_CHARACTERS)} more characters")
            marker = "problem" if turn.role == "problem" else ""
            self._lines.append((turn.role, lines[0]))
            self._lines.extend((marker, line) for line in lines[1:])
        self.virtual_size = Size(width, len(self._lines))
        self._find_matches()

    def render_line(self, y: int) -> Strip:
        """A wrapped line, with the speaker before the first line of a turn."""
        width = self.scrollable_content_region.width
        index = round(self.scroll_y) + y
        if index >= len(self._lines) or width < 1:
            return Strip.blank(width, self.rich_style)
        role, text = self._lines[index]
        style = self.rich_style
        if role == "problem":
            problem = style + self.get_component_rich_style("conversation--problem", partial=True)
            first = index == 0 or self._lines[index - 1][0] != "problem"
            return self._draw("✗ problem" if first else "", problem, text, problem, width)
        known = role if role in ("system", "user", "assistant") else "other"
        spoken = style + self.get_component_rich_style(f"conversation--{known}", partial=True)
        return self._draw(role, spoken, text, style, width)

    def _draw(self, label: str, label_style: Style, text: str, style: Style, width: int) -> Strip:
        gutter = Segment(fit(label, _GUTTER - 1) + " ", label_style)
        return Strip([gutter, *self._marked(text, style)]).adjust_cell_length(width, style)

    def _marked(self, text: str, style: Style) -> list[Segment]:
        match = style + self.get_component_rich_style("conversation--match", partial=True)
        return mark_matches(text, self.term, style, match)
