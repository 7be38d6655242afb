"""Settings of the chat: system prompt, randomness and longest answer, for the questions asked from now on."""

from __future__ import annotations

from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets.input import Selection

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.text import one_line
from core.units import exact_number
from tui.screens.overlay import INPUT_BINDINGS, Overlay, key_line
from tui.widgets.forms.safe_input import SafeInput
from tui.widgets.text_block import TextBlock

_KEYS = (("tab", "next"), ("enter", "use them"), ("esc", "leave as it is"))


class ChatSettings(Overlay[tuple[str, GenerationSettings]]):
    """The dialog of the settings, checked when they are accepted; returns system prompt and settings, or nothing.

    Args:
        system: The present system prompt.
        settings: The present settings.
    """

    DEFAULT_CSS = """
    ChatSettings {
        align: center middle; background: $background 60%;
        & > VerticalScroll {
            width: 84; max-width: 96%; height: auto; max-height: 90%; padding: 1 2;
            border: round $border-focus; border-title-style: bold; background: $surface; scrollbar-size-vertical: 1;
        }
        & Horizontal { height: auto; }
        & .label { width: 16; }
        & .hint { width: 1fr; color: $muted; padding-left: 2; }
        & SafeInput { width: 10; background: $panel; }
        & #line-system { width: 1fr; }
        & #keys { margin-top: 1; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*INPUT_BINDINGS]
    AUTO_FOCUS = "SafeInput"
    TAKES_TEXT = True

    def __init__(self, system: str, settings: GenerationSettings) -> None:
        super().__init__()
        values = {
            "system": ("system prompt", system, ""),
            "temperature": (
                "temperature",
                exact_number(settings.temperature),
                "randomness, 0 to 5; 0 is none",
            ),
            "top_p": ("top p", exact_number(settings.top_p), "share of likely tokens, up to 1"),
            "max_new_tokens": ("longest answer", str(settings.max_new_tokens), "tokens, up to 32,768"),
        }
        self._labels = {name: (label, hint) for name, (label, _, hint) in values.items()}
        self._lines = {name: SafeInput(value, id=f"line-{name}") for name, (_, value, _) in values.items()}
        for line in self._lines.values():
            # Typed text replaces the value.
            line.selection = Selection(0, len(line.value))

    def compose(self) -> ComposeResult:
        """An input for each setting, the error, and the keys."""
        with VerticalScroll(can_focus=False) as box:
            box.border_title = Content("Settings of the chat")
            for name, line in self._lines.items():
                label, hint = self._labels[name]
                with Horizontal():
                    yield TextBlock(Content(label), classes="label")
                    yield line
                    if hint:
                        yield TextBlock(Content.styled(hint, "$muted"), classes="hint")
            yield TextBlock(id="answer")
            yield TextBlock(key_line(_KEYS), id="keys")

    def on_key(self, event: events.Key) -> None:
        """Keys typed before the first input had the focus are its text all the same."""
        line = self._lines["system"]
        if not isinstance(self.focused, SafeInput) and event.is_printable and event.character is not None:
            event.stop()
            line.replace(event.character, *line.selection)

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        texts = {name: line.value.strip() for name, line in self._lines.items()}
        try:
            settings = GenerationSettings(
                max_new_tokens=int(_number("longest answer", texts["max_new_tokens"])),
                temperature=_number("temperature", texts["temperature"]),
                top_p=_number("top p", texts["top_p"]),
            )
        except UserError as error:
            self.query_one("#answer", TextBlock).show(Content.styled(f"✗ {one_line(error.message)}", "$limit"))
            return
        self.dismiss((texts["system"], settings))

    @on(SafeInput.Cancelled)
    def _cancelled(self, message: SafeInput.Cancelled) -> None:
        message.stop()
        self.dismiss(None)


def _number(label: str, text: str) -> float:
    """The number in a text.

    Raises:
        UserError: If it is none.
    """
    try:
        number = float(text)
        int(number)
    except (ValueError, OverflowError):
        raise UserError(f"The {label} must be a number, not {one_line(text, 20) or 'nothing'}.") from None
    return number
