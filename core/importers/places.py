"""Relative paths of another tool's file, resolved and rewritten so that they stay valid."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.hub.selection import is_data_name

#: The most parent directories of the file that are tried as the tool's working directory.
_UPWARD = 5


@dataclass(frozen=True)
class Places:
    """The working directory of a tool, and the directory of our configuration.

    Args:
        base: The directory that relative paths start from.
        home: The directory of the new configuration; None if it is not known yet.
    """

    base: Path
    home: Path | None = None

    @classmethod
    def find(cls, file: Path, names: Iterable[str], home: Path | None = None) -> Places:
        """Guess the tool's working directory, which a file does not record.

        The current directory, that of the file and its parents are tried; the first in which most of the named
        paths exist is taken, and the current one where none exists.
        """
        here = Path.cwd()
        start = Path(os.path.abspath(file)).parent
        candidates = list(dict.fromkeys([here, start, *list(start.parents)[:_UPWARD]]))
        wanted = [name for name in dict.fromkeys(names) if _is_relative(name)]
        best = max(candidates, key=lambda base: sum(_exists(base / name) for name in wanted))
        return cls(best, Path(os.path.abspath(home)) if home is not None else None)

    def locate(self, name: str) -> Path:
        """The absolute path of a name."""
        return Path(os.path.normpath(self.base / os.path.expanduser(name)))

    def exists(self, name: str) -> bool:
        """Whether a path of the file exists."""
        return _exists(self.locate(name))

    def is_local(self, name: str) -> bool:
        """Whether a name is a path of this machine, and not an entry of a hub or a store."""
        if "://" in name:
            return False
        plain = name.startswith(("/", "./", "../", "~")) or name in (".", "..") or is_data_name(name)
        return plain or self.exists(name)

    def write(self, path: Path, mark: str = "") -> str:
        """A path for our configuration: relative below its own directory, else absolute.

        Args:
            path: An absolute path.
            mark: A suffix after the path, as ``#name``.
        """
        if self.home is not None and path.is_relative_to(self.home) and path != self.home:
            return f"{path.relative_to(self.home)}{mark}"
        return f"{path}{mark}"


def _is_relative(name: str) -> bool:
    return bool(name) and "://" not in name and not os.path.isabs(os.path.expanduser(name))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
