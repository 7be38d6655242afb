"""Base class of the screens over the panes."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from typing import ClassVar, ParamSpec

from textual import events, on
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen, ScreenResultType
from textual.widget import Widget
from textual.widgets import OptionList

from tui.keys import Key, bindings, display_key
from tui.shell import shell_of
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.lists.choice_list import ChoiceList
from tui.widgets.strips import style_of
from tui.widgets.text_block import TextBlock

P = ParamSpec("P")

#: Rows below which a screen loses its side borders and margins.
TINY_ROWS = 12
#: Bindings of a dialog with several inputs.
INPUT_BINDINGS = (
    Binding("escape", "dismiss(None)", "leave", show=False),
    # With priority, so that keys typed right after go to the next input.
    Binding("tab,down", "app.focus_next", show=False, priority=True),
    Binding("shift+tab,up", "app.focus_previous", show=False, priority=True),
)
#: What moves in the list or text that has the focus, by key: in a list, and in a text.
_MOVES = {
    "j": ("action_cursor_down", "scroll_down"),
    "k": ("action_cursor_up", "scroll_up"),
    "g": ("action_first", "scroll_home"),
    "G": ("action_last", "scroll_end"),
}
#: Keys of the app that work over the panes too.
_OF_APP = ("app.picture", "app.help", "app.palette")
#: Commands of the app that the palette offers over a screen; the key of its help is in its frame.
_OFFERED = ("app.picture", "app.quit")


def plain_text(title: str | None) -> str:
    """The text of a border's title, which Textual returns as markup."""
    return Content.from_markup(title or "").plain


def key_line(keys: Sequence[tuple[str, str]]) -> Content:
    """A line of keys with their functions."""
    return Content("   ").join(Content.assemble((key, "$primary bold"), f" {what}") for key, what in keys)


class Overlay(ModalScreen[ScreenResultType]):
    """A modal screen that can be dismissed only once: a key typed after the dismissing key may still reach it."""

    DEFAULT_CSS = style_of("Overlay")
    VERTICAL_BREAKPOINTS = [(0, "-tiny"), (TINY_ROWS, "-usual")]  # noqa: RUF012 - no ClassVar in Textual

    TAKES_TEXT: ClassVar[bool] = False
    """True if keys are text even before an input has the focus."""
    ENTER_TAKES: ClassVar[bool] = False
    """True if ``enter`` takes, whatever has the focus."""
    SCOPE: ClassVar[str] = ""
    """Its scope in the key table; empty for none."""

    HELP: ClassVar[str] = ""
    """The name of its text for the help; its scope where empty."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(binding for binding in bindings("app") if binding.id in _OF_APP),
        *(Binding(key, f"move_in('{key}')", show=False) for key in _MOVES),
        Binding("slash", "app.find_entry", show=False),
        # Its letter closes most screens.
        Binding("ctrl+q", "app.quit", show=False, priority=True),
        # With priority, as the input takes it as text otherwise.
        Binding("question_mark", "help_first", show=False, priority=True, id="app.help"),
    ]

    _is_left = False
    _has_keys_in_frame = False

    @on(events.Resize)
    def _resized(self) -> None:
        """Move the keys into the frame on a short terminal, where the line below the text would be out of sight."""
        self.call_after_refresh(self._place_keys)

    def _place_keys(self) -> None:
        told = self.keys_in_frame() if self.app.size.height < TINY_ROWS else ""
        if not told and not self._has_keys_in_frame:
            return
        for box in self.query_children("Vertical, VerticalScroll").results(Widget):
            box.border_subtitle, self._has_keys_in_frame = Content(told), bool(told)

    def keys_in_frame(self) -> str:
        """Keys for the frame on a short terminal, ``enter`` first; empty if the frame always shows them."""
        lines = "\n".join(block.content.plain for block in self.query("#keys").results(TextBlock))
        told = [part.strip() for part in re.split(r"\n| {3}", lines) if part.strip()]
        return "  ".join(sorted(told, key=lambda part: (not part.startswith("enter"), not part.startswith("esc"))))

    @property
    def help_name(self) -> str:
        """The name of its text for the help."""
        return self.HELP or self.SCOPE

    @property
    def help_title(self) -> str:
        """Its title for the help, that of its frame."""
        boxes = self.query_children("*").results(Widget)
        return next((plain_text(box.border_title) for box in boxes if box.border_title), "this screen")

    @property
    def help_keys(self) -> list[str]:
        """The keys in its frame or below its text with their functions, if the key table has none of it."""
        if self.SCOPE:
            return []
        boxes = self.query_children("*").results(Widget)
        shown = [plain_text(box.border_subtitle) for box in boxes if box.border_subtitle] or [self.keys_in_frame()]
        return re.findall(r"\S+(?: \S+)*", "  ".join(shown))

    @property
    def footer_keys(self) -> Sequence[tuple[str, str]]:
        """The keys for the last line of the screen, where those of the panes do not work: key and function."""
        table = shell_of(self).keys
        helps = table["app.help"]
        # A printable key may be text, or an answer.
        others = [display_key(key) for key in helps.keys.split(",") if len(display_key(key)) > 1]
        is_text = self.TAKES_TEXT or helps.keys.split(",")[0] not in self.known_keys
        shown = [("esc", "close"), (others[0] if is_text and others else helps.display, helps.description)]
        palette = table["app.palette"]
        return shown if self.id == "palette" else [*shown, (palette.display, palette.description)]

    def offers(self, key: Key) -> bool:
        """True if the palette offers a key over this screen: one of its own that acts now, or one of the app."""
        if key.scope != self.SCOPE:
            return key.id in _OFFERED
        return self.check_action(key.action.partition("(")[0], ()) is not False

    def action_move_in(self, key: str) -> None:
        """Move in the list or text with the focus."""
        in_list, in_text = _MOVES[key]
        if isinstance(focused := self.focused, ChoiceList):
            getattr(focused, in_list)()
        elif isinstance(focused, VerticalScroll):
            getattr(focused, in_text)(animate=False)

    def entries(self) -> Sequence[tuple[int, str]]:
        """The places and texts of the entries that ``/`` finds: those of the list with the focus."""
        return self.focused.texts if isinstance(self.focused, ChoiceList) else ()

    def point_at(self, place: int) -> None:
        """Move the cursor to an entry."""
        for options in self.query(ChoiceList):
            options.highlighted = min(place, options.option_count - 1)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Let the key of the help be text, except as the first one in an input of a form."""
        if action == "help_first":
            line = self.focused if self.TAKES_TEXT else None
            return isinstance(line, SafeInput) and line.is_untouched
        return super().check_action(action, parameters)

    async def action_help_first(self) -> None:
        """Show the help."""
        await self.run_action("app.help")

    @property
    def known_keys(self) -> Container[str]:
        """Keys with a function on this screen."""
        return self.active_bindings

    @on(SafeInput.Submitted)
    @on(OptionList.OptionSelected)
    def _entered(self, message: Message) -> None:
        message.stop()
        self.take()

    def take(self) -> None:
        """Take what has been typed or chosen."""

    def on_key(self, event: events.Key) -> None:
        """Take on ``enter``, and give keys typed outside the first input to it."""
        if self.ENTER_TAKES and event.key == "enter":
            event.stop()
            self.take()
            return
        lines = self.query(self.AUTO_FOCUS).results(SafeInput) if self.TAKES_TEXT and self.AUTO_FOCUS else ()
        if (line := next(iter(lines), None)) is not None and not line.disabled:
            line.take_key(event)

    @on(SafeInput.Cancelled)
    def _cancelled(self, message: SafeInput.Cancelled) -> None:
        message.stop()
        self.dismiss(None)

    def action_back(self) -> None:
        """Leave the screen."""
        self.dismiss(None)

    def post_call(self, method: Callable[P, object], *args: P.args, **options: P.kwargs) -> None:
        """Call a method of the screen from a thread, after what it was called for before; not once it has been left."""
        if self.is_attached:
            self.call_later(method, *args, **options)

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Dismiss the screen with a result, once: a second call would answer twice and pop the screen below."""
        if self._is_left:
            return AwaitComplete()
        self._is_left = True
        # A job may end while its help is open; Textual would close that one.
        while self in self.app.screen_stack and not self.is_active:
            self.app.screen.dismiss()
        return super().dismiss(result)
