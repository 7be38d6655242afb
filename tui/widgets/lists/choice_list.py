"""A plain list to choose from: the first click moves the cursor, and only the second one chooses."""

from __future__ import annotations

from textual import events
from textual.widgets import OptionList


class ChoiceList(OptionList):
    """An :class:`OptionList` without a frame of its own, in which highlighting an entry does not choose it."""

    DEFAULT_CSS = """
    ChoiceList {
        padding: 0; border: none; background: transparent; text-wrap: nowrap; text-overflow: ellipsis;
        &:focus { border: none; background: transparent; }
        & > .option-list--option-highlighted {
            background: $selected-background; color: $foreground; text-style: none;
        }
        &:focus > .option-list--option-highlighted {
            background: $selected-background; color: $foreground; text-style: bold;
        }
        & > .option-list--option-disabled { color: $primary; text-style: bold; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)

    def on_resize(self) -> None:
        """Keep the highlighted entry in sight when a neighbor takes lines from the list."""
        self.call_after_refresh(self.scroll_to_highlight)

    async def _on_click(self, event: events.Click) -> None:
        place = event.style.meta.get("option")
        if place is not None and place != self.highlighted and not self.options[place].disabled:
            # The parent would choose a clicked entry at once.
            event.prevent_default()
            self.highlighted = place
