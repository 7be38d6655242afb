"""Plain list to choose from, and a box around such a list with keys for its entries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Sequence
from fractions import Fraction

from textual import events, work
from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from core.errors import UserError
from core.text import one_line
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock


class ChoiceList(OptionList):
    """An :class:`OptionList` without a frame, in which the first click only highlights an entry."""

    DEFAULT_CSS = style_of("ChoiceList")

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)

    def on_resize(self) -> None:
        """Keep the highlighted entry in sight when the list shrinks."""
        self.call_after_refresh(self.scroll_to_highlight)

    @property
    def texts(self) -> list[tuple[int, str]]:
        """The places and texts of the entries that can be chosen, without marks and pointer."""
        prompts = [(place, str(option.prompt)) for place, option in enumerate(self.options) if not option.disabled]
        return [(place, text.strip(" ▸●·")) for place, text in prompts]

    def move(self, rows: int) -> None:
        """Move the cursor by a number of entries that can be chosen."""
        choosable = [place for place, option in enumerate(self.options) if not option.disabled]
        if choosable:
            index = choosable.index(self.highlighted) if self.highlighted in choosable else 0
            self.highlighted = choosable[max(0, min(index + rows, len(choosable) - 1))]

    def step(self, rows: int) -> None:
        """Move the cursor to the next entry, or to the one before; the ends are neighbors."""
        if rows > 0:
            self.action_cursor_down()
        else:
            self.action_cursor_up()

    async def _on_click(self, event: events.Click) -> None:
        place = event.style.meta.get("option")
        if place is not None and place != self.highlighted and not self.options[place].disabled:
            # The parent would choose the clicked entry.
            event.prevent_default()
            self.highlighted = place


class PointedList(ChoiceList):
    """A list with a pointer before the highlighted entry, which marks it on terminals without color."""

    def __init__(self) -> None:
        super().__init__()
        self._prompts: list[Content] = []
        self._notes: Container[int] = ()
        self._pointed_at: int | None = None

    def fill(self, prompts: Sequence[Content], notes: Container[int] = ()) -> None:
        """Show other entries, none of them highlighted.

        Args:
            prompts: The texts behind the pointer.
            notes: Indices of entries that have no pointer and cannot be chosen.
        """
        self._prompts, self._notes, self._pointed_at = list(prompts), notes, None
        self.clear_options()
        self.add_options([Option(self._line(place), disabled=place in notes) for place in range(len(prompts))])

    def draw(self, place: int, prompt: Content) -> None:
        """Show another text of an entry."""
        self._prompts[place] = prompt
        self.replace_option_prompt_at_index(place, self._line(place))

    def watch_highlighted(self, highlighted: int | None) -> None:
        """Move the pointer."""
        before, self._pointed_at = self._pointed_at, highlighted
        for place in (before, highlighted):
            if place is not None and place < len(self._prompts):
                self.replace_option_prompt_at_index(place, self._line(place))
        super().watch_highlighted(highlighted)

    def _line(self, place: int) -> Content:
        if place in self._notes:
            return self._prompts[place]
        pointer = "▸ " if place == self._pointed_at else "  "
        return Content.assemble((pointer, "$primary bold"), self._prompts[place])


#: Rows of a list in a box: the fewest, even if the parts below it have no room then, and the most.
_FEWEST, _MOST = 4, 24


class ListBox(Vertical):
    """A box with a heading, a list, the result of the last key, and the keys; the screen fills the list.

    Args:
        title: The title in the frame.
        read: Reads the list again, after a key.
    """

    DEFAULT_CSS = style_of("ListBox")

    def __init__(self, title: str, read: Callable[[], object]) -> None:
        super().__init__()
        self.border_title = Content(title)
        self._read = read
        self.said = ""
        """The result of the last key, as shown."""
        self._turn = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """The parts from top to bottom."""
        yield TextBlock(Content.styled("reading …", "$muted"), id="about")
        yield ChoiceList()
        yield TextBlock(Content(" "), id="answer")
        yield TextBlock(id="keys")

    @property
    def options(self) -> ChoiceList:
        """The list."""
        return self.query_one(ChoiceList)

    def show_about(self, text: Content) -> None:
        """Show the heading of the list."""
        self.query_one("#about", TextBlock).show(text)
        self.call_after_refresh(self._limit_list)

    def show_keys(self, keys: Content) -> None:
        """Show the keys with their functions."""
        self.query_one("#keys", TextBlock).show(keys)
        self.call_after_refresh(self._limit_list)

    def on_resize(self) -> None:
        """Fit the list to the new height."""
        self._limit_list()

    def _limit_list(self) -> None:
        """Limit the rows of the list, so that the parts below it are in the box."""
        most, others = self.styles.max_height, [part for part in self.children if part is not self.options]
        if most is None:
            return
        taken = sum(part.outer_size.height + part.styles.margin.height for part in others)
        room = int(most.resolve(self.app.size, self.app.size, Fraction(1))) - self.styles.gutter.height - taken
        self.options.styles.max_height = min(max(room, _FEWEST), _MOST)

    def say(self, text: str, style: str = "$muted") -> None:
        """Show the result of a key."""
        self.said = text
        # A blank keeps the line in place.
        self.query_one("#answer", TextBlock).show(Content.styled(one_line(text, 400) or " ", style))

    @work
    async def carry_out(self, action: Callable[[], Awaitable[str]]) -> None:
        """Carry out the actions of keys one after the other, show their results, and read the list again.

        Args:
            action: The action; returns a message.
        """
        async with self._turn:
            try:
                said = await action()
            except UserError as error:
                self.say(str(error), "$near")
            else:
                self.say(said)
        self._read()
