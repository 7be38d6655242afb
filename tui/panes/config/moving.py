"""A configuration that gets another file: its relative paths, and a name that no file has."""

from __future__ import annotations

import os
from pathlib import Path

from core.config.document import ConfigDocument
from core.hub_uri import is_hub_entry
from tui.data_paths import entry_path
from tui.panes.config.model import DATA_PATHS, is_there


def rebase(document: ConfigDocument, old: Path, new: Path, *, shorten: bool = False) -> list[str]:
    """Write relative paths so that they mean the same files from another directory.

    Args:
        document: The configuration.
        old: What they are relative to now.
        new: What they will be relative to.
        shorten: Make absolute paths relative too, where they lie below the new directory.

    Returns:
        The options that were changed.
    """
    before, after = old.absolute(), new.absolute()
    changed: list[str] = []
    if not shorten and os.path.normpath(before) == os.path.normpath(after):
        return changed

    def moved(text: str) -> str:
        whole = entry_path(text, before)
        is_fixed = os.path.isabs(os.path.expanduser(text)) and not (shorten and whole.is_relative_to(after))
        # A model may be a name that no file has.
        if is_fixed or is_hub_entry(text) or not is_there(whole):
            return text
        return str(whole.relative_to(after)) if whole.is_relative_to(after) else os.path.normpath(whole)

    for name in ("model.base", *DATA_PATHS, "template.file"):
        value = document.get(name)
        texts = value if isinstance(value, list) else [value]
        written = [moved(text) if isinstance(text, str) and text else text for text in texts]
        if written != texts:
            document.set(name, written if isinstance(value, list) else written[0])
            changed.append(name)
    return changed


def free_name(path: Path) -> Path:
    """``tickets-2.toml`` of ``tickets.toml``, or the first number that no file has."""
    stem, number = path.stem, 2
    head, _, tail = stem.rpartition("-")
    if head and tail.isdecimal() and len(tail) < 4:
        stem, number = head, int(tail) + 1
    while (found := path.with_name(f"{stem}-{number}{path.suffix}")).exists():
        number += 1
    return found


def path_shown(path: Path) -> str:
    """A path as one would type it: from the working directory, where it lies below it."""
    whole = path.absolute()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)
