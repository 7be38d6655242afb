"""YAML files of other tools: their values and the line of every key, parsed in the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.text import one_line


@dataclass(frozen=True)
class YamlFile:
    """The content of a YAML file.

    Args:
        path: Path of the file.
        values: Its keys, in order.
        lines: Line of each key, from 1; nested keys as ``table.key``, keys in a list of tables as ``list[1].key``.
        repeated: Earlier lines of keys that are given more than once; the last value counts.
    """

    path: Path
    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    repeated: dict[str, list[int]] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The path, safe to print."""
        return one_line(str(self.path))

    def place(self, key: str) -> str:
        """Position of a key for messages, ``file, line 12``; the file alone for a missing key."""
        line = self.lines.get(key)
        return f"{self.shown}, line {line}" if line else self.shown


def read_yaml(path: Path, clean: Callable[[str], str] = str) -> YamlFile:
    """Read a file with PyYAML's safe loader, in the sandbox; blocks.

    Aliases and merge keys are expanded, up to :data:`core.yaml.reader.MOST_VALUES` values.

    Args:
        path: The file.
        clean: Redacts secrets in text quoted by an error; a module-level function, since it is pickled.

    Raises:
        UserError: If it cannot be read, is not a single YAML document with a mapping, or is too large. The message
            names file and line.
    """
    return sandboxed(read_document, one_line(str(path)), rights=reading(path))(path, clean)


def read_document(path: Path, clean: Callable[[str], str] = str) -> YamlFile:
    """Read a file in this process; see :func:`read_yaml`.

    Raises:
        UserError: As :func:`read_yaml`.
    """
    from core.yaml.reader import read_values

    return YamlFile(path, *read_values(path, clean))
