"""Form of a configuration's options with a cursor, and the manual of the option under the cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Static

from core.text import one_line
from tui.widgets.forms.option_field import OptionField
from tui.widgets.strips import style_of
from tui.widgets.text_block import HangingBlock

if TYPE_CHECKING:
    from core.config.schema import Option


class OptionHelp(VerticalScroll, can_focus=True, inherit_bindings=False):
    """A scrolling panel with the manual of an option."""

    DEFAULT_CSS = style_of("OptionHelp")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "scroll_down", show=False),
        Binding("k,up", "scroll_up", show=False),
        Binding("pagedown,space", "page_down", show=False),
        Binding("pageup", "page_up", show=False),
        Binding("g,home", "scroll_home", show=False),
        Binding("G,end", "scroll_end", show=False),
        Binding("escape", "leave", show=False),
    ]

    class Left(Message):
        """The panel has been left."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._text = HangingBlock(Content(" "))

    def compose(self) -> ComposeResult:
        yield self._text

    def explain(self, option: Option, facts: Sequence[tuple[str, str]]) -> None:
        """Show an option; another option starts at the top.

        Args:
            option: The declaration with its manual.
            facts: Names and texts of further facts.
        """
        is_another = self.border_title != option.name
        self.border_title = Content(option.name)
        self._text.show(help_text(option, facts))
        if is_another:
            self.scroll_home(animate=False)

    def action_leave(self) -> None:
        """Give the focus back."""
        self.post_message(self.Left())


def help_text(option: Option, facts: Sequence[tuple[str, str]]) -> Content:
    """The manual of an option: effect, accepted values, cost, and source.

    Args:
        option: The declaration with its manual.
        facts: Names and texts of further facts.
    """
    manual = option.manual
    named = [*facts, ("memory", manual.memory), ("time", manual.time), ("source", manual.source)]
    width = max(len(name) for name, _ in named)
    lines = [
        Content.assemble((f"{name.ljust(width)}  ", "$primary bold"), one_line(text)) for name, text in named if text
    ]
    about = manual.about or option.help
    return Content("\n").join([Content(one_line(about)), Content(""), *lines])


class SectionTitle(Static):
    """The title of a section."""

    DEFAULT_CSS = "SectionTitle { height: 1; width: 1fr; color: $primary; text-style: bold; }"

    def __init__(self, section: str) -> None:
        super().__init__(section.capitalize(), markup=False)
        self.section = section


class OptionForm(VerticalScroll, can_focus=True, inherit_bindings=False):
    """Fields under section titles; the pane binds the keys."""

    DEFAULT_CSS = style_of("OptionForm")

    cursor = reactive(0, always_update=True, repaint=False)
    """Index of the cursor in the visible fields."""

    @dataclass
    class Moved(Message):
        """The cursor has moved to a field; None if no field is visible."""

        field: OptionField | None

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.fields: list[OptionField] = []
        self.shown: list[OptionField] = []
        """The visible fields."""
        self._highlighted: OptionField | None = None

    async def build(self, fields: Sequence[OptionField]) -> None:
        """Mount the fields in order, with section titles."""
        await self.remove_children()
        self.fields = list(fields)
        widgets: list[SectionTitle | OptionField] = []
        section = ""
        for field in fields:
            if field.option.section != section:
                section = field.option.section
                widgets.append(SectionTitle(section))
            widgets.append(field)
        await self.mount_all(widgets)

    def filter(self, keep: Callable[[OptionField], bool]) -> None:
        """Show only the fields to keep; the cursor stays on its field if it is visible."""
        present = self.current
        for field in self.fields:
            field.display = keep(field)
        self.shown = [field for field in self.fields if field.display]
        shown = {field.option.section for field in self.shown}
        for title in self.query(SectionTitle):
            title.display = title.section in shown
        self.cursor = self.shown.index(present) if present in self.shown else 0

    @property
    def current(self) -> OptionField | None:
        """The field under the cursor."""
        return self.shown[self.cursor] if 0 <= self.cursor < len(self.shown) else None

    def field(self, name: str) -> OptionField | None:
        """The field of ``section.key``, visible or not."""
        return next((field for field in self.fields if field.option.name == name), None)

    def go_to(self, field: OptionField) -> None:
        """Put the cursor on a visible field."""
        if field in self.shown:
            self.cursor = self.shown.index(field)

    def move(self, rows: int) -> None:
        """Move the cursor by a number of fields."""
        self.cursor += rows

    def move_page(self, direction: int) -> None:
        """Move the cursor by a screenful."""
        self.move(direction * max(1, self.size.height - 2))

    def validate_cursor(self, cursor: int) -> int:
        """Clamp the cursor to the visible fields."""
        return max(0, min(cursor, len(self.shown) - 1))

    def watch_has_focus(self, _has_focus: bool) -> None:
        """Restyle only the form: no field's style depends on the focus, and there are many fields."""
        self.app.stylesheet.update_nodes([self])

    def watch_cursor(self) -> None:
        """Highlight the field, keep it in view, and post the move."""
        current = self.current
        if self._highlighted is not None and self._highlighted is not current:
            self._highlighted.is_cursor = self._highlighted.lights_up = False
        self._highlighted = current
        if current is not None:
            current.is_cursor, current.lights_up = True, self.has_focus_within
            first = self.cursor == 0
            self.call_after_refresh(self.scroll_home if first else current.scroll_visible, animate=False)
        self.post_message(self.Moved(current))

    def on_resize(self) -> None:
        """Keep the cursor in view in the new size."""
        if (current := self.current) is not None:
            self.call_after_refresh(current.scroll_visible, animate=False)

    def on_focus(self) -> None:
        """Highlight the cursor."""
        if (current := self.current) is not None:
            current.lights_up = True

    def on_blur(self) -> None:
        """Dim the cursor, unless a field is being edited."""
        if (current := self.current) is not None:
            current.lights_up = current.is_editing

    @on(OptionField.Clicked)
    def _clicked(self, message: OptionField.Clicked) -> None:
        message.stop()
        again = message.field is self.current
        self.go_to(message.field)
        if not message.field.is_editing:
            self.focus()
            if again:
                self.post_message(self.Activated(message.field))

    @dataclass
    class Activated(Message):
        """A field has been clicked a second time, to edit it."""

        field: OptionField
