"""An empty state with the focus, for a pane that can act on it itself; it also shows the last error."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from core.errors import UserError
from core.text import one_line
from tui.widgets.empty_state import empty_content
from tui.widgets.text_block import HangingBlock


class StartHere(HangingBlock, can_focus=True):
    """An empty state that takes the focus while nothing else in the pane could."""

    DEFAULT_CSS = "StartHere { height: 1fr; padding: 1 2; }"

    def explain(self, message: str, keys: Sequence[tuple[str, str]], error: UserError | None = None) -> None:
        """Show another text.

        Args:
            message: The sentence about what is missing.
            keys: Keys as displayed, each with its action.
            error: The last error, shown first.
        """
        content = empty_content(message, keys)
        if error is not None:
            content = Content("\n\n").join([error_content(error), content])
        self.show(content)


def error_content(error: UserError) -> Content:
    """An error as its sentence and, below it, its remedy."""
    sentence = Content.styled(f"✗ {one_line(error.message)}", "$limit bold")
    if not error.hint:
        return sentence
    return Content("\n").join([sentence, Content.styled(f"  {one_line(error.hint)}", "$muted")])
