"""A view drawn line by line that can be searched: it scrolls, and goes from one match to the next."""

from __future__ import annotations

from typing import ClassVar

from textual.scroll_view import ScrollView

from tui.widgets.strips import next_match, scroll_into_view


class SearchView(ScrollView, inherit_bindings=False):
    """A scrolling view with the lines of its matches; keys are bound by the pane."""

    #: Lines of the view that its frame covers.
    COVERED: ClassVar[int] = 0

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.term = ""
        """The text searched for, in lower case; empty for none."""
        self._match_lines: list[int] = []
        self._match = -1

    @property
    def match_place(self) -> tuple[int, int]:
        """The place of the current match, from 1 (0: none yet), and the number of matches."""
        return self._match + 1, len(self._match_lines)

    def move_match(self, step: int) -> bool:
        """Scroll to the next match, or to the one before; to the first, or the last, after ``show``.

        Returns:
            Whether there was one; after the last there is none, and the next step wraps around.
        """
        moved = next_match(self._match, step, len(self._match_lines))
        self._match = -1 if moved is None else moved
        if moved is not None:
            scroll_into_view(self, self._match_lines[moved], self.size.height - self.COVERED)
        self.refresh()
        return moved is not None

    def move(self, rows: int) -> None:
        """Scroll by a number of lines."""
        self.scroll_to(y=self.scroll_y + rows, animate=False, immediate=True)

    def move_page(self, direction: int) -> None:
        """Scroll by a screenful."""
        self.move(direction * max(1, self.size.height - 1 - self.COVERED))
