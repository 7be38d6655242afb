"""The long help of an option, in a panel that scrolls."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message

from core.text import one_line
from tui.widgets.text_block import HangingBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.config.schema import Option


class OptionHelp(VerticalScroll, can_focus=True, inherit_bindings=False):
    """A panel with the manual of one option; it scrolls by calls, or with the cursor keys while it has the focus."""

    DEFAULT_CSS = """
    OptionHelp {
        height: auto; max-height: 50%; scrollbar-size-vertical: 1; border-top: solid $border;
        border-title-color: $muted; border-title-style: bold; border-subtitle-color: $muted; background: transparent;
        &:focus { border-top: solid $border-focus; border-title-color: $foreground; }
    }
    """
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

    def explain(self, option: Option, facts: Sequence[tuple[str, str]], hint: str = "") -> None:
        """Show another option, from its beginning.

        Args:
            option: The declaration with its manual.
            facts: Further facts, each with its name.
            hint: The keys that scroll and close.
        """
        title = Content(option.name)
        is_another = self.border_title != option.name
        self.border_title, self.border_subtitle = title, Content(hint)
        self._text.show(help_text(option, facts))
        if is_another:
            self.scroll_home(animate=False)

    def action_leave(self) -> None:
        """Give the focus back."""
        self.post_message(self.Left())


def help_text(option: Option, facts: Sequence[tuple[str, str]]) -> Content:
    """The manual of an option: its effect, accepted values and costs, and its source.

    Args:
        option: The declaration with its manual.
        facts: Further facts, each with its name.
    """
    manual = option.manual
    named = [*facts, ("memory", manual.memory), ("time", manual.time), ("source", manual.source)]
    width = max(len(name) for name, _ in named)
    lines = [
        Content.assemble((f"{name.ljust(width)}  ", "$primary bold"), one_line(text)) for name, text in named if text
    ]
    about = manual.about or option.help
    return Content("\n").join([Content(one_line(about)), Content(""), *lines])
