"""YAML files of other tools, parsed in the sandbox."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.sandbox.pool import sandboxed
from core.sandbox.rights import reading
from core.text import one_line
from core.yaml.file import YamlFile


def read_yaml(path: Path, clean: Callable[[str], str] = str) -> YamlFile:
    """Read a file with PyYAML's safe loader, in the sandbox; blocks.

    Aliases and merge keys are followed as far as the whole stays within :data:`core.yaml.reader.MOST_VALUES`.

    Args:
        path: The file.
        clean: Redacts text that an error quotes, which may hold a secret; must be picklable: a module-level function.

    Raises:
        UserError: If it cannot be read, is not one YAML document, is not a mapping, has a duplicate key, or stands for
            more than a configuration would. The message names file and line.
    """
    return sandboxed(_read, one_line(str(path)), rights=reading(path))(path, clean)


def _read(path: Path, clean: Callable[[str], str]) -> YamlFile:
    from core.yaml.reader import read_document

    return read_document(path, clean)
