"""Tree of directories and data files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import DirectoryTree

from core.path_kind import ROW_SUFFIXES, YAML_SUFFIXES
from core.text import one_line
from tui.widgets.strips import style_of

#: Suffixes of data files.
DATA_SUFFIXES = (*ROW_SUFFIXES, *YAML_SUFFIXES)


class DataTree(DirectoryTree):
    """A :class:`textual.widgets.DirectoryTree` of data files; names are sanitized and hidden entries left out.

    A filter is for the names in its directory, not for those in the directories below.
    """

    ICON_NODE_EXPANDED = "▾ "
    ICON_NODE = "▸ "
    ICON_FILE = "  "

    DEFAULT_CSS = style_of("DataTree")

    #: The keys, the most important first.
    KEYS: ClassVar[tuple[str, ...]] = (
        *("enter opens", "backspace goes up", "/ finds a name", "esc leaves", "j k move", "g G first and last"),
        *("l h open or close a directory", "space opens or closes one too"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False),
        Binding("k", "cursor_up", "up", show=False),
        Binding("g,home", "cursor_to(0)", "first", show=False),
        Binding("G,end", "cursor_to(-1)", "last", show=False),
        Binding("l,right", "expand", "open directory", show=False),
        Binding("h,left", "collapse", "close directory", show=False),
        Binding("backspace", "up", "parent directory", show=False),
        Binding("escape", "leave", "back", show=False),
    ]

    class Left(Message):
        """The tree has been left without picking a file."""

    class Filtered(Message):
        """Other names are shown."""

    term = ""
    """The text that the names in the directory have, in lower case; empty for all."""

    async def filter_names(self, text: str) -> None:
        """Show only the names with a text; an empty text shows all."""
        self.term = text.strip().lower()
        await self.reload()
        self.cursor_line = min(1, self.last_line)
        self.post_message(self.Filtered())

    def process_label(self, label: object) -> Text:
        """Sanitize a file name to one line."""
        return Text(one_line(str(label)))

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Keep visible directories and data files, in its own directory those with the term."""
        top = Path(self.path)
        for path in paths:
            is_told = path.parent != top or self.term in path.name.lower()
            is_data = path.suffix.lower() in DATA_SUFFIXES or os.path.isdir(path)
            if is_told and is_data and not path.name.startswith("."):
                yield path

    def action_cursor_to(self, line: int) -> None:
        """Move the cursor to a line; -1 is the last one."""
        self.cursor_line = line if line >= 0 else self.last_line

    def action_expand(self) -> None:
        """Open the directory under the cursor."""
        if self.cursor_node is not None and self.cursor_node.allow_expand:
            self.cursor_node.expand()

    def action_collapse(self) -> None:
        """Close the directory under the cursor, or go to its parent."""
        node = self.cursor_node
        if node is None:
            return
        if node.allow_expand and node.is_expanded and node is not self.root:
            node.collapse()
        elif node.parent is not None:
            self.move_cursor(node.parent)
        else:
            self.action_up()

    def action_up(self) -> None:
        """Show the parent directory."""
        self.term = ""
        self.path = Path(os.path.abspath(self.path)).parent
        self.post_message(self.Filtered())

    async def action_leave(self) -> None:
        """Show all names again; post :class:`Left` if they are shown."""
        if self.term:
            await self.filter_names("")
        else:
            self.post_message(self.Left())
