"""YAML files of other tools, read in the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.sandbox.pool import sandboxed
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


def read_yaml(path: Path, clean: Callable[[str], str] = str) -> YamlFile:
    """Read a file with PyYAML's safe loader, in the sandbox; blocks.

    Aliases and merge keys are followed as far as the whole stays within :data:`core.yaml_reader.MOST_VALUES`.

    Args:
        path: The file.
        clean: Applied to what an error quotes of it, which may hold a secret; a function of a module.

    Raises:
        UserError: If it cannot be read, is not one YAML document, is no table of keys, has a key twice, or stands for
            more than a configuration would. The message names file and line.
    """
    return sandboxed(_read, one_line(str(path)))(path, clean)


def _read(path: Path, clean: Callable[[str], str]) -> YamlFile:
    from core.yaml_reader import read_document

    return read_document(path, clean)
