"""Paths of data files, as a configuration writes them and as they are meant."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from core.hub_uri import absolute, is_hub_entry

if TYPE_CHECKING:
    from core.config.document import ConfigDocument


def data_paths(document: ConfigDocument, use: str) -> list[Path]:
    """The files that ``data.train`` or ``data.eval`` names, absolute and with links followed.

    Args:
        document: The configuration; relative paths are relative to its file, else to the working directory.
        use: ``train`` or ``eval``.
    """
    value = document.get(f"data.{use}")
    base = document.path.parent if document.path is not None else Path.cwd()
    texts = value if isinstance(value, list) else [value]
    found = [entry_path(text, base) for text in texts if isinstance(text, str) and text.strip()]
    return [path if is_hub_entry(path) else Path(follow_links(path)) for path in found]


def follow_links(path: Path | str) -> str:
    """A path with its links followed; what cannot be followed, as a link that leads back to itself, stays as it is.

    An entry of a hub has none.
    """
    if is_hub_entry(path):
        return absolute(str(path), Path())
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL, which TOML can spell: there is no such file, and whoever opens it says so
        return str(path)


def entry_path(text: str, base: Path) -> Path:
    """What is typed or written as data, as an absolute path; an entry of a hub stays one, whatever the base."""
    return Path(absolute(text, base))


def entry_text(path: Path) -> str:
    """The opposite: a path made absolute, or an entry of a hub with both of its slashes."""
    return absolute(str(path), Path.cwd())


def path_text(document: ConfigDocument, path: Path) -> str:
    """A path as the configuration should write it: relative to its file where it lies beside or below it.

    Then both can be moved together.
    """
    if is_hub_entry(path):
        return entry_text(path)
    whole = path.absolute()
    if document.path is not None:
        base = document.path.absolute().parent
        if whole.is_relative_to(base):
            return str(whole.relative_to(base))
    return str(whole)
