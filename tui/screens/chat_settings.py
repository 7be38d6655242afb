"""Chat settings: system prompt and sampling for the questions that follow."""

from __future__ import annotations

import json
from typing import ClassVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.text import one_line
from core.units import exact_number
from tui.screens.overlay import INPUT_BINDINGS, Overlay, key_line
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.text_block import TextBlock

_KEYS = (("tab", "next"), ("enter", "use them"), ("esc", "leave as it is"))


class ChatSettings(Overlay[tuple[str, GenerationSettings]]):
    """Dialog of the chat settings, checked on accept; returns the system prompt and the settings, or nothing.

    Args:
        system: The current system prompt.
        settings: The current settings.
    """

    DEFAULT_CSS = """
    ChatSettings {
        & > VerticalScroll {
            width: 84; max-width: 100%; height: auto; max-height: 90%; padding: 1 2;
            border: round $border-focus; border-title-style: bold; background: $surface; scrollbar-size-vertical: 1;
        }
        & Horizontal { height: auto; }
        & .label { width: 16; }
        & .hint { width: 1fr; color: $muted; padding-left: 2; }
        & SafeInput { width: 10; background: $panel; }
        & #line-system, & #line-stop { width: 1fr; }
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
            "top_k": ("top k", str(settings.top_k), "number of likely tokens; 0: all"),
            "min_p": ("min p", exact_number(settings.min_p), "least share of the likeliest, below 1"),
            "repetition_penalty": (
                "repetition",
                exact_number(settings.repetition_penalty),
                "penalty, to 10; 1 is none",
            ),
            "seed": (
                "seed",
                "" if settings.seed is None else str(settings.seed),
                "the same draws; empty: none",
            ),
            "stop": ("stops", _stops_line(settings.stop), ""),
        }
        self._labels = {name: (label, hint) for name, (label, _, hint) in values.items()}
        self._lines = {name: SafeInput(value, id=f"line-{name}") for name, (_, value, _) in values.items()}
        for line in self._lines.values():
            # Typed text replaces the value.
            line.select_all()

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
        """Give keys typed before the first input has the focus to that input."""
        if not isinstance(self.focused, SafeInput):
            self._lines["system"].take_key(event)

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        texts = {name: line.value.strip() for name, line in self._lines.items()}
        try:
            settings = GenerationSettings(
                max_new_tokens=_whole("longest answer", texts["max_new_tokens"]),
                temperature=_number("temperature", texts["temperature"]),
                top_p=_number("top p", texts["top_p"]),
                top_k=_whole("top k", texts["top_k"]),
                min_p=_number("min p", texts["min_p"]),
                repetition_penalty=_number("repetition penalty", texts["repetition_penalty"]),
                seed=_whole("seed", texts["seed"]) if texts["seed"] else None,
                stop=_read_stops(texts["stop"]),
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
    """Parse a number.

    Raises:
        UserError: If the text is not a number.
    """
    try:
        number = float(text)
        int(number)
    except (ValueError, OverflowError):
        raise UserError(f"The {label} must be a number, not {one_line(text, 20) or 'nothing'}.") from None
    return number


def _whole(label: str, text: str) -> int:
    """Parse a whole number.

    Raises:
        UserError: If the text is not a whole number.
    """
    number = _number(label, text)
    if number != int(number):
        raise UserError(f"The {label} must be a whole number, not {one_line(text, 20)}.")
    return int(number)


def _stops_line(stops: tuple[str, ...]) -> str:
    """Stop sequences on one line, quoted as JSON because they may contain line breaks and trailing spaces."""
    return json.dumps(list(stops), ensure_ascii=False)[1:-1]


def _read_stops(text: str) -> tuple[str, ...]:
    """Parse stop sequences: a JSON list without its brackets, or a single unquoted text.

    Raises:
        UserError: If a quote is not closed.
    """
    if not text.startswith('"'):
        return (text,) if text else ()
    try:
        found = json.loads(f"[{text}]")
    except ValueError:
        raise UserError('Stops are texts in quotes with commas between them, like "User:", "\\n\\n".') from None
    return tuple(found)
