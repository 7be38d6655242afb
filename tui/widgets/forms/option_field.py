"""Field of an option: a line with mark, key, value and help, and errors below."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from textual import events, on
from textual.content import Content
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.widget import Widget

from core.text import one_line
from core.units import exact_number
from tui.widgets.forms.inputs import PathInput, SafeInput
from tui.widgets.strips import fit, style_of
from tui.widgets.text_block import relayout

if TYPE_CHECKING:
    from core.config.schema import Option

_MARK_WIDTH = 3
#: Minimum columns for the help beside a value.
_LEAST_HELP = 20
_KEY_WIDTH = 23


def format_value(value: Any) -> str:
    """Format a value as it is typed into the form."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return exact_number(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {_toml_string(str(item))}' for key, item in value.items())}}}"
    if isinstance(value, list):
        parts = [format_value(item) if isinstance(item, float) else str(item) for item in value]
        return ", ".join(parts) if all("," not in part for part in parts) else json.dumps(parts, ensure_ascii=False)
    return str(value)


def _toml_string(text: str) -> str:
    """Quote a TOML string: like JSON, plus the control character that JSON leaves unescaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _columns(width: int) -> tuple[int, int, int]:
    """Columns of the key, of the value, and of the help or notes after it."""
    key = _KEY_WIDTH if width >= 56 else 18
    value = max(min(width - _MARK_WIDTH - key, 24 if width < 110 else 36), 1)
    return key, value, width - _MARK_WIDTH - key - value - 1


class OptionField(Widget):
    """A field of the form, edited in place with an input.

    Args:
        option: The declaration.
        base: The directory of relative paths.
        suffixes: Suffixes of the offered files if the value is a path; None for other values.
    """

    DEFAULT_CSS = style_of("OptionField")

    value: reactive[Any] = reactive(None)
    """The value in the file; None for the default."""
    problem = reactive("", layout=True)
    """The error of the value; empty if it is valid."""
    warning = reactive("", layout=True)
    """A warning of a likely mistake; empty for none."""
    notes: reactive[tuple[str, ...]] = reactive((), layout=True)
    """Notes on other values: ``• was 32 in preset``, ``≠ last run 1e-4``."""
    used_by: reactive[tuple[str, ...]] = reactive(())
    """Methods or objectives that use the option, if the current configuration does not."""
    unset_text = reactive("")
    """The text shown for no value: the effect of the missing value."""
    is_changed = reactive(False)
    """True if the user set the value."""
    baseline: reactive[Any] = reactive(None)
    """The unedited value: the preset's, or else the default."""
    is_cursor = reactive(False, toggle_class="-cursor")
    """True if the cursor of the form is on the field."""
    lights_up = reactive(False)
    """True if the form has the focus; otherwise the cursor is dim."""

    @dataclass
    class Typed(Message):
        """The text in the input has changed."""

        field: OptionField
        text: str

    @dataclass
    class Committed(Message):
        """The input has been left with its text kept."""

        field: OptionField
        refocus: bool

    @dataclass
    class Abandoned(Message):
        """The input has been left with ``esc``, to restore the old value."""

        field: OptionField
        before: Any

    @dataclass
    class Clicked(Message):
        """The field has been clicked."""

        field: OptionField

    def __init__(self, option: Option, *, base: Path, suffixes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.option = option
        self.base = base
        self.suffixes = suffixes
        self._before: Any = None
        self._text = ""
        self.set_reactive(OptionField.baseline, option.default)

    @property
    def is_editing(self) -> bool:
        """True while the input is open."""
        return bool(self.children)

    @property
    def differs(self) -> bool:
        """True if the value differs from the baseline; a required option has no baseline."""
        value = self.option.default if self.value is None else self.value
        return not self.option.required and value != self.baseline

    @property
    def choices(self) -> tuple[str, ...]:
        """Values to step through; empty for a typed value."""
        if self.option.type == "boolean":
            return ("false", "true")
        return self.option.choices if self.option.type == "choice" else ()

    def next_choice(self, step: int) -> str | None:
        """The choice ``step`` places on, wrapping around; None for a typed value."""
        if not self.choices:
            return None
        present = format_value(self.option.default if self.value is None else self.value)
        index = self.choices.index(present) if present in self.choices else -1
        return self.choices[(index + step) % len(self.choices)]

    def edit(self) -> None:
        """Open the input."""
        if self.is_editing:
            return
        self._before = self.value
        self._text = text = format_value(self.value if self.value is not None else self.option.default)
        entry: SafeInput
        if self.suffixes is not None:
            entry = PathInput(text, base=self.base, suffixes=self.suffixes)
        else:
            entry = SafeInput(text)
        key_width, value_width, _ = _columns(self.size.width)
        entry.styles.margin = (0, 0, 0, _MARK_WIDTH + key_width)
        entry.styles.width = max(self.size.width - _MARK_WIDTH - key_width, 8) if self._is_long else value_width
        self.mount(entry)
        entry.select_all()
        # Immediately, so that keys typed ahead are its text.
        self.screen.set_focus(entry)

    def close(self) -> None:
        """Close the input."""
        self.remove_children()
        relayout(self)

    def commit(self, *, refocus: bool) -> None:
        """Close an open input, and keep its text."""
        if self.is_editing:
            self.close()
            self.post_message(self.Committed(self, refocus))

    # Rendering.

    @property
    def _is_long(self) -> bool:
        return self.suffixes is not None or self.option.type in ("text", "paths", "list", "numbers", "table")

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:  # noqa: ARG002 - Textual calls it
        """The height: a line, plus the lines of notes, problem and warning."""
        return 1 + len(self._lines_below(width))

    def _lines_below(self, width: int) -> list[tuple[str, str]]:
        """Lines below the value with their style; they include notes that do not fit beside the value."""
        _, _, beside = _columns(width)
        notes = "  ".join(self.notes)
        texts = [
            ("" if cell_len(notes) <= beside else notes, "$accent"),
            (f"✗ {self.problem}" if self.problem else "", "$limit"),
            (f"! {self.warning}" if self.warning and not self.problem else "", "$near"),
        ]
        room = max(width - _MARK_WIDTH - 2, 8)
        return [(line.plain, style) for text, style in texts if text for line in Content(one_line(text)).wrap(room)]

    def render(self) -> Content:
        """The line of the value, with the problem below."""
        key_width, value_width, rest = _columns(self.size.width)
        mark, mark_style = (
            ("✗", "$limit bold")
            if self.problem
            else ("!", "$near bold")
            if self.warning
            else ("•", "$accent bold")
            if self.is_changed
            else (" ", "")
        )
        pointer = "▸" if self.is_cursor else " "
        notes, help_text = "  ".join(self.notes), self.option.help
        if self.used_by:
            help_text = f"Only for {' and '.join(self.used_by)}. {help_text}"
        has_notes = 0 < cell_len(notes) <= rest
        parts: list[tuple[str, str]] = [
            (pointer, "$primary bold" if self.lights_up else "$muted"),
            (f"{mark} ", mark_style),
            (fit(self.option.key, key_width - 1) + " ", self._key_style),
            (self._value_text(value_width), self._value_style),
            (" " + fit(notes if has_notes else help_text, rest), "$accent" if has_notes else "$muted")
            if rest >= _LEAST_HELP or has_notes
            else ("", ""),
        ]
        lines = [Content.assemble(*parts)]
        indent = " " * (_MARK_WIDTH + 2)
        lines += [Content.styled(indent + line, style) for line, style in self._lines_below(self.size.width)]
        return Content("\n").join(lines)

    @property
    def _key_style(self) -> str:
        if self.is_cursor and self.lights_up:
            return "bold"
        return "$muted" if self.used_by and not self.is_changed else ""

    @property
    def _value_style(self) -> str:
        if self.problem:
            return "$limit"
        if self.used_by and not self.is_changed:
            return "$muted"
        return "bold $foreground" if self.is_changed else "$muted" if self.value is None else "$foreground"

    def _value_text(self, width: int) -> str:
        value = self.option.default if self.value is None else self.value
        text = one_line(format_value(value)) or self.unset_text or "–"
        if self.choices:
            text += " ▾" if self.option.type == "choice" else ""
        elif self.option.unit and value is not None and len(text) + len(self.option.unit) + 1 <= width:
            text += f" {self.option.unit}"
        elif len(text) > width and self.suffixes is not None:
            # The end of a path is more informative.
            text = "…" + text[-(width - 1) :]
        return fit(text, width)

    # Events.

    def on_click(self, event: events.Click) -> None:
        """Report the click to the form."""
        event.stop()
        self.post_message(self.Clicked(self))

    @on(SafeInput.Changed)
    def _typed(self, message: SafeInput.Changed) -> None:
        message.stop()
        # The input posts its initial text too.
        if message.input.is_attached and self.is_editing and message.value != self._text:
            self._text = message.value
            self.post_message(self.Typed(self, message.value))

    @on(SafeInput.Submitted)
    def _submitted(self, message: SafeInput.Submitted) -> None:
        message.stop()
        self.commit(refocus=True)

    @on(SafeInput.Cancelled)
    def _cancelled(self, message: SafeInput.Cancelled) -> None:
        message.stop()
        self.close()
        self.post_message(self.Abandoned(self, self._before))

    def on_descendant_blur(self) -> None:
        """Keep the text of an input left by mouse or tab."""
        self.commit(refocus=False)
