"""A YAML file: its values, and the line of every key."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.text import one_line


@dataclass(frozen=True)
class YamlFile:
    """The content of a YAML file.

    Args:
        path: Path of the file.
        values: Its keys, in order.
        lines: The line of each key, counted from 1; nested keys as ``table.key``, those in a list of tables as
            ``list[1].key``.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The path, safe to print."""
        return one_line(str(self.path))

    def place(self, key: str) -> str:
        """Position of a key for messages, ``file, line 12``; the file alone for a missing key."""
        line = self.lines.get(key)
        return f"{self.shown}, line {line}" if line else self.shown
