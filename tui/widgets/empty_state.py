"""The empty state of a pane: a sentence about what is missing, and the keys that help."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from tui.widgets.text_block import HangingBlock


class EmptyState(HangingBlock):
    """An empty state: a sentence, and below it keys with their actions.

    Args:
        message: The sentence.
        keys: Pairs of a key as displayed and its action.
    """

    DEFAULT_CSS = "EmptyState { height: 1fr; padding: 1 2; }"

    def __init__(self, message: str, keys: Sequence[tuple[str, str]] = (), *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(empty_content(message, keys), id=id)

    def say(self, message: str, keys: Sequence[tuple[str, str]] = ()) -> None:
        """Show another sentence and other keys."""
        self.show(empty_content(message, keys))


def empty_content(message: str, keys: Sequence[tuple[str, str]]) -> Content:
    """The sentence and the keys, aligned."""
    width = max((len(key) for key, _ in keys), default=0)
    lines = [Content(message), *([Content("")] if keys else [])]
    lines += [Content.assemble((key.ljust(width), "$primary bold"), "   ", text) for key, text in keys]
    return Content("\n").join(lines)
