"""Paths of data files: as the configuration writes them, and resolved."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from core.hub_uri import absolute, is_hub_entry
from core.paths import working_directory

if TYPE_CHECKING:
    from core.config.document import ConfigDocument


def data_paths(document: ConfigDocument, use: str) -> list[Path]:
    """The files of ``data.train`` or ``data.eval``, absolute and with links resolved.

    Args:
        document: The configuration; relative paths are relative to its file, else to the working directory.
        use: ``train`` or ``eval``.
    """
    value = document.get(f"data.{use}")
    base = document.path.parent if document.path is not None else working_directory()
    texts = value if isinstance(value, list) else [value]
    found = [entry_path(text, base) for text in texts if isinstance(text, str) and text.strip()]
    return [path if is_hub_entry(path) else Path(follow_links(path)) for path in found]


def follow_links(path: Path | str) -> str:
    """A path with its links resolved; a path that cannot be resolved, as a link to itself, stays as it is.

    An entry of a hub has none.
    """
    if is_hub_entry(path):
        return absolute(str(path), Path())
    try:
        return os.path.realpath(path)
    except ValueError:  # a NUL, which TOML can spell: there is no such file, and opening it reports that
        return str(path)


def is_among(entries: Iterable[Path | str], path: Path) -> bool:
    """Whether one of the entries is a path, or the directory that it is in; links are followed."""
    wanted = follow_links(path)
    for entry in map(follow_links, entries):
        if wanted == entry:
            return True
        directory = entry if os.path.isdir(entry) else entry.rpartition("#")[0]
        if directory and wanted.startswith(directory + os.sep):
            return True
    return False


def entry_path(text: str, base: Path) -> Path:
    """A data path as typed or written, made absolute; an entry of a hub stays one, whatever the base."""
    return Path(absolute(text, base))


def entry_text(path: Path) -> str:
    """The inverse of :func:`entry_path`: a path made absolute, or an entry of a hub with both of its slashes."""
    return absolute(str(path), working_directory())


def path_text(document: ConfigDocument, path: Path) -> str:
    """A path as the configuration should write it: relative to its file where it is in or below the file's directory.

    Then both can be moved together.
    """
    if is_hub_entry(path):
        return entry_text(path)
    whole = working_directory() / path
    if document.path is not None:
        base = (working_directory() / document.path).parent
        if whole.is_relative_to(base):
            return str(whole.relative_to(base))
    return str(whole)
