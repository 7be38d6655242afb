"""Chat settings: system prompt and sampling for the questions that follow."""

from __future__ import annotations

import json
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.text import one_line
from core.units import exact_number
from tui.screens.box import InputForm
from tui.screens.overlay import INPUT_BINDINGS, Overlay
from tui.widgets.forms.inputs import SafeInput

_KEYS = (("tab", "next"), ("enter", "use them"), ("esc", "leave as it is"))


class ChatSettings(Overlay[tuple[str, GenerationSettings]]):
    """Dialog of the chat settings, checked on accept; returns the system prompt and the settings, or nothing.

    Args:
        system: The current system prompt.
        settings: The current settings.
    """

    DEFAULT_CSS = """
    ChatSettings {
        & > InputForm { width: 84; }
        & SafeInput { width: 10; }
        & #line-system, & #line-stop { width: 1fr; }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [*INPUT_BINDINGS]
    AUTO_FOCUS = "SafeInput"
    TAKES_TEXT = True

    def __init__(self, system: str, settings: GenerationSettings) -> None:
        super().__init__()
        seed = "" if settings.seed is None else str(settings.seed)
        penalty = exact_number(settings.repetition_penalty)
        rows = {
            "system": ("system prompt", system, ""),
            "temperature": ("temperature", exact_number(settings.temperature), "randomness, 0 to 5; 0 is none"),
            "top_p": ("top p", exact_number(settings.top_p), "share of likely tokens, up to 1"),
            "max_new_tokens": ("longest answer", str(settings.max_new_tokens), "tokens, up to 32,768"),
            "top_k": ("top k", str(settings.top_k), "number of likely tokens; 0: all"),
            "min_p": ("min p", exact_number(settings.min_p), "least share of the likeliest, below 1"),
            "repetition_penalty": ("repetition", penalty, "penalty, to 10; 1 is none"),
            "seed": ("seed", seed, "the same draws; empty: none"),
            "stop": ("stops", _stops_line(settings.stop), ""),
        }
        lines = {
            name: (label, SafeInput(value, id=f"line-{name}"), hint) for name, (label, value, hint) in rows.items()
        }
        self._form = InputForm("Settings of the chat", lines, _KEYS)

    def compose(self) -> ComposeResult:
        """The form."""
        yield self._form

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        texts = self._form.texts
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
            self._form.answer(f"✗ {one_line(error.message)}")
            return
        self.dismiss((texts["system"], settings))


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
