"""Inputs: single-line text, paths with completion, and the chat prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, TextArea

from core.paths import user_path, working_directory
from core.text import one_line, sanitize
from tui.files import entry_path
from tui.widgets.strips import style_of


class SafeInput(Input):
    """A compact :class:`textual.widgets.Input` that sanitizes pasted and set text, and posts ``esc``."""

    DEFAULT_CSS = style_of("SafeInput")

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "cancel", "cancel", show=False)]

    #: Key hints for the key bar while this has the focus.
    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (("esc", "cancels"), ("enter", "accepts"))

    class Cancelled(Message):
        """The input has been left with ``esc``."""

    def __init__(self, value: str = "", *, placeholder: str = "", id: str | None = None) -> None:  # noqa: A002
        super().__init__(one_line(value), placeholder=placeholder, id=id, compact=True, select_on_focus=False)
        self.cursor_blink = False

    def validate_value(self, value: str) -> str:
        """Sanitize any value to a single line of harmless characters."""
        return one_line(value)

    def _on_paste(self, event: events.Paste) -> None:
        text = one_line(event.text.strip("\r\n"))
        if text:
            self.replace(text, *self.selection) if not self.selection.is_empty else self.insert_text_at_cursor(text)
        event.stop()
        event.prevent_default()

    @property
    def is_untouched(self) -> bool:
        """True while it is empty, or its value is selected as a whole."""
        return self.selected_text == self.value

    def check_consume_key(self, key: str, character: str | None) -> bool:
        """True for keys that are text; the key of the help is none as the first one, where a binding takes it."""
        return not (character == "?" and self.is_untouched) and super().check_consume_key(key, character)

    def take_key(self, event: events.Key) -> bool:
        """Insert a key typed while the input had no focus; returns False for a key without a character."""
        if not event.is_printable or event.character is None:
            return False
        event.stop()
        self.replace(event.character, *self.selection)
        return True

    def action_cancel(self) -> None:
        """Post :class:`Cancelled` on ``esc``."""
        self.post_message(self.Cancelled())


#: Maximum number of directory entries read; a directory of a million files must not freeze the screen.
ENTRY_LIMIT = 5_000
#: Characters that need quotes in a shell.
_QUOTED = frozenset(" '\"\\")


def complete_path(text: str, base: Path, suffixes: Sequence[str] = ()) -> list[str]:
    """Completions of a typed path in the user's spelling; directories end with a slash.

    Args:
        text: The typed text; ``~`` is expanded.
        base: The directory of relative paths.
        suffixes: Suffixes of the offered files; empty for all. Directories are always offered.

    Returns:
        Values for the input, directories first, hidden entries only after a typed dot. Empty if the directory cannot
        be read. Names with characters that sanitizing would change are left out.
    """
    head, _, stem = text.rpartition("/")
    prefix = text[: len(text) - len(stem)]
    directory = base / user_path(prefix or "") if (head or prefix) else base
    found: list[tuple[bool, str]] = []
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= ENTRY_LIMIT:
                    break
                name = entry.name
                if not name.startswith(stem) or (name.startswith(".") and not stem.startswith(".")):
                    continue
                is_dir = entry.is_dir()
                if sanitize(name) == name and (is_dir or not suffixes or name.lower().endswith(tuple(suffixes))):
                    found.append((not is_dir, f"{prefix}{name}/" if is_dir else f"{prefix}{name}"))
    except OSError:
        return []
    return [value for _, value in sorted(found)]


class PathSuggester(Suggester):
    """Suggests the first completion, shown dim after the cursor."""

    def __init__(self, base: Path, suffixes: Sequence[str]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.base = base
        self.suffixes = suffixes

    async def get_suggestion(self, value: str) -> str | None:
        """The first completion, if any."""
        return next(iter(complete_path(value, self.base, self.suffixes)), None)


class NameSuggester(PathSuggester):
    """Suggests completions for the last of several names, which are split as in a shell."""

    async def get_suggestion(self, value: str) -> str | None:
        """The line with its last name completed, unless the name needs quotes."""
        before, blank, last = value.rpartition(" ")
        found = await super().get_suggestion(last) if last else None
        return f"{before}{blank}{found}" if found is not None and not set(found) & _QUOTED else None


class PathInput(SafeInput):
    """Path input: ``tab`` completes the common part and lists the candidates, ``right`` takes the suggestion.

    Args:
        value: The initial value.
        base: The directory of relative paths; the working directory by default.
        suffixes: Suffixes of the offered files.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", "complete", show=False)]

    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (*SafeInput.footer_keys, ("tab", "completes the path"))

    @dataclass
    class Candidates(Message):
        """Candidates after ``tab``; empty if there is at most one."""

        names: list[str]

    def __init__(
        self,
        value: str = "",
        *,
        base: Path | None = None,
        suffixes: Sequence[str] = (),
        placeholder: str = "",
        id: str | None = None,  # noqa: A002
    ) -> None:
        super().__init__(value, placeholder=placeholder, id=id)
        self.base = base or working_directory()
        self.suffixes = suffixes
        self.suggester = PathSuggester(self.base, suffixes)

    def action_complete(self) -> None:
        """Complete the common part of all candidates, and post them if there are several."""
        candidates = complete_path(self.value, self.base, self.suffixes)
        if not candidates:
            self.post_message(self.Candidates([]))
            return
        common = common_prefix(candidates)
        if len(common) > len(self.value):
            self.value = common
            self.cursor_position = len(common)
        if len(candidates) == 1 and common.endswith("/"):
            candidates = complete_path(common, self.base, self.suffixes)
        self.post_message(self.Candidates([] if len(candidates) == 1 else [_name(path) for path in candidates]))

    def resolved(self) -> Path:
        """The absolute path with ``~`` expanded; a hub entry stays as it is."""
        return entry_path(self.value.strip(), self.base)


def common_prefix(texts: Sequence[str]) -> str:
    """The common prefix of all texts, character by character."""
    first, last = min(texts), max(texts)
    length = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _name(path: str) -> str:
    """Last part of a completion, with a directory's slash."""
    return path.rstrip("/").rpartition("/")[2] + ("/" if path.endswith("/") else "")


#: Maximum number of prompts in the history.
HISTORY_LIMIT = 200


class PromptInput(TextArea):
    """A :class:`textual.widgets.TextArea` that grows to a few lines, and sends on enter."""

    DEFAULT_CSS = style_of("PromptInput")

    # The parent binds ctrl+y to redo, and page keys to the few lines of the prompt. Some terminals cannot distinguish
    # alt+enter and ctrl+j from enter, hence ctrl+n.
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+y", "copy_answer", "copy", show=False),
        Binding("ctrl+n,ctrl+j,alt+enter,shift+enter", "break_line", "line break", show=False),
        Binding("pageup", "page(-1)", "page up", show=False),
        Binding("pagedown", "page(1)", "page down", show=False),
    ]

    @dataclass
    class Submitted(Message):
        """Enter has been pressed on a non-blank text."""

        text: str

    class CopyWanted(Message):
        """Request: copy the last answer."""

    @dataclass
    class PageWanted(Message):
        """Request: scroll the conversation by a page, up (-1) or down (1)."""

        direction: int

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__("", id=id, soft_wrap=True, tab_behavior="focus", show_line_numbers=False)
        self.cursor_blink = False
        self.highlight_cursor_line = False
        self.footer_keys: tuple[tuple[str, str], ...] = (("esc", "leaves the prompt"), ("enter", "sends"))
        """Key hints for the key bar while this has the focus."""
        self._history: list[str] = []
        self._position = 0
        self._unsent = ""

    def remember(self, text: str) -> None:
        """Add a prompt to the history."""
        if not self._history or self._history[-1] != text:
            self._history = [*self._history, text][-HISTORY_LIMIT:]
        self._position = len(self._history)
        self._unsent = ""

    async def _on_key(self, event: events.Key) -> None:
        handled = True
        if event.key == "enter":
            if self.text.strip():
                self.post_message(self.Submitted(self.text))
        elif event.key == "up" and self.cursor_at_first_line and self._position > 0:
            self._recall(-1)
        elif event.key == "down" and self.cursor_at_last_line and self._position < len(self._history):
            self._recall(1)
        else:
            handled = False
        if handled:
            event.stop()
            event.prevent_default()

    def _recall(self, step: int) -> None:
        if self._position == len(self._history):
            self._unsent = self.text
        self._position += step
        at_end = self._position == len(self._history)
        self.load_text(self._unsent if at_end else self._history[self._position])
        self.move_cursor(self.document.end)

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert(sanitize(event.text).rstrip("\n"))

    def action_paste(self) -> None:
        """Paste the app's clipboard, which may hold a model's answer, sanitized."""
        self.insert(sanitize(self.app.clipboard).rstrip("\n"))

    def action_break_line(self) -> None:
        """Insert a line break."""
        self.insert("\n")

    def action_page(self, direction: int) -> None:
        """Request a page of the conversation from the pane."""
        self.post_message(self.PageWanted(direction))

    def action_copy_answer(self) -> None:
        """Request a copy of the last answer from the pane."""
        self.post_message(self.CopyWanted())
