"""A YAML file: its values, and the line of every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.text import one_line


@dataclass(frozen=True)
class YamlFile:
    """What a file says.

    Args:
        path: Where it is.
        values: Its keys, in order.
        lines: The line of each key, counted from 1; of keys inside of a table as ``table.key``, of those of a list of
            tables as ``list[1].key``.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The path, safe to print."""
        return one_line(str(self.path))

    def place(self, key: str) -> str:
        """``file, line 12`` for a key; the file alone for one that it does not have."""
        line = self.lines.get(key)
        return f"{self.shown}, line {line}" if line else self.shown
