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
    """A :class:`textual.widgets.DirectoryTree` of data files; names are sanitized and hidden entries left out."""

    ICON_NODE_EXPANDED = "▾ "
    ICON_NODE = "▸ "
    ICON_FILE = "  "

    DEFAULT_CSS = style_of("DataTree")

    #: The keys, the most important first.
    KEYS: ClassVar[tuple[str, ...]] = (
        *("enter opens", "backspace goes up", "esc leaves", "j k move"),
        *("l h open or close a directory", "space opens or closes one too"),
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "down", show=False),
        Binding("k", "cursor_up", "up", show=False),
        Binding("l,right", "expand", "open directory", show=False),
        Binding("h,left", "collapse", "close directory", show=False),
        Binding("backspace", "up", "parent directory", show=False),
        Binding("escape", "leave", "back", show=False),
    ]

    class Left(Message):
        """The tree has been left without picking a file."""

    def process_label(self, label: object) -> Text:
        """Sanitize a file name to one line."""
        return Text(one_line(str(label)))

    def filter_paths(self, paths: Iterable[Path]) -> Iterable[Path]:
        """Keep visible directories and data files."""
        for path in paths:
            if not path.name.startswith(".") and (path.suffix.lower() in DATA_SUFFIXES or os.path.isdir(path)):
                yield path

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
        parent = Path(os.path.abspath(self.path)).parent
        self.path = parent

    def action_leave(self) -> None:
        """Post :class:`Left` on ``esc``."""
        self.post_message(self.Left())
