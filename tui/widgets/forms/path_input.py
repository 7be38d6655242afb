"""An input for a path, completed from the file system by tab and right arrow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.suggester import Suggester

from core.paths import user_path, working_directory
from core.text import sanitize
from tui.data_paths import entry_path
from tui.widgets.forms.safe_input import SafeInput

#: Maximum number of directory entries read; a directory of a million files must not freeze the screen.
ENTRY_LIMIT = 5_000
#: Characters for which a shell wants quotes.
_QUOTED = frozenset(" '\"\\")


def complete_path(text: str, base: Path, suffixes: Sequence[str] = ()) -> list[str]:
    """Completions of a typed path, directories with a slash at their end, in the spelling of the user.

    Args:
        text: The typed text; ``~`` is expanded.
        base: The directory that relative paths are relative to.
        suffixes: Suffixes of the files that are offered; all where empty. Directories always are.

    Returns:
        Whole values for the input, directories first, hidden entries only when a dot was typed. Empty for a directory
        that cannot be read. Names that could not be shown unchanged are left out.
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
    """A suggester of the first completion, shown dim after the cursor."""

    def __init__(self, base: Path, suffixes: Sequence[str]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self.base = base
        self.suffixes = suffixes

    async def get_suggestion(self, value: str) -> str | None:
        """The first completion, if any."""
        return next(iter(complete_path(value, self.base, self.suffixes)), None)


class NameSuggester(PathSuggester):
    """A suggester for names with blanks between them, read as a shell does, of which the last one may be a path."""

    async def get_suggestion(self, value: str) -> str | None:
        """The line with its last name completed, unless that would have to be quoted."""
        before, blank, last = value.rpartition(" ")
        found = await super().get_suggestion(last) if last else None
        return f"{before}{blank}{found}" if found is not None and not set(found) & _QUOTED else None


class PathInput(SafeInput):
    """An input for a path: ``tab`` completes as far as is certain and lists the rest, ``right`` takes the suggestion.

    Args:
        value: The first value.
        base: The directory that relative paths are relative to; the working directory by default.
        suffixes: Suffixes of the files that are offered.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", "complete", show=False)]

    footer_keys: ClassVar[tuple[tuple[str, str], ...]] = (*SafeInput.footer_keys, ("tab", "completes the path"))

    @dataclass
    class Candidates(Message):
        """Completions of the typed path; posted when ``tab`` leaves more than one."""

        names: list[str]

    def __init__(
        self,
        value: str = "",
        *,
        base: Path | None = None,
        suffixes: Sequence[str] = (),
        placeholder: str = "",
        id: str | None = None,  # noqa: A002
        classes: str | None = None,
    ) -> None:
        super().__init__(value, placeholder=placeholder, id=id, classes=classes)
        self.base = base or working_directory()
        self.suffixes = suffixes
        self.suggester = PathSuggester(self.base, suffixes)

    def action_complete(self) -> None:
        """Complete the common part of all candidates, and post them when there are several."""
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
        """The resolved path: ``~`` expanded, made absolute from the base; an entry of a hub stays one."""
        return entry_path(self.value.strip(), self.base)


def common_prefix(texts: Sequence[str]) -> str:
    """The common prefix of all texts, character by character."""
    first, last = min(texts), max(texts)
    length = next((index for index, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _name(path: str) -> str:
    """The last part of a completion, with the slash of a directory."""
    return path.rstrip("/").rpartition("/")[2] + ("/" if path.endswith("/") else "")
