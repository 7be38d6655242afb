"""Modal question over the app, answered with a single key."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from textual import events
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ScreenResultType

from core.text import one_line, sanitize
from tui.keys import display_key
from tui.screens.overlay import Overlay
from tui.widgets.forms.ask_bar import AnswerKeys, waiting_text
from tui.widgets.strips import style_of
from tui.widgets.text_block import HangingBlock, TextBlock


@dataclass(frozen=True)
class Choice:
    """An answer to a question: its key, the value it returns, and its label."""

    key: str
    value: str
    label: str
    detail: str = ""


def choice_lines(choices: Sequence[Choice]) -> Content:
    """A line for each answer, with the details in a column."""
    width = max((len(display_key(choice.key)) for choice in choices), default=0)
    column = max((len(choice.label) for choice in choices if choice.detail), default=0)
    lines = []
    for choice in choices:
        detail = f"{' ' * (column - len(choice.label) + 2)}{choice.detail}" if choice.detail else ""
        key = (display_key(choice.key).ljust(width), "$primary bold")
        lines.append(Content.assemble(key, f"  {choice.label}", (detail, "$muted")))
    return Content("\n").join(lines)


class Dialog(Overlay[ScreenResultType]):
    """A scrolling box with a question or an event, drawn as an alarm with the class ``-alarm``."""

    DEFAULT_CSS = style_of("Dialog")


class ChoiceDialog(Dialog[str]):
    """A modal question; returns the value of the choice, or an empty text for ``esc``.

    Args:
        title: The subject.
        text: The question or the event; external text is sanitized.
        choices: The answers; ``enter`` gives the first.
        alarm: Draw the dialog as an alarm.
        is_harmless: Accept keys typed before the question was painted; otherwise they are dropped.
        run: The id of the live run in question: the dialog is closed when that run ends. Empty for none.
    """

    def __init__(
        self,
        title: str,
        text: Content | str,
        *choices: Choice,
        alarm: bool = False,
        is_harmless: bool = False,
        run: str = "",
    ) -> None:
        super().__init__(classes="-alarm" if alarm else "")
        self._title = one_line(title, 60)
        self._text = text if isinstance(text, Content) else Content(sanitize(text))
        self.choices = choices
        self.live_run = run
        self._keys = AnswerKeys(is_read=is_harmless)

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = Content(self._title)
            yield TextBlock(self._text, id="text")
            yield HangingBlock(choice_lines(self.choices), id="choices")

    def on_mount(self) -> None:
        """Accept answers once the question has been painted."""
        self.call_after_refresh(self._keys.painted)

    def keys_in_frame(self) -> str:
        """The answer of ``enter``."""
        return f"enter {self.choices[0].label}" if self.choices else ""

    @property
    def help_keys(self) -> list[str]:
        """The keys of the choices."""
        return [f"{choice.key if place else 'enter'} {choice.label}" for place, choice in enumerate(self.choices)]

    @property
    def known_keys(self) -> Container[str]:
        """The keys of the choices."""
        return {choice.key for choice in self.choices}

    def on_key(self, event: events.Key) -> None:
        """Answer with the key of a choice, ``enter`` or ``esc``; any other letter shows a hint."""
        if not self._keys.is_read:
            event.stop()
            event.prevent_default()
            return
        chosen = next((choice for choice in self.choices if event.key == choice.key), None)
        if chosen is None and event.key == "enter":
            chosen = self.choices[0]
        if chosen is None and event.key != "escape" and not event.is_printable:
            # A scrolling key, or a key of the app.
            return
        event.stop()
        event.prevent_default()
        if event.key == "escape" or self._keys.is_answer(chosen is not None, event.time):
            self.dismiss(chosen.value if chosen is not None else "")
        else:
            hint = waiting_text([choice.key for choice in self.choices])
            self.query_one(VerticalScroll).border_subtitle = hint
