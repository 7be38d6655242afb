"""The notice of a terminal that is too small for anything else."""

from __future__ import annotations

from textual.content import Content
from textual.widget import Widget

from tui.shell import shell_of


class TooSmall(Widget):
    """A notice that covers the screen and names a sufficient size.

    Args:
        smallest: The minimum columns and rows.
    """

    DEFAULT_CSS = """
    TooSmall {
        layer: notice; dock: top; width: 100%; height: 100%; display: none;
        background: $background; color: $foreground; content-align: center middle; text-align: center;
    }
    """

    def __init__(self, smallest: tuple[int, int]) -> None:
        super().__init__()
        self._smallest = smallest

    def render(self) -> Content:
        """The present and the minimum size; the run is not affected."""
        width, height = self.app.size
        return Content(
            f"{width}×{height} is too small.\nMake the terminal at least {self._smallest[0]}×{self._smallest[1]}.\n"
            "A run that is on goes on.\n"
            f"{shell_of(self).keys['app.quit'].display} leaves."
        )

    def on_resize(self) -> None:
        """Show the new size."""
        self.refresh()
