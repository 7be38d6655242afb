"""Recently opened configurations."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.paths import working_directory
from core.small_files import read_json

#: The most paths that are remembered.
KEPT = 30
_LARGEST_FILE = 1 << 20


def recent_path() -> Path:
    """The file with the list."""
    return paths.home() / "recent.json"


def recent_configs() -> list[Path]:
    """The recently opened configurations, the last one first; deleted files are left out."""
    try:
        names = read_json(recent_path(), _LARGEST_FILE)
    except (OSError, ValueError):
        return []
    texts = [name for name in names if isinstance(name, str) and "\0" not in name] if isinstance(names, list) else []
    found = [Path(text) for text in dict.fromkeys(texts)][:KEPT]
    # Not the method of Path, which raises on names that no file can have.
    return [path for path in found if path.is_absolute() and os.path.isfile(path)]


def remember_config(path: Path) -> None:
    """Put a configuration first in the list; if the list cannot be written, it stays as it is."""
    whole = working_directory() / path
    names = [whole, *(other for other in recent_configs() if other != whole)][:KEPT]
    text = json.dumps([str(name) for name in names], indent=0) + "\n"
    # A file name that is not valid text cannot be stored.
    with suppress(OSError, UserError, UnicodeError):
        paths.make_private_dir(paths.home())
        write_atomic(recent_path(), text, durable=False)
